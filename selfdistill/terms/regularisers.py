"""Terms beyond a single loss: temperature schedules, fairness, meta feedback and adversarial perturbation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..core import distributed
from ..core.outputs import space_of
from ..core.parts import Loss, StateOf, Tally, Teacher, Term, TermResult
from ..core.step import Forward, Passes, members
from ..core.targets import Target
from ..errors import RecipeError, SpaceError
from ..gates import SelfAdaptive
from ..gates.adaptive import Running
from ..losses import KL, CrossEntropy
from ..models.peers import Pair
from ..teachers import CurrentStudent, Labels


@dataclass(frozen=True)
class Cooling(Term):
    """A term whose temperature goes linearly from ``start`` to that of its loss.

    It is reached after ``share`` of the generation. ``which`` names the temperature, if a loss has several.

    Raises:
        RecipeError: the loss has no such temperature.

    >>> from selfdistill.losses import KL
    >>> from selfdistill.core.step import TrainingClock
    >>> from selfdistill.teachers import CurrentStudent
    >>> Cooling(CurrentStudent("other"), KL(), start=10.0, share=0.5).temperature(TrainingClock(step=25, epochs=100))
    5.5
    """

    start: float = 10.0
    share: float = 0.5
    which: str = "temperature"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.loss, self.which):
            raise RecipeError(f"{self.loss} has no {self.which} for a schedule; use a Term")
        if not self.start > 0:
            raise RecipeError(f"temperatures are above 0, not {self.start}")

    def temperature(self, clock: Any) -> float:
        """The temperature of the loss at this point of the run."""
        remainder = max(0.0, 1.0 - clock.progress / self.share) if self.share > 0 else 0.0
        end = float(getattr(self.loss, self.which))
        return end + (self.start - end) * remainder

    def loss_note(self) -> str:
        """The description that `explain` adds to the loss."""
        return f"whose {self.which} goes from {self.start:g} to its own in the first {100 * self.share:g} %"

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        loss: Any = self.loss
        now = replace(loss, **{self.which: self.temperature(forward.clock)})
        return Term.tally(replace(self, loss=now), state_of, forward)


@dataclass(frozen=True)
class RowMeanCooling(Cooling):
    """A `Cooling` whose mean is over rows, of the mean over a row's valid elements; a row without any counts as 0.

    Source: the patches of Zhou et al., iBOT, ICLR 2022, equation 2, as the authors compute it.
    """

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        result = super().tally(state_of, forward)
        if result.seen is None:
            return result
        loss, valid = result.seen.loss, result.seen.target.valid
        if loss is None:
            raise SpaceError(f"{self.loss} gives no loss for each element, and a mean over rows needs it")
        number = (torch.ones_like(loss) if valid is None else valid.to(loss.dtype)).flatten(1).sum(1)
        total = (loss.flatten(1).sum(1) / number.clamp(min=1.0)).sum()
        return result._replace(tally=Tally(total, loss.new_full((), float(len(loss)))))


def _relative_shares(shares: Tensor, counts: Tensor) -> Tensor:
    """Shares over counts, normalised: uniform where each class is as probable as it is frequent."""
    ratio = torch.where(counts > 0, shares / counts.clamp(min=1e-12), 0.0)
    return ratio / ratio.sum().clamp(min=1e-12)


@dataclass(frozen=True)
class Fairness(Term):
    """Minus the cross-entropy of the batch's class shares, relative to the running class shares of the targets.

    Equation::

        L = sum_c N(q / h)_c log N(p / k)_c,  N = divided by its sum (0 where a count is 0)
        q, h = running means of the targets and of their best classes, from the gate, with the current batch
        p, k = mean of the student's probabilities and of its best classes, over the rows that the gate keeps

    It is negative, and minimising it makes the student's predictions diverse. Each row counts as L, so that
    micro-batches and processes average; L itself is of the current rows. Without a kept row it is 0.

    Source: Wang et al., FreeMatch, ICLR 2023, self-adaptive fairness.
    """

    teacher: Teacher = CurrentStudent()
    loss: Loss = CrossEntropy()
    gate: SelfAdaptive = SelfAdaptive()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.gate, SelfAdaptive):
            raise RecipeError(f"Fairness needs the gate SelfAdaptive for its running means, not {self.gate}")

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        rows = torch.tensor(float(forward.rows(self.view)), device=forward.batch[self.view].x.device)
        student = self.student_output(forward) if rows else rows
        if not rows:
            return TermResult(Tally(rows, rows), rows, rows)
        gate, state = self.gate, state_of(self.gate)
        target = self.teacher.target(state_of(self.teacher), forward, self).spread(student)
        trust = gate.weigh(state, student.detach(), target, forward, self)
        trust = trust if target.valid is None else trust.masked_fill(~target.valid, 0.0)
        running: Running = gate.running_means(state, student.detach(), target, forward, self)
        p, number = F.softmax(student, dim=-1), trust.sum()
        best = F.one_hot(p.argmax(-1), p.shape[-1]).to(p.dtype)
        shares, counts = (
            (trust.unsqueeze(-1) * values).flatten(0, -2).sum(0) / number.clamp(min=1.0) for values in (p, best)
        )
        log_ratio = torch.log(_relative_shares(shares, counts) + 1e-12).unsqueeze(0)
        uniformity = Target(_relative_shares(running.marginal, running.histogram).unsqueeze(0), "probabilities")
        total = -self.loss(log_ratio, uniformity).sum() * rows if number > 0 else 0.0 * p.sum()
        return TermResult(Tally(total, rows), number, rows)


Apply = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # weights and inputs -> logits (rows, classes)


@dataclass(frozen=True)
class Feedback(Term):
    """The student's loss on labelled rows after a step on the teacher's labels: the teacher's objective.

    Equation::

        L = mean CE(y, p_S'(x)),  S' = S - rate grad_S mean loss(p_S(u), q),  q = softmax(z),  z = T(u)
        dL / dz_k = q_k (v_k - sum_c q_c v_c),  v_c = -<grad L(S'), d grad_S / d q_c> rate

    u are the rows of ``view``, x those of ``labelled``. The step is one of plain gradient descent from the student's
    current weights, independent of the optimizer, and it is discarded afterwards. The derivative runs through that step
    to z, exactly, and from z through the teacher's forward pass: only the teacher gets a gradient. Soft labels make it
    exact; hard ones, drawn from q, have the same expected gradient to first order in the rate, with the noise of the
    draw. Each row counts as L, so that micro-batches and processes average. Without a labelled row it is 0.

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
            raise RecipeError(f"Feedback: rate is the learning rate of the student's step, above 0, not {self.rate}")
        if self.loss.hard:
            raise RecipeError("a hard label has no derivative; leave hard out of the loss of Feedback")
        if not self.gate.full:
            raise RecipeError(f"Feedback is a loss of the whole batch and takes no gate; leave out {self.gate}")

    def loss_note(self) -> str:
        """The description that `explain` adds to the loss."""
        return f"of the student's step of {self.rate:g} on these rows, judged by labels of view {self.labelled!r}"

    def extra_passes(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """The student's forward and backward passes for the differentiated step."""
        unlabelled, labelled = rows_of(self.view), rows_of(self.labelled)
        return unlabelled + labelled, 2.0 * unlabelled + labelled

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        group, zero = forward.owner, torch.zeros((), device=next(iter(forward.batch.values())).x.device)
        if not isinstance(group, Pair):
            raise SpaceError(
                f"Feedback needs a student with its teacher, not a {type(group).__name__}; give wrap_model=Paired()"
            )
        if distributed.is_sharded(group):
            raise RecipeError("Feedback needs unsharded weights; train under DDP: leave --parallel out")
        if not forward.rows(self.view) or not forward.rows(self.labelled):
            return TermResult(Tally(zero, zero), zero, zero)
        z, y = forward.student(self.view, self.head), forward.labels(self.labelled)
        x, x_labelled = forward.batch[self.view].x, forward.batch[self.labelled].x
        rows, logits = z.new_full((), float(len(z))), z.detach().requires_grad_()
        weights = {name: p.detach().requires_grad_() for name, p in group.student.named_parameters() if p.requires_grad}
        with torch.enable_grad():
            loss = self.student_loss(
                lambda w, inputs: forward.with_weights(group.student, w, inputs), weights, logits, x, x_labelled, y
            )
            (signal,) = torch.autograd.grad(loss, logits, materialize_grads=True)
        forward.passes = forward.passes._replace(
            backward=forward.passes.backward + len(x)
        )  # once more through the step
        total = rows * (loss.detach() + (signal * (z - z.detach())).sum())
        return TermResult(Tally(total, rows), rows, rows)

    def student_loss(
        self, apply: Apply, weights: Mapping[str, Tensor], z: Tensor, x: Tensor, x_labelled: Tensor, y: Tensor
    ) -> Tensor:
        """The labelled loss after the step, a scalar with a graph to z, the teacher's logits (rows, classes) for x."""
        loss = self.loss(apply(weights, x), Target(z, "logits")).mean()
        # weights of heads without logits get a gradient of zero
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
        updated = {name: w - self.rate * slope for (name, w), slope in zip(weights.items(), slopes, strict=True)}
        return F.cross_entropy(apply(updated, x_labelled), y, ignore_index=-1, reduction="sum") / (y >= 0).sum().clamp(
            min=1
        )


def _unit(x: Tensor) -> Tensor:
    """Each row normalised to length 1; a row of zeros stays."""
    length = x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.dim() - 1))
    return x / torch.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class Perturbed(Term):
    """A term whose student gets x + r as input, while its teacher's view stays the same (by default x itself).

    Equation::

        r = size x d / ||d||,  d <- H d  (``iterations`` times, from a random direction)
        H = the second derivative of loss(student(x + r), sg student(x)) in r, at r = 0

    r is the direction in which the student changes most. H d is exact, by differentiating twice; batch norm uses the
    rows of the view in these passes and keeps its running statistics. The direction is drawn by sample id and step.

    Source: Miyato et al., Virtual Adversarial Training, IEEE TPAMI 2019, section 3.3; there H d is a difference
    quotient with a step of 1e-6, which float32 does not resolve at inputs of size 1.

    Raises:
        RecipeError: a size that is not above 0, or no iteration.
    """

    teacher: Teacher = CurrentStudent()
    loss: Loss = KL()
    size: float = 8.0
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size > 0 or self.iterations < 1:
            raise RecipeError(
                f"Perturbed: size is above 0 and iterations at least 1, not {self.size} and {self.iterations}"
            )

    def student_output(self, forward: Forward) -> Tensor:
        x = forward.batch[self.view].x
        if not x.is_floating_point():
            raise SpaceError(f"Perturbed needs inputs of real numbers, and view {self.view!r} has {x.dtype}")
        return forward.answer(x + self.size * self.direction(forward, x), self.head)

    def extra_passes(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """Forward and backward passes beyond those of the views."""
        rows = networks * rows_of(self.view)
        return rows * (1.0 + self.iterations), rows * (1.0 + 2.0 * self.iterations)

    @torch.enable_grad()
    def direction(self, forward: Forward, x: Tensor) -> Tensor:
        """The direction in which the student changes most, a unit vector for each row."""
        clock = forward.clock
        # the seed of the step is that of dropout, so that runs with other seeds draw other directions
        address = (torch.initial_seed(), "direction", clock.generation, clock.step)
        d = _unit(rng.normal(address, forward.ids(self.view), x[0].numel()).view_as(x).to(x.dtype))
        for _ in range(self.iterations):
            r = torch.zeros_like(x).requires_grad_()
            output = forward.answer(x + r, self.head, wrapped=False)
            distance = self.loss(output, Target(output.detach(), space_of(self.head))).sum()
            (slope,) = torch.autograd.grad(distance, r, create_graph=True)
            (curvature,) = torch.autograd.grad((slope * d).sum(), r)
            forward.passes += Passes(backward=members(forward.owner) * len(x))  # the first was counted with its forward
            d = _unit(curvature)
        return d.detach()
