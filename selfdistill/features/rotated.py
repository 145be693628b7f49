"""Four rotations of each row, told apart together with its class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import SpaceError
from ..heads import output_of
from .reading import Extended, Tap, last_linear, pooled

TURNS = 4  # by 0, 90, 180 and 270 degrees


class Rotated(Extended):
    """A model that in training sees each image in four rotations, in one forward, and learns a joint classifier.

    Heads: ``logits`` of the image as it is; ``joint`` (rows, 4, 4 classes) of each rotation, whose class 4 c + m is
    class c turned m times, linear on what the last linear layer sits on; ``aggregated`` (rows, classes), the mean over
    m of the joint logits 4 c + m of the image turned m times. In eval mode only the image as it is is looked at.

    Raises:
        SpaceError: rows are no square images.
    """

    copies = TURNS

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.kept = model, dict[str, Tensor]()
        last = last_linear(model)
        last.register_forward_hook(Tap(self.kept, "feature", given=True))
        self.joint = nn.Linear(last.in_features, TURNS * last.out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not self.training:
            said = self._said(x)
            self.kept.clear()
            return {"logits": said}
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise SpaceError(f"rows of shape {tuple(x.shape[1:])} cannot be rotated; square images are wanted")
        turned = torch.stack([torch.rot90(x, m, (2, 3)) for m in range(TURNS)], dim=1)
        logits = self._said(turned.flatten(0, 1)).unflatten(0, (-1, TURNS))
        joint = self.joint(pooled(self.kept.pop("feature"), "feature")).unflatten(0, (-1, TURNS))
        by_turn = joint.unflatten(-1, (-1, TURNS)).diagonal(dim1=1, dim2=3)  # (rows, classes, turns)
        return {"logits": logits[:, 0], "joint": joint, "aggregated": by_turn.mean(-1)}

    def _said(self, x: Tensor) -> Tensor:
        said: Any = self.model(x)
        return output_of(said if isinstance(said, Mapping) else {"": said}, "logits")


@dataclass(frozen=True)
class Rotations:
    """Prepares a model factory for four rotations of each row: see `Rotated`. The product is the bare model."""

    maps: ClassVar[bool] = True
    copies: ClassVar[int] = TURNS

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Rotated(build())

    def single(self, build: Any) -> Any:
        """What builds the product: the factory of the bare model."""
        return build
