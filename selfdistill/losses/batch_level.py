"""Losses on a batch as a whole: every row has the same value, and each micro-batch is a batch of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core.parts import Loss
from ..core.targets import Target


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
        apart = student - target.value
        if target.valid is None:
            squares = apart.mean(0).square().sum(-1)
        else:
            there = target.valid.to(student.dtype)
            counts = there.sum(0).clamp(min=1.0)
            squares = ((apart * there.unsqueeze(-1)).sum(0) / counts.unsqueeze(-1)).square().sum(-1)
        return squares.expand(student.shape[:-1])
