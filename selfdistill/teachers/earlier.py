"""Teachers from earlier in the same training, and from beyond the last generation."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Clock, Given, Step, Target, Teacher, Term
from ..errors import RecipeError
from .memories import first_word, one_per_row
from .weights import Generation, Held


class _Taken(Held):
    """A snapshot, and whether one was taken yet."""

    taken: Tensor

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.register_buffer("taken", torch.zeros((), dtype=torch.bool))


@dataclass(frozen=True)
class Snapshot(Teacher):
    """The student as it was at the end of the last cycle, frozen, at a temperature (snapshot distillation, 2019).

    A generation is split into ``cycles`` of equal length; under the cosine schedule each starts at the full learning
    rate. In the first cycle there is no snapshot and no target. The target is softened, the student is not.
    """

    cycles: int = 4
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.cycles < 2:
            raise RecipeError(f"a snapshot teaches the next cycle: at least two are needed, not {self.cycles}")

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _Taken(copy.deepcopy(model).float())

    def key(self, term: Term) -> Hashable:
        return Snapshot, self.cycles

    def waits(self, clock: Clock) -> bool:
        """Is there no snapshot yet?"""
        return clock.step < clock.length // self.cycles

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        held, student = cast(_Taken, state), step.student(term.view, term.head)
        if not bool(held.taken):
            return Target(torch.zeros_like(student), "probabilities", torch.zeros_like(student[:, 0], dtype=torch.bool))
        said = step.look(held.module, term.view, term.head)
        return Target(F.softmax(said / self.temperature, dim=-1), "probabilities")

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        held, clock = cast(_Taken, state), steps[0].clock
        if clock.step + 1 in {k * clock.length // self.cycles for k in range(1, self.cycles)}:
            student = cast(nn.Module, steps[0].owner)
            theirs = (*student.parameters(), *student.buffers())
            for mine, now in zip((*held.module.parameters(), *held.module.buffers()), theirs, strict=True):
                mine.copy_(now)
            held.taken.fill_(True)


@dataclass(frozen=True)
class Beyond(Generation):
    """xi x last generation + (1 - xi) x label, as far as that is a distribution: what is below 0 is cut off.

    For xi in [0, 1] nothing is. Above 1 the label is moved away from, and for rows whose teacher gives it less than
    1 - 1 / xi it is left altogether. In generation 0 it is the label.
    """

    xi: float = 1.5

    def key(self, term: Term) -> Hashable:
        return self, term.head, self.view or term.view

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        label, known = first_word(step, term, classes)
        past = Generation(self.view).target(state, step, term)
        if past.valid is not None:  # no generation before this one
            return Target(label, "probabilities", known)
        mixed = (self.xi * past.probabilities(classes) + (1.0 - self.xi) * label).clamp(min=0.0)
        mixed = mixed / mixed.sum(-1, keepdim=True)
        return Target(torch.where(known[:, None], mixed, past.probabilities(classes)), "probabilities")

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        Generation(self.view).update(state, steps, term)  # what is kept by sample id is what the generation said
