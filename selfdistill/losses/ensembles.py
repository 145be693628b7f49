"""Losses for ensembles: reverse KL, and the likelihood of an ensemble under a Dirichlet distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.parts import Loss
from ..core.targets import Target, tempered
from ..errors import SpaceError


@dataclass(frozen=True)
class KLFromStudent(Loss):
    """T^2 sum_c p_c (log p_c - log t_c): reverse KL, from the student to the target, at one temperature.

    A hard target would be infinitely far: no t_c counts as less than the smallest normal number of its dtype.

    >>> KLFromStudent(temperature=2.0)(torch.ones(1, 3), Target(torch.zeros(1, 3), "logits")).item()
    0.0
    """

    temperature: float = 1.0
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"logits", "probabilities"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(tempered(student, self.temperature), dim=-1)
        log_t = target.log_probabilities(student.shape[-1], self.temperature)
        log_t = log_t.clamp(min=math.log(torch.finfo(log_t.dtype).tiny))
        return self.temperature**2 * (log_p.exp() * (log_p - log_t)).sum(-1)


@dataclass(frozen=True)
class DirichletNLL(Loss):
    """The negative log likelihood of an ensemble's members under a Dirichlet distribution, concentrations exp(z / T).

    Equation::

        sum_c lgamma(a_c) - lgamma(sum_c a_c) - sum_c (a_c - 1) mean_m log p_mc,  a = exp(z / T)
        p_m = (1 - s) softmax(z_m / T) + s / C

    The target has the logits of the members side by side. The loss is that of a density, so it may be negative.

    Source: Malinin, Mlodozeniec and Gales, Ensemble Distribution Distillation, ICLR 2020; the smoothing s keeps members
    that are sure from an infinite loss.

    >>> round(DirichletNLL()(torch.zeros(1, 2), Target(torch.zeros(1, 6), "members")).item(), 4)
    0.0
    """

    temperature: float = 1.0
    smoothing: float = 1e-4
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"members"})
    signed: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        classes = student.shape[-1]
        if target.value.shape[-1] % classes:
            raise SpaceError(f"{target.value.shape[-1]} logits are no whole number of members with {classes} classes")
        p = F.softmax(tempered(target.value.unflatten(-1, (-1, classes)), self.temperature), dim=-1)
        log_mean = ((1.0 - self.smoothing) * p + self.smoothing / classes).log().mean(-2)
        a = torch.exp(tempered(student, self.temperature))
        return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1)) - ((a - 1.0) * log_mean).sum(-1)
