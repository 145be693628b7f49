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
    head of that name (rows, classes) is learnt: linear on the features of all K, first to their width. K is then the
    number of linear layers as large as the last one.

    Raises:
        SpaceError: the model has no exits, or they do not end in linear layers of one size.
    """

    def __init__(self, model: nn.Module, fused: bool = False) -> None:
        super().__init__()
        self.model, self.number = model, 0
        if fused:
            classes, width = last_linear(model).weight.shape
            layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
            self.number = sum(layer.weight.shape == (classes, width) for layer in layers)
            self.fused = nn.Sequential(nn.Linear(self.number * width, width, bias=False), nn.Linear(width, classes))

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
                    f"the model has {count} classifiers, its own included, and {self.number} linear layers as large as "
                    "its last one; let each exit end in such a layer, on features of one width"
                )
            named["fused"] = self.fused(named["levels"].flatten(1))
        return named


@dataclass(frozen=True)
class Levels(Exits):
    """Prepares a model factory for K classifiers side by side: see `Several`. The product is the model with exits."""

    fused: bool = False
    maps = property(lambda self: self.fused)  # for trials: a model whose exits end in linear layers of their own

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        with_exits: Callable[..., Any] = super().__call__(build)
        return lambda: Several(with_exits(), self.fused)
