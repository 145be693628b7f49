"""Peers as they were a while ago."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..core import Given, Step, Target, Teacher, Term
from ..errors import RecipeError, SpaceError
from .weights import Held


@dataclass(frozen=True)
class Stale(Teacher):
    """For each peer the mean probability of the others, by copies of their weights that are renewed now and then.

    Every so many steps, that is. The copies are in eval mode; the first ones are of the initial weights
    (codistillation, Anil et al. 2018).

    Raises:
        RecipeError: ``every`` counts no steps.
    """

    every: int = 50

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RecipeError(f"peers exchange their weights every so many steps, from 1 on, not {self.every}")

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Held(copy.deepcopy(model).float())

    def key(self, term: Term) -> Hashable:
        return self

    def space(self, head: str) -> str:
        if head != "peers":
            raise SpaceError(f"Stale teaches the head 'peers', not {head!r}")
        return "probabilities"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        p = F.softmax(step.look(cast(Held, state).module, term.view, term.head), dim=-1)  # (rows, K, classes)
        if p.shape[1] < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {p.shape[1]}")
        return Target((p.sum(1, keepdim=True) - p) / (p.shape[1] - 1), "probabilities")

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        if (steps[0].clock.step + 1) % self.every:
            return
        now = cast(nn.Module, steps[0].owner).state_dict()
        for name, mine in cast(Held, state).module.state_dict().items():
            mine.copy_(now[name])
