"""A gate that knows the data: how much of it has labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Gate, Given, Pool, Step, Target, Term
from ..errors import RecipeError
from ..heads import element_shape
from ..memory import Buffers


class _Share(Buffers):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()))


@dataclass(frozen=True)
class LabelledShare(Gate):
    """Trust M / N in every target, M of the N rows having labels: with few labels, what needs none weighs less too.

    In a loop of your own, which prepares nothing, it is 1.

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017.
    """

    prefers: ClassVar[str | None] = None

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _Share()

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        every: Any = len(pool.labelled) + len(pool.unlabelled)
        state.share = torch.full_like(state.get_buffer("share"), len(pool.labelled) / max(1, every))

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        return state.get_buffer("share").to(student).expand(element_shape(student))


@dataclass(frozen=True)
class Shard(Gate):
    """1 where a row belongs to the peer, else 0: each of K peers has a K-th of the samples to itself.

    A sample's peer is a hash of its id, (2654435761 id mod 2^32) div 2^16 mod K. An output without peers has all rows.
    """

    prefers: ClassVar[str | None] = None

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        if student.dim() < 3:
            return student.new_ones(element_shape(student))
        peers = student.shape[1]
        owner = step.ids(term.view) * 2654435761 % 2**32 // 2**16 % peers
        mine = owner[:, None] == torch.arange(peers, device=owner.device)
        return mine.to(student.dtype).expand(element_shape(student))


@dataclass(frozen=True)
class Bagged(Gate):
    """1 where a peer has drawn a row, else 0: each sees a ``share`` of the samples, by chance and always the same ones.

    A bootstrap of n rows has 1 - 1/e of them. All mod 2^32: h = 2654435761 id + 668265263 (k + 1), then twice
    h = c (h xor h div 2^15) with c = 2246822519, then 3266489917; a sample is peer k's if h is below ``share`` x 2^32.
    An output without peers has all rows.

    Raises:
        RecipeError: a share outside (0, 1].
    """

    share: float = 0.632
    prefers: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise RecipeError(f"share is that of the samples a peer sees, above 0 and at most 1, not {self.share}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        if student.dim() < 3:
            return student.new_ones(element_shape(student))
        ids = step.ids(term.view)
        hashed = (
            ids[:, None] * 2654435761 + 668265263 * torch.arange(1, student.shape[1] + 1, device=ids.device)
        ) % 2**32
        for factor in (2246822519, 3266489917):
            hashed = (hashed ^ hashed >> 15) * factor % 2**32  # a product beyond 2^63 wraps, which changes no remainder
        return (hashed < self.share * 2**32).to(student.dtype).expand(element_shape(student))
