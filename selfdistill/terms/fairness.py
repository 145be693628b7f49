"""Are all classes said alike? A term over a batch, not over its rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core import Gate, Loss, Measured, StateOf, Step, Tally, Teacher, Term
from ..errors import RecipeError
from ..gates import SelfAdaptive
from ..gates.adaptive import Running
from ..losses import CrossEntropy
from ..targets import Target
from ..teachers import Itself


def _even(shares: Tensor, counts: Tensor) -> Tensor:
    """Shares over counts, normalised: where every class is as probable as it is frequent, all are alike."""
    ratio = torch.where(counts > 0, shares / counts.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum().clamp(min=1e-12)


@dataclass(frozen=True)
class Fairness(Term):
    """Minus the cross-entropy of what the batch says of the classes, relative to what was said of them so far.

    Equation::

        L = sum_c N(q / h)_c log N(p / k)_c,  N = divided by its sum (0 where a count is 0)
        q, h = running means of the targets and of their best classes, from the gate, with the batch at hand
        p, k = mean of the student's probabilities and share of each best class of its, over the rows that are kept

    It is negative, and minimising it makes the student's answers diverse. Each row counts as L, so that micro-batches
    and processes average; L itself is of the rows at hand. Without a row that is kept it is 0.

    Source: Wang et al., FreeMatch, ICLR 2023, self-adaptive fairness.
    """

    teacher: Teacher = Itself()
    loss: Loss = CrossEntropy()
    gate: Gate = SelfAdaptive()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.gate, SelfAdaptive):
            raise RecipeError(f"Fairness asks the gate SelfAdaptive what was said so far, not {self.gate}")

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        rows = torch.tensor(float(step.rows(self.view)), device=step.batch[self.view].x.device)
        student = self.said(step) if rows else rows
        if not rows:
            return Measured(Tally(rows, rows), rows, rows)
        gate, state = cast(SelfAdaptive, self.gate), state_of(self.gate)
        target = self.teacher.target(state_of(self.teacher), step, self).spread(student).detached()
        trust = gate.weigh(state, student.detach(), target, step, self)
        trust = trust if target.valid is None else trust.masked_fill(~target.valid, 0.0)
        now: Running = gate.now(state, student.detach(), target, step, self)
        p, kept = F.softmax(student, dim=-1), trust.sum()
        best = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        shares, counts = (
            (trust.unsqueeze(-1) * each).flatten(0, -2).sum(0) / kept.clamp(min=1.0) for each in (p, best)
        )
        said = torch.log(_even(shares, counts) + 1e-12).unsqueeze(0)
        wanted = Target(_even(now.marginal, now.histogram).unsqueeze(0), "probabilities")
        total = -self.loss(said, wanted).sum() * rows if kept > 0 else 0.0 * p.sum()
        return Measured(Tally(total, rows), kept, rows)
