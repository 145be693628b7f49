"""A wide network for 28 x 28 images that learns wrong labels by heart within a few thousand cheap steps."""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..errors import RecipeError


class Wide(nn.Module):
    """Two strided convolutions without normalisation and a wide hidden layer: many weights, few operations."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, hidden: int) -> None:
        super().__init__()
        sides = [math.ceil(side / 4) for side in shape[1:]]
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], width, 5, 2, 2), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(2 * width * math.prod(sides), hidden), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(x))
        return logits


def wide(shape: tuple[int, ...], outputs: int, *, width: int = 64, hidden: int = 512) -> nn.Module:
    """The network for images (channels, height, width).

    Raises:
        RecipeError: the rows are no images.

    >>> import torch
    >>> wide((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if len(shape) != 3:
        raise RecipeError(f"wide reads images (channels, height, width), not rows of shape {tuple(shape)}; use mlp")
    return Wide(shape, outputs, width, hidden)
