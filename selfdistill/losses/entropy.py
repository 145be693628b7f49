"""How undecided the student is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from ..targets import Target


@dataclass(frozen=True)
class Entropy:
    """-sum_c p_c log p_c of the student alone, whatever the target says: minimising it makes the student decide.

    Source: Grandvalet and Bengio, Semi-supervised Learning by Entropy Minimization, NeurIPS 2004.

    >>> import torch
    >>> round(Entropy()(torch.zeros(1, 4), Target(torch.zeros(1, 4), "logits")).item(), 4)
    1.3863
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    flat: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(student, dim=-1)
        return -(log_p.exp() * log_p).sum(-1)
