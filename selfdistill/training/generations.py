"""generations"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..teachers.self_training import InheritedPseudoLabels, PseudoLabelStore

if TYPE_CHECKING:
    from ..core.objective import Method, Objective


def collect(objective: Objective) -> dict[str, Tensor]:
    """What the states of an objective hand on to the next generation, by state and tensor."""
    bundles = {name: state for name, state in objective.states.items() if isinstance(state, PseudoLabelStore)}
    return {f"{name}.{key}": value for name, bundle in bundles.items() for key, value in bundle.carry().items()}


def hand_on(carried: Mapping[str, Tensor], objective: Objective) -> None:
    """Give the states of a fresh objective what an earlier one has handed on."""
    for name, state in objective.states.items():
        if isinstance(state, PseudoLabelStore) and f"{name}.ids" in carried:
            state.write(carried[f"{name}.ids"], carried[f"{name}.labels"])


def foreword(method: Method, unlabelled: int) -> str | None:
    """A line if the generations of a method need more fresh rows than there are; None if there are enough.

    >>> from selfdistill.methods.repeated import self_training
    >>> foreword(self_training(generations=4, fresh=50), 120)
    'the pool of 120 unlabelled rows is exhausted in generation 3 of 3: rows come again, with the labels they have'
    >>> foreword(self_training(generations=3, fresh=50), 120)
    """
    last = method.generations - 1
    for term in method.terms.values():
        teacher = term.teacher
        if isinstance(teacher, InheritedPseudoLabels) and teacher.fresh * last > unlabelled:
            again = "with the labels they have" if teacher.keep == "accumulate" else "labelled anew"
            first = unlabelled // teacher.fresh + 1
            exhausted = f"the pool of {unlabelled} unlabelled rows is exhausted in generation {first} of {last}"
            return f"{exhausted}: rows come again, {again}"
    return None


@dataclass
class Trained:
    """One generation: the digest of its initial weights, its final weights, and its audit scores."""

    start: str
    weights: dict[str, Tensor] = field(repr=False)
    best: dict[str, Tensor] = field(repr=False)
    best_epoch: int = 0
    audit: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list, repr=False)  # of the final weights, for each audit row
    decision: dict[str, Any] = field(default_factory=dict)
    carried: dict[str, Tensor] = field(default_factory=dict, repr=False)  # what it hands on if it is accepted
    drift: dict[str, Any] = field(default_factory=dict)  # see `collapse.Drift`
