"""Losses that treat the class of the label and the other classes apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.parts import Loss
from ..core.targets import Target


@dataclass(frozen=True)
class AmongOthers(Loss):
    """KL(t || p^) over the classes to which the target gives anything, p^ = softmax over those alone.

    A target that leaves the label's class out compares the others, whatever the student gives to the label.

    >>> target = Target(torch.tensor([[0.0, 0.5, 0.5]]), "probabilities")
    >>> AmongOthers()(torch.tensor([[9.0, 1.0, 1.0]]), target).item()
    0.0
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"probabilities"})
    flat: ClassVar[bool] = True  # 0 where the two differ about the label's class alone

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        t = target.value
        out = t <= 0
        log_p = F.log_softmax(student.masked_fill(out, torch.finfo(student.dtype).min), dim=-1)
        return (t * (t.clamp(min=1e-30).log() - log_p)).masked_fill(out, 0.0).sum(-1)


@dataclass(frozen=True)
class SelfWeighted(Loss):
    """-(s^2 + 1 - mean s^2) log s with s = p_y: a row counts more where the student is surer of its label.

    The weight carries no gradient; the mean is over the rows of the micro-batch that have a label (USKD, Yang et al.
    2023).

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> [round(x, 4) for x in SelfWeighted()(logits, Target(torch.tensor([0, 1]), "classes")).tolist()]
    [0.6931, 0.6931]
    """

    mixes: ClassVar[bool] = True  # it looks at other rows of the batch
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"classes"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        label = target.value.clamp(min=0).unsqueeze(-1)
        log_s = F.log_softmax(student, dim=-1).gather(-1, label).squeeze(-1)
        squares = log_s.detach().exp().square()
        there = torch.ones_like(squares) if target.valid is None else target.valid.to(squares.dtype)
        mean = (squares * there).sum(0) / there.sum(0).clamp(min=1.0)
        return -(squares + 1.0 - mean) * log_s
