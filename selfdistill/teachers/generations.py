"""Earlier generations and earlier cycles as teachers: their mean, each by itself, or extrapolated."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import FrozenCopy
from ..core.outputs import space_of
from ..core.parts import BaseTerm, BindArgs, Teacher
from ..core.step import Clock, Forward
from ..core.targets import Target
from ..errors import RecipeError, SpaceError
from ..models.peers import PeerModels
from .memories import first_word, one_per_row
from .weights import Generation

if TYPE_CHECKING:
    from ..core.objective import Method


@dataclass(frozen=True)
class GenerationEnsemble(Generation):
    """The mean probability, or value, of all accepted earlier generations, frozen and in eval mode.

    With ``at_last`` they are the members of an ensemble: the last generation alone is taught, by all of them, whatever
    the audit says of each. In a loop of your own, `bind` a `heads.Peers` of them as ``previous``.
    """

    at_last: bool = False

    def module(self, model: nn.Module, given: BindArgs) -> nn.Module | None:
        previous = super().module(model, given)
        return previous if previous is None or isinstance(previous, PeerModels) else PeerModels([previous])

    def space(self, head: str) -> str:
        if head not in ("logits", "values"):
            raise SpaceError(f"GenerationEnsemble gives the mean of logits or values, not of the head {head!r}")
        return space_of(head)

    def speaks(self, state: nn.Module, step: Forward) -> bool:
        """Is there anything to say in this generation?"""
        last = step.clock.generation == step.clock.generations - 1
        return isinstance(state, FrozenCopy) and (last or not self.at_last)

    def target(self, state: nn.Module, step: Forward, term: BaseTerm) -> Target:
        if not self.speaks(state, step):
            return _silent(step.student(term.view, term.head), space_of(term.head))
        if isinstance(state, FrozenCopy) and isinstance(state.module, PeerModels):
            state.module.values = term.head == "values"  # it says what it is asked for
        return self.answer(state, step, term, "ensemble")._replace(space=space_of(term.head))

    def update(self, state: nn.Module, steps: Sequence[Forward], term: BaseTerm) -> None:
        if self.speaks(state, steps[0]):
            super().update(state, steps, term)


@dataclass(frozen=True)
class Members(GenerationEnsemble):
    """What each earlier generation says, side by side: their logits (rows, M x classes), member by member."""

    def space(self, head: str) -> str:
        if head != "logits":
            raise SpaceError(f"Members gives the logits of several models; the head {head!r} is neither")
        return "members"

    def target(self, state: nn.Module, step: Forward, term: BaseTerm) -> Target:
        if not self.speaks(state, step) or not isinstance(state, FrozenCopy):
            return _silent(step.student(term.view, term.head), "members")
        return Target(step.teacher_output(state.module, self.view or term.view, "peers").flatten(1), "members")

    def update(self, state: nn.Module, steps: Sequence[Forward], term: BaseTerm) -> None:
        """Nothing is kept."""


def _silent(student: Tensor, space: str) -> Target:
    return Target(torch.zeros_like(student), space, student.new_zeros(student.shape[:-1], dtype=torch.bool))


def wanted(method: Method) -> GenerationEnsemble | None:
    """The teacher that asks for all earlier generations, if a method has one."""
    teachers = (term.teacher for term in method.terms.values())
    return next((teacher for teacher in teachers if isinstance(teacher, GenerationEnsemble)), None)


class _Taken(FrozenCopy):
    """A snapshot, and whether one was taken yet."""

    taken: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))


@dataclass(frozen=True)
class Snapshot(Teacher[_Taken]):
    """The student as it was at the end of the last cycle, frozen, at a temperature (snapshot distillation, 2019).

    A generation is split into ``cycles`` of equal length; under the cosine schedule each starts at the full learning
    rate. In the first cycle there is no snapshot and no target. The target is softened, the student is not.
    """

    cycles: int = 4
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.cycles < 2:
            raise RecipeError(f"a snapshot teaches the next cycle: at least two are needed, not {self.cycles}")

    def start(self, model: nn.Module, given: BindArgs) -> _Taken:
        return _Taken(copy.deepcopy(model).float())

    def key(self, term: BaseTerm) -> Hashable:
        return Snapshot, self.cycles

    def waits(self, clock: Clock) -> bool:
        """Is there no snapshot yet?"""
        return clock.step < clock.length // self.cycles

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: _Taken, step: Forward, term: BaseTerm) -> Target:
        student = step.student(term.view, term.head)
        if not bool(state.taken):
            return Target(torch.zeros_like(student), "probabilities", torch.zeros_like(student[:, 0], dtype=torch.bool))
        said = step.teacher_output(state.module, term.view, term.head)
        return Target(F.softmax(said / self.temperature, dim=-1), "probabilities")

    @torch.no_grad()
    def update(self, state: _Taken, steps: Sequence[Forward], term: BaseTerm) -> None:
        clock = steps[0].clock
        if clock.step + 1 in {k * clock.length // self.cycles for k in range(1, self.cycles)}:
            student = steps[0].owner
            theirs = (*student.parameters(), *student.buffers())
            for mine, now in zip((*state.module.parameters(), *state.module.buffers()), theirs, strict=True):
                mine.copy_(now)
            state.taken.fill_(True)


@dataclass(frozen=True)
class Extrapolated(Generation):
    """xi x last generation + (1 - xi) x label, as far as that is a distribution: what is below 0 is cut off.

    For xi in [0, 1] nothing is. Above 1 the label is moved away from, and for rows whose teacher gives it less than
    1 - 1 / xi it is left altogether. In generation 0 it is the label.
    """

    xi: float = 1.5

    def key(self, term: BaseTerm) -> Hashable:
        return self, term.head, self.view or term.view

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Forward, term: BaseTerm) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        label, known = first_word(step, term, classes)
        past = Generation(self.view).target(state, step, term)
        if past.valid is not None:  # no generation before this one
            return Target(label, "probabilities", known)
        mixed = (self.xi * past.probabilities(classes) + (1.0 - self.xi) * label).clamp(min=0.0)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        return Target(torch.where(known[:, None], mixed, past.probabilities(classes)), "probabilities")

    def update(self, state: nn.Module, steps: Sequence[Forward], term: BaseTerm) -> None:
        Generation(self.view).update(state, steps, term)  # what is kept by sample id is what the generation said
