"""Teachers without a state: labels, and what the student says in the same step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..core import Step, Target, Teacher, Term
from ..errors import SpaceError
from ..heads import space_of
from .memories import remembered


@dataclass(frozen=True)
class Labels(Teacher):
    """The labels: classes (rows,) or values (rows, outputs); a row with -1 or nan has none and counts for nothing."""

    def space(self, head: str) -> str:
        spaces = {"logits": "classes", "values": "values", "gaussian": "values"}
        if space_of(head) not in spaces:
            raise SpaceError(f"labels say nothing about the head {head!r}, which speaks of {space_of(head)}")
        return spaces[space_of(head)]

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y = step.labels(term.view)
        if self.space(term.head) == "classes":
            return Target(y, "classes", y >= 0)
        y = y if y.dim() > 1 else y.unsqueeze(-1)
        return Target(y.nan_to_num(), "values", ~y.isnan().any(-1))


@dataclass(frozen=True)
class Itself(Teacher):
    """The student's own output in the same step, detached: on another view, another head, or both."""

    view: str | None = None
    head: str | None = None

    def own_view(self, term: Term) -> str | None:
        return self.view

    def space(self, head: str) -> str:
        return space_of(self.head or head)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        value = step.student(self.view or term.view, self.head or term.head).detach()
        return Target(value, self.space(term.head))


@dataclass(frozen=True)
class Peers(Teacher):
    """For each peer the mean probability, or value, of the *others*, from the same forward: never taught by itself."""

    def space(self, head: str) -> str:
        if head not in ("peers", "peer_values"):
            raise SpaceError(f"Peers teach the heads 'peers' and 'peer_values', not {head!r}")
        return "probabilities" if head == "peers" else "values"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        space = self.space(term.head)
        said = remembered(step.student(term.view, term.head).detach(), space)  # (rows, K, components)
        peers = said.shape[1]
        if peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {peers}")
        return Target((said.sum(1, keepdim=True) - said) / (peers - 1), space)
