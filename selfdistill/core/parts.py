"""The whole idea: a method is a sum of terms, a term is teacher + loss + gate + schedule.

A **recipe** (`Method`, `Term` and every part in them) is a frozen value: equal, hashable, and its ``repr`` reads back.
What changes in training lives in the `Objective` that ``method.bind(model)`` makes, a module whose ``state_dict``
is all there is to save. A term of another kind is a `BaseTerm` with a ``tally`` of its own. One batch::

    Batch -> Forward (each view forwarded once) -> per term: target, trust of the gate, loss -> Tally(total, count)
          -> loss = sum over terms of weight x total / count -> backward, optimizer -> update() of every state

A loss gives the weighted sum over elements and never divides it: a `Reduction` says by what, tallies add over
micro-batches and ranks, and the division comes last.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..errors import SpaceError
from ..rng import Address
from .logits import scattered
from .outputs import element_shape, space_of
from .step import Batch, Forward, Rows, TrainingClock
from .targets import Target

Schedule = Callable[[TrainingClock], float]


def value_at(value: float | Schedule, clock: TrainingClock) -> float:
    """A number, or what a schedule makes of it at a place of the run."""
    return float(value(clock)) if callable(value) else float(value)


S = TypeVar("S", bound=nn.Module, default=Any)  # the state of a part


StateOf = Callable[["Part"], Any]


class Tally(NamedTuple):
    """A sum that is not yet a mean: ``total`` over the elements and their ``count``; both are scalars that add."""

    total: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count gives way


class BindArgs(NamedTuple):
    """The arguments of ``bind``: the last accepted generation, an external teacher, and (center, scale) of values."""

    previous: nn.Module | None = None
    external: nn.Module | None = None
    scale: tuple[float, float] | None = None


class GenerationData(NamedTuple):
    """The data that a part may use at the start of a generation: ids, and a function that predicts rows as they are."""

    unlabelled: Tensor
    predict: Callable[[nn.Module, Tensor], Tensor]  # (module, ids) -> logits (rows, classes)
    clock: TrainingClock
    labelled: Tensor = torch.zeros(0, dtype=torch.int64)
    seed: int = 0
    targets: Tensor = torch.zeros(0)  # what labelled rows teach, in their order


class Part(Generic[S]):
    """A piece of a recipe: itself frozen; its state, an ``S``, is an ``nn.Module`` owned by the objective.

    ``mixes``: what it gives a row depends on the other rows of the batch.
    """

    mixes: ClassVar[bool] = False

    @property
    def view(self) -> str | None:
        """The view it looks at, where it names one."""
        return None

    @property
    def head(self) -> str | None:
        """The head it looks at, where it names one."""
        return None

    @property
    def cycles(self) -> int:
        """Into how many parts of equal length it splits a generation."""
        return 1

    def start(self, model: nn.Module, args: BindArgs) -> S:
        """Make the state for a generation that trains ``model``."""
        state: Any = nn.Module()
        return state  # type: ignore[no-any-return]  # a part with a state of a kind of its own makes it itself

    def key(self, term: BaseTerm) -> Hashable:
        """Terms whose parts have equal keys share one state."""
        return self, term.view, term.head

    def prepare(self, state: S, pool: GenerationData) -> None:
        """Once at the start of a generation, with the data at hand."""

    def update(self, state: S, forwards: Sequence[Forward], term: BaseTerm) -> None:
        """After the optimizer's step; ``forwards`` (one per micro-batch) hold the outputs from before it."""

    def rows(self, state: S, batch: Batch, address: Address) -> Rows | None:
        """Rows of its own, for the view of its term: replayed ones, visited states, stored episodes.

        Args:
            state: what it has stored; it is saved with the objective.
            batch: the other views of the batch.
            address: what `rng` draws by; it differs by seed, generation, step, micro-batch and process.

        Returns:
            The rows, or None for a part that supplies none, or has none yet.
        """
        return None

    def has_no_target(self, clock: TrainingClock) -> bool:
        """Whether it has no target yet at this point of the run."""
        return False


class Teacher(Part[S]):
    """Where a term's target comes from.

    ``normalised``: its probabilities sum to 1. ``labels``: its target is the label. ``frozen``: it holds weights that
    do not follow the student. ``reusable``: its outputs on a fixed view stay the same and are kept. ``even``: a uniform
    target is meant, not the sign of a second softmax. ``mixed``: its target is that of mixed rows.
    """

    normalised: ClassVar[bool] = True
    labels: ClassVar[bool] = False
    frozen: ClassVar[bool] = False
    reusable: ClassVar[bool] = False
    even: ClassVar[bool] = False
    mixed: ClassVar[bool] = False

    @property
    def immovable(self) -> bool:
        """Does nothing at all change the weights it holds?"""
        return False

    @property
    def origin(self) -> Teacher:
        """The teacher whose answers it passes on; mostly itself."""
        return self

    @property
    def stores(self) -> bool:
        """Is it to keep its answers, whatever the settings say?"""
        return False

    @property
    def transforms(self) -> int:
        """How many transformed copies of a row it tells apart."""
        return 1

    def forward_passes(self, peers: float, generations: int) -> float:
        """Forward passes for each row of its view, beside those of the student.

        Args:
            peers: the networks of the student's group, 1 without one.
            generations: the generations of the method.
        """
        return 0.0

    @property
    def cost_note(self) -> str:
        """What its cost a row leaves out, in words."""
        return ""

    def averaging_rate(self, clock: TrainingClock) -> float | None:
        """The share of its distance from the student by which its average moved in the update of a step;
        None if it is no average of weights."""
        return None

    def target(self, state: S, forward: Forward, term: BaseTerm) -> Target:
        """The target for each row of the term's view."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its target is")

    def space(self, head: str) -> str:
        """The space of the target, for a student head (``classes``, ``probabilities``, ``logits``, ...)."""
        return space_of(head)

    def reads(self, term: BaseTerm) -> tuple[str, ...]:
        """The views that it looks at."""
        return (self.view or term.view,)

    def student_view(self, term: BaseTerm) -> str | None:
        """The view that the student itself must forward for this teacher, if any."""
        return None

    def eligible_ids(self, state: S) -> Tensor | None:
        """Ids of the unlabelled rows (of all, for views of ``chosen`` rows) to draw from; None: the data decide."""
        return None

    def of_values(self) -> Teacher:
        """Its counterpart for values: the same, but for the name of a head."""
        return self


class Gate(Part[S]):
    """How far each element of a target is trusted.

    ``spaces`` lists the target spaces it can judge (None: any); ``prefers``, whether it keeps the more confident ones
    (None: it claims nothing); ``full``: it trusts everything and is not asked; ``lazy``: it reads lazy logits too.
    """

    spaces: ClassVar[frozenset[str] | None] = None
    prefers: ClassVar[str | None] = "confident"
    full: ClassVar[bool] = False
    lazy: ClassVar[bool] = False

    def trust_mask(self, mask: Tensor) -> Tensor | None:
        """The elements that it trusts at all, of those that exist (mask (rows, T)); None where it needs outputs."""
        return None

    def weigh(self, state: S, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        """Trust in [0, 1], shape of the elements (rows, ...)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it weighs")

    def confidence(self, student: Tensor, target: Target) -> Tensor | None:
        """The confidence of each element (rows, ...); None where it is the largest probability of the target."""
        return None

    def extra_passes(self, term: BaseTerm, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """Forward and backward passes of its own, for a number of rows per view."""
        return 0.0, 0.0


@dataclass(frozen=True)
class Always(Gate):
    """Trust every target."""

    full: ClassVar[bool] = True
    lazy: ClassVar[bool] = True

    def trust_mask(self, mask: Tensor) -> Tensor | None:
        return mask

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return student.new_ones(element_shape(student))


class Loss:
    """How far the student is from the target: one number for each element.

    ``student_spaces`` and ``target_spaces`` list what it can compare (None: it is not judged). One that looks at other
    rows of the batch ``mixes``. A ``lazy`` one reads logits a block at a time and makes its gradient on the way, once.
    """

    student_spaces: ClassVar[frozenset[str] | None] = None
    target_spaces: ClassVar[frozenset[str] | None] = None
    mixes: ClassVar[bool] = False
    lazy: ClassVar[bool] = False

    @property
    def signed(self) -> bool:
        """May it be negative, on distributions?"""
        return False

    @property
    def flat(self) -> bool:
        """May it be 0 where student and target differ?"""
        return False

    @property
    def hard(self) -> bool:
        """Does it take the target's best class alone, so that it has no derivative in the target?"""
        return False

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        """The loss of each element, (rows, ...), of the student's raw output (rows, ..., components)."""
        raise NotImplementedError(f"{type(self).__name__} does not say what the loss of an element is")

    def total(self, student: Tensor, target: Target, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weighted sum over the elements that are valid, and the weighted loss of each.

        A loss that must know the weights first, because it makes its gradient in the forward pass, overrides this.

        Args:
            student: the raw output, (rows, ..., components).
            target: what it is compared with, ``valid`` where it says anything.
            weight: of each element, (rows, ...); 0 where it is not valid. None: 1 for each.

        Returns:
            The sum, a scalar, and the weighted values (rows, ...), or None where a loss never has them all at hand.

        Raises:
            SpaceError: the loss does not give one number for each element.
        """
        values = self(student, target)
        if values.shape != student.shape[:-1]:
            raise SpaceError(
                f"{self} returned {tuple(values.shape)}; a loss returns one number for each element, "
                f"{tuple(student.shape[:-1])}, and never reduces"
            )
        if target.valid is not None:
            values = values.masked_fill(~target.valid, 0.0)  # not a product: the loss of such an element may be nan
        if weight is not None:
            values = weight * values
        return values.sum(), values

    def of_values(self) -> Loss | None:
        """Its counterpart for values; None if it compares distributions over classes alone."""
        return None


LossFunction = Callable[[Tensor, Target], Tensor]  # student, target -> one number for each element


@dataclass(frozen=True)
class FunctionLoss(Loss):
    """A plain function of the student's output and the target as a loss.

    Args:
        function: of the raw output and the target, one number for each element.
        signed, flat: as of every `Loss`.
    """

    function: LossFunction
    signed: bool = False
    flat: bool = False

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        return self.function(student, target)


def as_loss(loss: Loss | LossFunction) -> Loss:
    """The loss, or a plain function as one."""
    return loss if isinstance(loss, Loss) else FunctionLoss(loss)


class Elements(NamedTuple):
    """The elements of a term on one batch, before their loss: what a `Reduction` counts.

    ``valid`` (rows, ...) says which have a target (None: all), ``trust`` (rows, ...) how far each is trusted, 0 where
    it is not valid (None: fully). ``number`` of them are valid, and ``kept`` is the sum of their trust, both scalars;
    ``exist`` of them are no padding, with a target or without (None: all).
    """

    shape: torch.Size
    valid: Tensor | None
    trust: Tensor | None
    number: Tensor
    kept: Tensor
    exist: Tensor | None = None


@dataclass(frozen=True)
class Reduction:
    """By what the weighted sum over a term's elements is divided."""

    def weights(self, elements: Elements) -> Tensor | None:
        """What each element counts for beside its trust, (rows, ...); None: 1."""
        return None

    def count(self, elements: Elements) -> Tensor:
        """What to divide by, a scalar that adds over micro-batches."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it counts")


@dataclass(frozen=True)
class PerElement(Reduction):
    """The mean over valid elements: one that the gate drops counts as zero."""

    def count(self, elements: Elements) -> Tensor:
        return elements.number


@dataclass(frozen=True)
class PerTrust(Reduction):
    """The weighted mean: the sum is divided by the trust that was given."""

    def count(self, elements: Elements) -> Tensor:
        return elements.kept


@dataclass(frozen=True)
class PerRow(Reduction):
    """The mean over rows with a target: the elements of a row, its exits or peers, add up."""

    def count(self, elements: Elements) -> Tensor:
        return elements.number * (elements.shape[0] / max(1, elements.shape.numel()))  # a row shares its validity


@dataclass(frozen=True)
class PerView(Reduction):
    """The mean over all elements of the view, so that terms with targets for different rows add up to one mean."""

    def count(self, elements: Elements) -> Tensor:
        return elements.number.new_full((), float(elements.shape.numel())) if elements.exist is None else elements.exist


class TermTrace(NamedTuple):
    """What a term computed with: output (rows, ..., components), target, and per element the trust and the loss."""

    student: Tensor
    target: Target
    trust: Tensor | None
    loss: Tensor | None


class TermResult(NamedTuple):
    """A term on one batch: its tally, and how many of its valid elements the gate kept; ``seen`` by the vitals."""

    tally: Tally
    kept: Tensor
    valid: Tensor
    seen: TermTrace | None = None


class BaseTerm:
    """What every term of a method has; a term of a kind of its own adds a ``tally``.

    ``teacher``, ``gate`` and ``loss`` are None where it has none of that kind. ``needs`` are the fields that each
    example must have beside its input (a checker, a demonstration), ``group`` how many samples of it are compared.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    group: ClassVar[int] = 1

    view: str = "x"
    head: str = "logits"
    weight: float | Schedule = 1.0
    teacher: Teacher | None = None
    gate: Gate | None = None
    loss: Loss | None = None

    @property
    def views(self) -> tuple[str, ...]:
        """The views on which it compares the student."""
        return (self.view,)

    def parts(self) -> tuple[Part, ...]:
        """Those with a state, or with something to say about views."""
        return tuple(part for part in (self.teacher, self.gate) if part is not None)

    def weight_at(self, clock: TrainingClock) -> float:
        """What the term counts for at a place of the run."""
        weight = self.weight  # not `value_at`: every term of every step comes here
        return float(weight(clock) if callable(weight) else weight)

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        """The sum over the elements, and the count to divide by."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its sum is")

    @property
    def separable(self) -> bool:
        """Does it say the same of a batch in pieces?"""
        return not any(part.mixes for part in self.parts()) and not (self.loss is not None and self.loss.mixes)

    def count_of(self, batch: Batch) -> Tensor | None:
        """What its sum over a batch is divided by, a scalar; None where only a pass tells."""
        return None

    def extra_passes(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """Forward and backward passes beyond those of the views, for a number of networks and of rows per view."""
        return 0.0, 0.0

    def loss_note(self) -> str:
        """The description that `explain` adds to the loss."""
        return ""


@dataclass(frozen=True)
class Term(BaseTerm):
    """Teacher, loss, gate and weight, for one view and one head of the student.

    ``reduction`` says by what the sum over elements is divided: `PerElement`, `PerTrust`, `PerRow` or `PerView`. A
    plain function of output and target is taken as a `FunctionLoss`.
    """

    teacher: Teacher = field()
    loss: Loss = field()
    view: str = "x"
    head: str = "logits"
    gate: Gate = Always()
    weight: float | Schedule = 1.0
    reduction: Reduction = PerElement()

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", as_loss(self.loss))
        if not isinstance(self.reduction, Reduction):
            raise SpaceError(f"reduction is an object such as PerElement() or PerTrust(), not {self.reduction!r}")

    def extra_passes(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        forward, backward = self.gate.extra_passes(self, rows_of)
        return networks * forward, networks * backward

    def student_output(self, forward: Forward) -> Tensor:
        """The student's side of the comparison, with gradient: (rows, ..., components)."""
        return forward.student(self.view, self.head)

    def count_of(self, batch: Batch) -> Tensor | None:
        mask = batch[self.view].extra.get("mask")
        trust = None if mask is None else self.gate.trust_mask(mask)
        if mask is None or trust is None:
            return None
        valid = mask
        for view in self.teacher.reads(self):
            valid = valid & aligned_rows(batch[view], mask)
        trust = (trust & valid).float()
        exist = mask.sum().float()
        return self.reduction.count(Elements(mask.shape, valid, trust, valid.sum().float(), trust.sum(), exist))

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        if not forward.rows(self.view):
            zero = torch.zeros((), device=next(iter(forward.batch.values())).x.device)
            return TermResult(Tally(zero, zero), zero, zero)
        student = self.student_output(forward)
        target = self.teacher.target(state_of(self.teacher), forward, self).spread(student)
        trust, valid, shape = None, target.valid, student.shape[:-1]
        number = student.new_full((), float(shape.numel())) if valid is None else valid.sum(dtype=student.dtype)
        kept = number
        if not self.gate.full:  # full trust costs nothing
            trust = self.gate.weigh(state_of(self.gate), student.detach(), target, forward, self)
            trust = trust if valid is None else trust.masked_fill(~valid, 0.0)
            kept = trust.sum().detach()
        own = forward.batch.get(self.view)
        mask = None if own is None else own.extra.get("mask")
        exist = None if mask is None else mask.sum(dtype=student.dtype)
        elements = Elements(shape, valid, trust, number, kept, exist)
        share = self.reduction.weights(elements)
        weight = trust if share is None else share if trust is None else share * trust
        total, loss = self.loss.total(student, target, weight)
        trace = None if self.loss.lazy else TermTrace(student, target, trust, loss)  # its gradient is handed out once
        return TermResult(Tally(total, self.reduction.count(elements)), kept, number, trace)


def aligned_rows(rows: Rows, like: Tensor) -> Tensor:
    """Which rows of the student's view a view belongs to, (rows, 1, ...) as ``like``."""
    if rows.align is None:
        return like.new_ones((), dtype=torch.bool)
    here = torch.zeros(len(like), dtype=torch.bool, device=like.device)
    here[rows.align] = True
    return here.reshape(-1, *(1,) * (like.dim() - 1))


def aligned_target(forward: Forward, term: BaseTerm, view: str, answer: Callable[[], Tensor], space: str) -> Target:
    """A teacher's target for the rows of the term's view, from its answer for the rows of its own.

    Args:
        forward: the pass of the batch; padding, and rows that the teacher's view does not have, are not valid.
        term: whose view and head the student is compared on.
        view: what the teacher reads.
        answer: gives its output there, (rows of the view, ..., components); not asked where there are none.
        space: of the answer.
    """
    rows, own = forward.batch.get(view), forward.batch.get(term.view)
    mask = None if own is None else own.extra.get("mask")
    if rows is None or rows.align is None:
        return Target(answer(), space, mask)
    student = forward.student(term.view, term.head)
    exist = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask
    valid = exist & aligned_rows(rows, exist)
    if not len(rows.x):
        return Target(student.detach(), space, valid)
    return Target(scattered(answer(), rows.align, exist.shape), space, valid)
