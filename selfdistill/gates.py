"""Gates: how far is this target trusted? Each returns trust in [0, 1] for every element, never a reduced number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .core import Always, Gate, Step, Target, Term
from .targets import DISTRIBUTIONS

__all__ = ["Always", "Confidence", "Confident", "Correct"]


def _top(student: Tensor, target: Target) -> Tensor:
    """Largest probability of the target, (rows, ...)."""
    return target.probabilities(student.shape[-1]).amax(-1)


@dataclass(frozen=True)
class Confident(Gate):
    """1 where the target's largest probability reaches the threshold, else 0 (FixMatch, Sohn et al. 2020)."""

    threshold: float = 0.95
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        return (_top(student, target) >= self.threshold).to(student.dtype)


@dataclass(frozen=True)
class Confidence(Gate):
    """Trust equal to the target's largest probability (self-adaptive training, Huang et al. 2020)."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        return _top(student, target).to(student.dtype)


@dataclass(frozen=True)
class Correct(Gate):
    """1 where the target's best class is the label; rows without a label are kept."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # it asks the label

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        labels = Target(step.labels(term.view), "classes").spread(student).value
        return torch.where(labels < 0, True, target.best() == labels).to(student.dtype)
