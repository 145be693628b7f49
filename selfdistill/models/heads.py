"""Modules that give a network further named outputs: early exits, a variance, or logits of ranks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core.outputs import ModelWrapper, output_of
from ..errors import SpaceError


@dataclass(frozen=True)
class Exits(ModelWrapper):
    """Prepares a model factory for early exits: it passes ``exits=True`` where the factory has that argument."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        accepted = (
            build.accepts("exits") if hasattr(build, "accepts") else "exits" in inspect.signature(build).parameters
        )

        def with_exits() -> nn.Module:
            return build(exits=True) if accepted else build()

        return with_exits

    def single(self, build: Any) -> Any:
        """The factory of the final model, from the `models.Build` that was prepared."""
        return build.having(exits=True) if build.accepts("exits") else build


BOUND = 10.0  # of a log variance: the deviation stays between 1/150 and 150 of the label's


class WithVariance(nn.Module):
    """A model of two outputs as a normal distribution: ``gaussian`` (rows, 2), mean and log variance, and ``values``.

    The log variance is B tanh(raw / B) with B = 10: the likelihood of labels that are fitted exactly has no maximum
    in the variance, and exp(-z) would overflow. A model that returns a head ``gaussian`` of its own keeps it.

    Raises:
        SpaceError: the model does not return two outputs a row.

    >>> said = WithVariance(nn.Identity())(torch.tensor([[3.0, 1.0]]))
    >>> said["values"].tolist(), round(said["gaussian"][0, 1].item(), 3)
    ([[3.0]], 0.997)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        output = self.model(x)
        if isinstance(output, Mapping):
            gaussian = output_of(output, "gaussian")
        else:
            mean, raw = _parts(output, 2, "mean and log variance").unbind(-1)
            gaussian = torch.stack([mean, BOUND * torch.tanh(raw / BOUND)], dim=-1)
        return {"gaussian": gaussian, "values": gaussian[..., :1]}


class WithRanks(nn.Module):
    """A model of three outputs: the first as ``values`` (rows, 1), two more as ``ranks`` (rows, 2).

    A model that returns both heads keeps them.

    Raises:
        SpaceError: the model does not return three outputs a row.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        output = self.model(x)
        if isinstance(output, Mapping):
            return {head: output_of(output, head) for head in ("values", "ranks")}
        value, ranks = _parts(output, 3, "a value and two ranking logits").split([1, 2], dim=-1)
        return {"values": value, "ranks": ranks}


def _parts(outputs: Tensor, width: int, meaning: str) -> Tensor:
    if outputs.shape[-1] != width:
        raise SpaceError(f"the model has width {outputs.shape[-1]}; build it with {width} outputs ({meaning})")
    return outputs
