"""The other rows of a batch as teachers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from ..core import Step, Target, Teacher, Term
from ..errors import RecipeError
from .memories import one_per_row


@dataclass(frozen=True)
class Neighbours(Teacher):
    """What the batch says of a row, passed on along the likeness of features (BAKE, Ge et al. 2021).

    Q = (1 - omega) (I - omega A)^-1 softmax(z / T): the limit of Q <- omega A Q + (1 - omega) softmax(z / T), with
    A_ij the softmax over j != i of the cosine of the features of i and j. The head ``feature`` has the features. The
    batch is the micro-batch of a process; a single row teaches itself.
    """

    omega: float = 0.5
    temperature: float = 4.0
    feature: str = "feature"
    mixes: ClassVar[bool] = True  # a row's target depends on the other rows

    def __post_init__(self) -> None:
        if not 0.0 <= self.omega < 1.0:
            raise RecipeError(f"omega is the share of the neighbours, at least 0 and below 1, not {self.omega}")

    def space(self, head: str) -> str:
        one_per_row(self, head, values=False)
        return "logits"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        said = step.student(term.view, term.head).detach()
        if len(said) < 2:
            return Target(said, "logits")
        f = F.normalize(step.student(term.view, self.feature).detach(), dim=-1)
        myself = torch.eye(len(f), dtype=torch.bool, device=f.device)
        affinity = (f @ f.T).masked_fill(myself, -torch.inf).softmax(-1)
        own = F.softmax(said / self.temperature, dim=-1)
        passed = torch.linalg.solve(myself.to(f.dtype) - self.omega * affinity, (1.0 - self.omega) * own)
        # as logits, so that a loss at the same temperature compares it as it is
        return Target(self.temperature * passed.clamp(min=1e-30).log(), "logits")
