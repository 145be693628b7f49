"""Losses between two views of an unlabelled row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..core.parts import Loss
from ..core.targets import Target
from ..errors import RecipeError


@dataclass(frozen=True)
class CosineDistance(Loss):
    """1 - <s, t> / (||s|| ||t||): 0 for equal directions, 2 for opposite ones; half the squared distance on the sphere.

    >>> import torch
    >>> CosineDistance()(torch.tensor([[3.0, 0.0]]), Target(torch.tensor([[0.0, 2.0]]), "features")).item()
    1.0
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"features"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"features"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        return 1.0 - (F.normalize(student, dim=-1) * F.normalize(target.value, dim=-1)).sum(-1)


@dataclass(frozen=True)
class PrototypeCrossEntropy(Loss):
    """-sum_k t_k log p_k with p = softmax(s / T) and t = softmax(target / S): student and teacher at their own warmth.

    ``temperature`` is T, ``sharp`` is S; both sides are scores of prototypes, (rows, ..., prototypes).

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, equation 2.

    Raises:
        RecipeError: a temperature that is not above 0.

    >>> import torch
    >>> round(PrototypeCrossEntropy()(torch.zeros(1, 2), Target(torch.ones(1, 2), "features")).item(), 4)
    0.6931
    """

    temperature: float = 0.1
    sharp: float = 0.04
    student_spaces: ClassVar[frozenset[str]] = frozenset({"features"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"features"})

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and self.sharp > 0):
            raise RecipeError(f"temperatures are above 0, not {self.temperature} and {self.sharp}")

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        told = F.softmax(target.value / self.sharp, dim=-1)
        return -(told * F.log_softmax(student / self.temperature, dim=-1)).sum(-1)
