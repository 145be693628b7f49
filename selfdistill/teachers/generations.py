"""Earlier generations and cycles as teachers: their mean, all members side by side, or an extrapolation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import FrozenCopy, copy_model
from ..core.outputs import space_of
from ..core.parts import BaseTerm, BindArgs, Teacher
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..errors import RecipeError, SpaceError
from ..models.peers import PeerModels
from .memories import label_target, memory_space
from .weights import Generation

if TYPE_CHECKING:
    from ..core.objective import Method


@dataclass(frozen=True)
class GenerationEnsemble(Generation):
    """The mean probability, or value, of all accepted earlier generations, frozen and in eval mode.

    With ``at_last`` they form an ensemble that teaches the last generation alone, rejected ones included. In a loop of
    your own, `bind` a `models.peers.PeerModels` of them as ``previous``.
    """

    at_last: bool = False

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers * (generations - 1)

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        previous = super().module(model, args)
        return previous if previous is None or isinstance(previous, PeerModels) else PeerModels([previous])

    def space(self, head: str) -> str:
        if head not in ("logits", "values"):
            raise SpaceError(f"GenerationEnsemble needs the head 'logits' or 'values', not {head!r}")
        return space_of(head)

    def has_target(self, state: nn.Module, forward: Forward) -> bool:
        """Does this generation have a target?"""
        last = forward.clock.generation == forward.clock.generations - 1
        return isinstance(state, FrozenCopy) and (last or not self.at_last)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        if not self.has_target(state, forward):
            return _no_target(forward.student(term.view, term.head), space_of(term.head))
        if isinstance(state, FrozenCopy) and isinstance(state.module, PeerModels):
            state.module.values = term.head == "values"  # the ensemble averages values or probabilities
        return self.answer(state, forward, term, "ensemble")._replace(space=space_of(term.head))

    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        if self.has_target(state, forwards[0]):
            super().update(state, forwards, term)


@dataclass(frozen=True)
class Members(GenerationEnsemble):
    """The logits of all earlier generations side by side, (rows, M x classes), member by member."""

    reusable: ClassVar[bool] = False

    def space(self, head: str) -> str:
        if head != "logits":
            raise SpaceError(f"Members needs the head 'logits', not {head!r}")
        return "members"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        if not self.has_target(state, forward) or not isinstance(state, FrozenCopy):
            return _no_target(forward.student(term.view, term.head), "members")
        return Target(forward.teacher_output(state.module, self.view or term.view, "peers").flatten(1), "members")

    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        """Do nothing: outputs of members are not cached."""


def _no_target(student: Tensor, space: str) -> Target:
    return Target(torch.zeros_like(student), space, student.new_zeros(student.shape[:-1], dtype=torch.bool))


def ensemble_teacher(method: Method) -> GenerationEnsemble | None:
    """The teacher of a method that needs all earlier generations; None if it has none."""
    teachers = (term.teacher for term in method.terms.values())
    return next((teacher for teacher in teachers if isinstance(teacher, GenerationEnsemble)), None)


class _SnapshotCopy(FrozenCopy):
    """A snapshot of the student, and a flag: has one been taken?"""

    taken: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))


@dataclass(frozen=True)
class Snapshot(Teacher[_SnapshotCopy]):
    """The student as it was at the end of the last cycle, frozen, at a temperature (snapshot distillation, 2019).

    A generation is split into ``cycles`` of equal length; under the cosine schedule each starts at the full learning
    rate. In the first cycle there is no snapshot and no target. The target is softened, the student is not.
    """

    cycles: int = 4
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.cycles < 2:
            raise RecipeError(f"Snapshot needs at least two cycles, since one teaches the next; not {self.cycles}")

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers

    @property
    def cost_note(self) -> str:
        return f"without a teacher, at 1 x, in the first of {self.cycles} cycles"

    def start(self, model: nn.Module, args: BindArgs) -> _SnapshotCopy:
        return _SnapshotCopy(copy_model(model))

    def key(self, term: BaseTerm) -> Hashable:
        return Snapshot, self.cycles

    def has_no_target(self, clock: TrainingClock) -> bool:
        """Whether the first cycle is under way, in which there is no snapshot."""
        return clock.step < clock.length // self.cycles

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: _SnapshotCopy, forward: Forward, term: BaseTerm) -> Target:
        student = forward.student(term.view, term.head)
        if not bool(state.taken):
            return Target(torch.zeros_like(student), "probabilities", torch.zeros_like(student[:, 0], dtype=torch.bool))
        logits = forward.teacher_output(state.module, term.view, term.head)
        return Target(F.softmax(logits / self.temperature, dim=-1), "probabilities")

    @torch.no_grad()
    def update(self, state: _SnapshotCopy, forwards: Sequence[Forward], term: BaseTerm) -> None:
        clock = forwards[0].clock
        if clock.step + 1 in {k * clock.length // self.cycles for k in range(1, self.cycles)}:
            student = forwards[0].owner
            source = (*student.parameters(), *student.buffers())
            for copied, tensor in zip((*state.module.parameters(), *state.module.buffers()), source, strict=True):
                copied.copy_(tensor)
            state.taken.fill_(True)


@dataclass(frozen=True)
class Extrapolated(Generation):
    """xi x last generation + (1 - xi) x label, with negative components set to 0 and normalised.

    For xi in [0, 1] none is negative. Above 1 the target moves away from the label, which gets 0 for rows whose teacher
    gives it less than 1 - 1 / xi. In generation 0 the target is the label.
    """

    xi: float = 1.5

    def key(self, term: BaseTerm) -> Hashable:
        return self, term.head, self.view or term.view

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        classes = forward.student(term.view, term.head).shape[-1]
        label, labelled = label_target(forward, term, classes)
        previous = Generation(self.view).target(state, forward, term)
        if previous.valid is not None:  # no generation before this one
            return Target(label, "probabilities", labelled)
        mixed = (self.xi * previous.probabilities(classes) + (1.0 - self.xi) * label).clamp(min=0.0)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        return Target(torch.where(labelled[:, None], mixed, previous.probabilities(classes)), "probabilities")

    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        Generation(self.view).update(state, forwards, term)  # the cache by sample id holds the generation's outputs
