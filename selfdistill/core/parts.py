"""The whole idea: a method is a sum of terms, a term is teacher + loss + gate + schedule.

A **recipe** (`Method`, `Term` and every part in them) is a frozen value: equal, hashable, and its ``repr`` reads back.
What changes in training lives in the `Objective` that ``method.bind(model)`` makes, a module whose ``state_dict``
is all there is to save. A term of another kind has ``view``, ``head``, ``parts``, ``weight_at``, ``tally``. One batch::

    Batch -> Step (each view forwarded once) -> per term: target, per-element loss, gate -> Tally(total, count)
          -> loss = sum over terms of weight x total / count -> backward, optimizer -> update() of every state

Losses never reduce; tallies add over micro-batches and ranks, and the division comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import SpaceError
from .outputs import element_shape, space_of
from .step import Clock, Step
from .targets import Target

Schedule = Callable[[Clock], float]


Loss = Callable[[Tensor, Target], Tensor]  # student, target -> one number per element, never reduced


StateOf = Callable[["Part"], nn.Module]


class Tally(NamedTuple):
    """A sum that is not yet a mean: ``total`` over the elements and their ``count``; both are scalars that add."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count gives way


class Given(NamedTuple):
    """What was handed to ``bind``: the last accepted generation, an external teacher, and (center, scale) of values."""

    previous: nn.Module | None = None
    external: nn.Module | None = None
    scale: tuple[float, float] | None = None


class Pool(NamedTuple):
    """What a generation may prepare itself with: ids, and a way to look at rows without augmentation."""

    unlabelled: Tensor
    look: Callable[[nn.Module, Tensor], Tensor]  # (module, ids) -> logits (rows, classes)
    clock: Clock
    labelled: Tensor = torch.zeros(0, dtype=torch.int64)
    seed: int = 0
    targets: Tensor = torch.zeros(0)  # what labelled rows teach, in their order


class Part:
    """A piece of a recipe: itself frozen; its state is an ``nn.Module`` owned by the objective."""

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        """Make the state for a generation that trains ``model``."""
        return nn.Module()

    def key(self, term: Term) -> Hashable:
        """Terms whose parts have equal keys share one state."""
        return self, term.view, term.head

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        """Once at the start of a generation, with the data at hand."""

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        """After the optimizer's step; ``steps`` (one per micro-batch) still hold what was said before it."""


class Teacher(Part):
    """Where a term's target comes from.

    ``normalised``: its probabilities sum to 1. ``labels``: its target is the label. ``frozen``: it holds weights that
    do not follow the student.
    """

    normalised: ClassVar[bool] = True
    labels: ClassVar[bool] = False
    frozen: ClassVar[bool] = False

    @property
    def immovable(self) -> bool:
        """Does nothing at all change the weights it holds?"""
        return False

    def averaging_rate(self, step: int) -> float | None:
        """The share of its distance from the student by which its average moved in the update after ``step`` steps;
        None if it is no average of weights."""
        return None

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        """The target for each row of the term's view."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its target is")

    def space(self, head: str) -> str:
        """The space of the target, for a student head (``classes``, ``probabilities``, ``logits``, ...)."""
        return space_of(head)

    def own_view(self, term: Term) -> str | None:
        """The view that the student itself must forward for this teacher, if any."""
        return None

    def admitted(self, state: nn.Module) -> Tensor | None:
        """Ids of the unlabelled rows (of all, for views of ``chosen`` rows) to draw from; None: the data decide."""
        return None


class Gate(Part):
    """How far each element of a target is trusted. ``spaces`` lists the target spaces it can judge (None: any);
    ``prefers``, whether it keeps the more confident ones (None: it claims nothing); ``measures(student, target)``,
    where there is one, how sure each is."""

    spaces: ClassVar[frozenset[str] | None] = None
    prefers: ClassVar[str | None] = "confident"

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        """Trust in [0, 1], shape of the elements (rows, ...)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it weighs")


@dataclass(frozen=True)
class Always(Gate):
    """Trust every target."""

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        return student.new_ones(element_shape(student))


class Seen(NamedTuple):
    """What a term computed with: output (rows, ..., components), target, and per element the trust and the loss."""

    student: Tensor
    target: Target
    trust: Tensor | None
    loss: Tensor


class Measured(NamedTuple):
    """A term on one batch: its tally, and how many of its valid elements the gate kept; ``seen`` by the vitals."""

    tally: Tally
    kept: Tensor
    valid: Tensor
    seen: Seen | None = None


@dataclass(frozen=True)
class Term:
    """Teacher, loss, gate and weight, for one view and one head of the student.

    ``mean_over`` divides by the number of valid elements (``"valid"``: what the gate drops counts as zero), by the
    trust given (``"kept"``), by the rows (``"rows"``: exits or peers of a row add up), or by all elements of the view
    (``"view"``: terms with targets for different rows add up to one mean). What does not fit writes a class of its own.
    """

    teacher: Teacher
    loss: Loss
    view: str = "x"
    head: str = "logits"
    gate: Gate = Always()
    weight: float | Schedule = 1.0
    mean_over: str = "valid"

    def __post_init__(self) -> None:
        if self.mean_over not in ("valid", "kept", "rows", "view"):
            raise SpaceError(f"mean_over is 'valid', 'kept', 'rows' or 'view', not {self.mean_over!r}")

    def parts(self) -> tuple[Part, ...]:
        return self.teacher, self.gate

    def weight_at(self, clock: Clock) -> float:
        return float(self.weight(clock)) if callable(self.weight) else float(self.weight)

    def said(self, step: Step) -> Tensor:
        """The student's side of the comparison, with gradient: (rows, ..., components)."""
        return step.student(self.view, self.head)

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        """Sum of trust x loss over the elements, and the count to divide by."""
        if not step.rows(self.view):
            zero = torch.zeros((), device=next(iter(step.batch.values())).x.device)
            return Measured(Tally(zero, zero), zero, zero)
        student = self.said(step)
        target = self.teacher.target(state_of(self.teacher), step, self).spread(student).detached()
        loss = self.loss(student, target)  # (rows, ...): one number an element
        if loss.shape != element_shape(student):
            raise SpaceError(
                f"{self.loss} returned {tuple(loss.shape)}; a loss returns one number for each element, "
                f"{tuple(element_shape(student))}, and never reduces"
            )
        silent, valid = None, (everything := loss.new_full((), float(loss.numel())))
        if target.valid is not None:
            silent, valid = ~target.valid, target.valid.sum(dtype=loss.dtype)
            loss = loss.masked_fill(silent, 0.0)  # not a product: the loss of such an element may be nan
        kept, trust = valid, None
        if type(self.gate) is not Always:  # full trust costs nothing
            trust = self.gate.weigh(state_of(self.gate), student.detach(), target, step, self)
            trust = trust if silent is None else trust.masked_fill(silent, 0.0)
            loss, kept = trust * loss, trust.sum().detach()
        count = (
            valid * (len(loss) / max(1, loss.numel()))  # the elements of a row share its validity
            if self.mean_over == "rows"
            else {"valid": valid, "kept": kept, "view": everything}[self.mean_over]
        )
        return Measured(Tally(loss.sum(), count), kept, valid, Seen(student, target, trust, loss))
