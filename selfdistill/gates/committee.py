"""Gates on several predictions, of peers or of dropout passes: their agreement and their spread."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.parts import BaseTerm, Gate
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError


@dataclass(frozen=True)
class Unanimous(Gate):
    """1 where all peers give the target's class as their best one; for a peer itself, all the others.

    ``head`` has the peers (rows, K, classes), as they answer on ``view`` (the term's own if None).

    Source: Zhou and Li, Tri-Training, IEEE TKDE 2005 (two teach the third where they agree).
    """

    head: str = "peers"
    view: str | None = None
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # it asks the peers

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        votes, best = (
            step.student(self.view or term.view, self.head).argmax(-1),
            target.best(),
        )  # (rows, K), (rows, ...)
        same = votes.reshape(*votes.shape, *(1,) * (best.dim() - 1)) == best.unsqueeze(1)  # (rows, K, ...)
        if term.head == self.head:
            same.diagonal(dim1=1, dim2=2).fill_(True)  # a peer is not asked about what it learns
        return same.all(1).to(student.dtype)


@dataclass(frozen=True)
class LowVariance(Gate):
    """1 where the probability of the target's class deviates by at most ``spread`` between several voices, else 0.

    The voices are ``passes`` forward passes with dropout on or, where ``head`` is given, its peers; the deviation is
    the unbiased one. They answer on ``view`` (the term's own if None). A model without dropout has one voice, and all
    its targets are steady.

    Source: Rizve et al., UPS, ICLR 2021 (10 passes; 0.05).

    Raises:
        RecipeError: fewer than two passes, or a spread below 0.
    """

    spread: float = 0.05
    passes: int = 10
    head: str | None = None
    view: str | None = None
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # it asks how steady a target is, not how sure

    def __post_init__(self) -> None:
        if self.passes < 2 or not self.spread >= 0:
            raise RecipeError(f"at least 2 passes deviate by 0 or more, not {self.passes} and {self.spread}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        view = self.view or term.view
        said = step.student(view, self.head) if self.head else step.dropout_outputs(view, term.head, self.passes)
        p, best = F.softmax(said.detach(), dim=-1), target.best().clamp(min=0)  # (rows, voices, ..., classes)
        if p.dim() == 3 and best.dim() == 2:  # voices of a row judge each of its exits or peers
            p = p.unsqueeze(2).expand(-1, -1, best.shape[1], -1)
        index = best.unsqueeze(1).unsqueeze(-1).expand(*p.shape[:-1], 1)
        return (p.gather(-1, index).squeeze(-1).std(1) <= self.spread).to(student.dtype)
