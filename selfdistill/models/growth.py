"""Classifiers for more classes than they were trained for: old ones keep their weights, new ones are drawn anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RecipeError
from .registry import Build
from .store import load, read_config


@dataclass(frozen=True)
class GrownBuild(Build):
    """A factory of models that begin with the weights of the model folder ``origin``, which has fewer classes."""

    origin: str = ""

    def __call__(self, **overrides: Any) -> nn.Module:
        """A model with the weights of ``origin``; the rows of further classes are drawn from torch's generator.

        Raises:
            RecipeError: a layer of that model cannot grow.
        """
        model, old = super().__call__(**overrides), load(self.origin)
        before, own = read_config(Path(self.origin)).outputs, model.state_dict()
        for name, tensor in old.state_dict().items():
            place = own[name][:before] if name in own and own[name].shape[:1] == (self.outputs,) else own.get(name)
            if place is None or place.shape != tensor.shape:
                raise RecipeError(
                    f"the layer {name} of {self} is no classifier with a row for each class, and new classes do not "
                    "fit; train a new model on all data by `selfdistill run`"
                )
            place.copy_(tensor)  # the state shares its numbers with the model
        return model


def grown(origin: Path, outputs: int) -> GrownBuild:
    """The factory of models that begin with those weights, for so many classes.

    Raises:
        RecipeError: the model combines several.
    """
    build = single_build(origin, "update")
    options = {field.name: getattr(build, field.name) for field in fields(build)}
    return GrownBuild(**{**options, "outputs": outputs}, origin=str(origin))


def single_build(origin: Path, command: str) -> Build:
    """The factory of the model in a folder.

    Raises:
        RecipeError: the model combines several, with which the command cannot go on.
    """
    build = read_config(origin)
    if build.wrap:
        raise RecipeError(
            f"the model of {origin} combines several, and `{command}` goes on with a single one; give a run of a "
            "method with one final model"
        )
    return build


class Padded(nn.Module):
    """A classifier that gives the logit ``fill`` to further classes, up to ``classes``."""

    def __init__(self, model: nn.Module, classes: int, fill: float) -> None:
        super().__init__()
        self.model, self.classes, self.fill = model, classes, fill

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        """The outputs of the model with wider logits.

        >>> import torch
        >>> Padded(nn.Identity(), 3, -1.0)(torch.zeros(1, 2)).tolist()
        [[0.0, 0.0, -1.0]]
        """
        output = self.model(x)
        if isinstance(output, Mapping):
            return {**output, "logits": self._pad(output["logits"])}
        return self._pad(output)

    def _pad(self, logits: Tensor) -> Tensor:
        return F.pad(logits, (0, self.classes - logits.shape[-1]), value=self.fill)
