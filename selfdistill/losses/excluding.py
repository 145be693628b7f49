"""Learning from what a row is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..targets import Target


@dataclass(frozen=True)
class Excluding:
    """-sum_c m_c log(1 - p_c) / sum_c m_c for a target m of ones and zeros: which classes a row does not have.

    log(1 - p) is taken of 1 - exp(log p) with log p at most -1e-7, so that a student that is quite sure stays finite.

    Source: Rizve et al., UPS, ICLR 2021, negative cross-entropy.

    >>> m = Target(torch.tensor([[0.0, 1.0, 1.0, 1.0]]), "excluded")
    >>> round(Excluding()(torch.zeros(1, 4), m).item(), 4)  # -log(3/4)
    0.2877
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"excluded"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        left = torch.log(-torch.expm1(F.log_softmax(student, dim=-1).clamp(max=-1e-7)))  # log(1 - p)
        return -(target.value * left).sum(-1) / target.value.sum(-1).clamp(min=1.0)
