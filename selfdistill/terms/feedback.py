"""A teacher learns from what its labels do for its student: a gradient through the student's own step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import shards
from ..branches import Pair
from ..core import Always, Loss, Measured, StateOf, Step, Tally, Teacher, Term
from ..errors import RecipeError, SpaceError
from ..losses import CrossEntropy
from ..targets import Target
from ..teachers import Labels

Speak = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # weights and inputs -> logits (rows, classes)


@dataclass(frozen=True)
class Feedback(Term):
    """The student's loss on labelled rows after a step on the teacher's labels, which the teacher is to make small.

    Equation::

        L = mean CE(y, p_S'(x)),  S' = S - rate grad_S mean loss(p_S(u), q),  q = softmax(z),  z = T(u)
        dL / dz_k = q_k (v_k - sum_c q_c v_c),  v_c = -<grad L(S'), d grad_S / d q_c> rate

    u are the rows of ``view``, x those of ``labelled``. The step is one of plain gradient descent from the student's
    weights at hand, whatever the optimizer then does with the same gradient; nothing of it is kept. The derivative runs
    through that step to z, exactly, and from z through the teacher's own forward: only the teacher gets a gradient.
    Soft labels make it exact; hard ones, drawn from q, have to first order in the rate the same gradient in the mean,
    by one difference of losses for a whole batch and under the noise of the draw. L is of the rows at hand, each of
    which counts as L, so that micro-batches and processes average. Without a labelled row it is 0.

    Source: Pham et al., Meta Pseudo Labels, CVPR 2021, section 2 and appendix A.

    Raises:
        RecipeError: a rate that is not above 0, hard labels, or a gate.
    """

    teacher: Teacher = Labels()
    loss: Loss = CrossEntropy()
    view: str = "strong"
    head: str = "teacher"
    rate: float = 0.1
    labelled: str = "labelled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rate > 0:
            raise RecipeError(f"the student's step has a rate above 0, not {self.rate}")
        if getattr(self.loss, "hard", False):
            raise RecipeError("a hard label has no derivative; leave hard out of the loss of Feedback")
        if type(self.gate) is not Always:
            raise RecipeError(f"Feedback is of a batch and has no rows that a gate could judge; leave out {self.gate}")

    def told(self) -> str:
        """What is compared, in words."""
        return f"of the student's step of {self.rate:g} on these rows, judged by labels of view {self.labelled!r}"

    def further(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """Forward and backward passes beyond those of the views: only the student's, whose step is differentiated."""
        taught, judged = rows_of(self.view), rows_of(self.labelled)
        return taught + judged, 2.0 * taught + judged

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        group, zero = step.owner, torch.zeros((), device=next(iter(step.batch.values())).x.device)
        if not isinstance(group, Pair):
            raise SpaceError(
                f"Feedback asks a student beside its teacher, not a {type(group).__name__}; prepare=Paired()"
            )
        if shards.is_sharded(group):
            raise RecipeError("the student's step needs its weights whole; train under DDP: leave --parallel out")
        if not step.rows(self.view) or not step.rows(self.labelled):
            return Measured(Tally(zero, zero), zero, zero)
        z, y = step.student(self.view, self.head), step.labels(self.labelled)
        x, judged = step.batch[self.view].x, step.batch[self.labelled].x
        rows, spoken = z.new_full((), float(len(z))), z.detach().requires_grad_()
        weights = {name: p.detach().requires_grad_() for name, p in group.student.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            loss = self.after(lambda w, seen: step.otherwise(group.student, w, seen), weights, spoken, x, judged, y)
            (signal,) = torch.autograd.grad(loss, spoken, materialize_grads=True)
        step.passes = step.passes._replace(backward=step.passes.backward + len(x))  # once more through the step
        total = rows * (loss.detach() + (signal * (z - z.detach())).sum())
        return Measured(Tally(total, rows), rows, rows)

    def after(
        self, speak: Speak, weights: Mapping[str, Tensor], z: Tensor, x: Tensor, judged: Tensor, y: Tensor
    ) -> Tensor:
        """The labelled loss after the step, a scalar with a graph to z, the teacher's logits (rows, classes) for x."""
        own = self.loss(speak(weights, x), Target(z, "logits")).mean()
        # a model may have heads that say no logits, and their weights stay
        slopes = torch.autograd.grad(own, list(weights.values()), create_graph=True, materialize_grads=True)
        moved = {name: w - self.rate * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(speak(moved, judged), y, ignore_index=-1, reduction="sum") / (y >= 0).sum().clamp(min=1)
