"""Losses of the student alone, against collapse and against doubt: they take no notice of their target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..targets import DISTRIBUTIONS, Target


@dataclass(frozen=True)
class ClassPrior:
    """KL(uniform || mean of p over the rows of the batch), the same number for every row: no class may die out.

    With several micro-batches the mean is that of one of them.

    Source: Tanaka et al., Joint Optimization Framework for Learning with Noisy Labels, CVPR 2018.

    >>> ClassPrior()(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), Target(torch.zeros(2, 2), "logits")).abs().max() < 1e-6
    tensor(True)
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(student, dim=-1)
        log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(student))  # (..., classes): finite where p underflows
        prior = -log_mean.mean(-1) - math.log(student.shape[-1])
        return prior.expand(student.shape[:-1])
