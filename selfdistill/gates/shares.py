"""A gate that knows the data: how much of it has labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..core import Gate, Given, Pool, Step, Target, Term
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
