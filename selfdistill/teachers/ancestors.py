"""All earlier generations as one teacher: their mean, or each of them by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from ..core import Given, Step, Target, Term
from ..errors import SpaceError
from ..heads import Peers, space_of
from .weights import Generation, Held

if TYPE_CHECKING:
    from ..core import Method


@dataclass(frozen=True)
class Ancestors(Generation):
    """The mean probability, or value, of all accepted earlier generations, frozen and in eval mode.

    With ``at_last`` they are the members of an ensemble: the last generation alone is taught, by all of them, whatever
    the audit says of each. In a loop of your own, `bind` a `heads.Peers` of them as ``previous``.
    """

    at_last: bool = False

    def module(self, model: nn.Module, given: Given) -> nn.Module | None:
        previous = super().module(model, given)
        return previous if previous is None or isinstance(previous, Peers) else Peers([previous])

    def space(self, head: str) -> str:
        if head not in ("logits", "values"):
            raise SpaceError(f"Ancestors gives the mean of logits or values; the head {head!r} is another thing")
        return space_of(head)

    def speaks(self, state: nn.Module, step: Step) -> bool:
        """Is there anything to say in this generation?"""
        last = step.clock.generation == step.clock.generations - 1
        return isinstance(state, Held) and (last or not self.at_last)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        if not self.speaks(state, step):
            return _silent(step.student(term.view, term.head), space_of(term.head))
        group = cast(Peers, cast(Held, state).module)
        group.values = term.head == "values"  # it says what it is asked for
        found = super().target(state, step, replace(term, head="ensemble"))
        return Target(found.value, space_of(term.head), found.valid)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        if self.speaks(state, steps[0]):
            super().update(state, steps, term)


@dataclass(frozen=True)
class Members(Ancestors):
    """What each earlier generation says, side by side: their logits (rows, M x classes), member by member."""

    def space(self, head: str) -> str:
        if head != "logits":
            raise SpaceError(f"Members gives the logits of several models; the head {head!r} is another thing")
        return "members"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        if not self.speaks(state, step) or not isinstance(state, Held):
            return _silent(step.student(term.view, term.head), "members")
        return Target(step.look(state.module, self.view or term.view, "peers").flatten(1), "members")

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        """Nothing is kept."""


def _silent(student: Tensor, space: str) -> Target:
    return Target(torch.zeros_like(student), space, student.new_zeros(student.shape[:-1], dtype=torch.bool))


def wanted(method: Method) -> Ancestors | None:
    """The teacher that asks for all earlier generations, if a method has one."""
    teachers = (getattr(term, "teacher", None) for term in method.terms.values())
    return next((teacher for teacher in teachers if isinstance(teacher, Ancestors)), None)
