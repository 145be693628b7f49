"""Losses on features: distances of two views of a row, and of the means of two batches."""

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
    """-sum_k t_k log p_k with p = softmax(s / T), t = softmax(target / S): cross-entropy at two temperatures.

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
        t = F.softmax(target.value / self.sharp, dim=-1)
        return -(t * F.log_softmax(student / self.temperature, dim=-1)).sum(-1)


@dataclass(frozen=True)
class MeanDistance(Loss):
    """||mean_i s_i - mean_i t_i||^2 for every row: the discrepancy of two batches whose kernel is the inner product.

    Means are over the rows that have a target. With several micro-batches they are within one.

    Source: Gretton et al., A Kernel Two-Sample Test, JMLR 2012, with a linear kernel.

    >>> import torch
    >>> same = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> MeanDistance()(same, Target(same.flip(0), "features")).tolist()
    [0.0, 0.0]
    """

    mixes: ClassVar[bool] = True  # it looks at other rows of the batch
    student_spaces: ClassVar[frozenset[str]] = frozenset({"features"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"features"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        difference = student - target.value
        if target.valid is None:
            squares = difference.mean(0).square().sum(-1)
        else:
            valid = target.valid.to(student.dtype)
            counts = valid.sum(0).clamp(min=1.0)
            squares = ((difference * valid.unsqueeze(-1)).sum(0) / counts.unsqueeze(-1)).square().sum(-1)
        return squares.expand(student.shape[:-1])
