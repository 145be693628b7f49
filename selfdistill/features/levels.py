"""The classifiers of a model with early exits, side by side: each with each, and all of their features together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SpaceError
from ..heads import Exits
from .reading import Extended, last_linear


class Several(Extended):
    """A model with exits as K classifiers, shallow to deep, the last of them the model's own.

    Heads: ``classifiers`` (rows, K, classes), ``levels`` (rows, K, width), and for every ordered pair of classifiers
    ``pupils`` and ``tutors`` (rows, K (K - 1), classes), so that in each place another one teaches. With ``fused`` the
    head of that name (rows, classes) is learnt: linear on the features of all K, first to their width.

    Raises:
        SpaceError: the model has no exits, or another number of them than ``fused`` was made for.
    """

    def __init__(self, model: nn.Module, fused: int = 0) -> None:
        super().__init__()
        self.model, self.number = model, fused
        if fused:
            classes, width = last_linear(model).get_parameter("weight").shape
            self.fused = nn.Sequential(nn.Linear(fused * width, width, bias=False), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = self.model(x)
        if not isinstance(said, dict) or "exits" not in said:
            raise SpaceError("the model has no early exits; give one that has (the default models do)")
        named: dict[str, Tensor] = {**said}
        each = torch.cat([said["exits"], said["logits"].unsqueeze(1)], dim=1)
        count = each.shape[1]
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        named |= {
            "classifiers": each,
            "pupils": each[:, [i for i, _ in pairs]],
            "tutors": each[:, [j for _, j in pairs]],
        }
        if "features" in said and said["features"].shape[-1] == said["feature"].shape[-1]:
            named["levels"] = torch.cat([said["features"], said["feature"].unsqueeze(1)], dim=1)
        if self.number:
            if "levels" not in named or count != self.number:
                raise SpaceError(
                    f"the model has {count} classifiers, its own included, and the method was made for {self.number} "
                    f"on features of one width; give levels={count}"
                )
            named["fused"] = self.fused(named["levels"].flatten(1))
        return named


@dataclass(frozen=True)
class Levels(Exits):
    """Prepares a model factory for K classifiers side by side: see `Several`. The product is the model with exits."""

    fused: int = 0

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        with_exits: Callable[..., Any] = super().__call__(build)
        return lambda: Several(with_exits(), self.fused)
