"""Heads to compare rows without labels: a projector on the features, and a predictor or prototypes on that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpaceError
from .reading import Featured, last_linear, pooled


def perceptron(widths: tuple[int, ...], norm: bool = True, closed: bool = False) -> nn.Sequential:
    """Linear layers of these widths, the first that of the input, with batch norm and ReLU between, or GELU alone.

    Layers that batch norm follows have no bias. ``closed`` ends it in a batch norm without weights.

    >>> [type(layer).__name__ for layer in perceptron((3, 4, 2), closed=True)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear', 'BatchNorm1d']
    """
    layers = list[nn.Module]()
    for number, (before, after) in enumerate(pairwise(widths), start=2):
        last = number == len(widths)
        layers.append(nn.Linear(before, after, bias=not (closed if last else norm)))
        if not last:
            layers += [nn.BatchNorm1d(after), nn.ReLU()] if norm else [nn.GELU()]
        elif closed:
            layers.append(nn.BatchNorm1d(after, affine=False))
    return nn.Sequential(*layers)


class Prototypes(nn.Module):
    """Cosines (rows, count) of rows (rows, width) with ``count`` directions that are learnt.

    >>> import torch
    >>> Prototypes(3, 5)(torch.ones(2, 3)).abs().max().item() <= 1.0 + 1e-6
    True
    """

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(nn.init.normal_(nn.Linear(width, count, bias=False).weight.detach()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.directions, dim=-1))


class Projected(Featured):
    """A model with learnt heads beside it: ``projection`` of its features, ``prediction`` or ``prototypes`` of that.

    >>> import torch
    >>> model = Projected(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), Projectors((8, 4), (2, 4)))
    >>> {name: tuple(said.shape) for name, said in model(torch.ones(6, 3)).items()}
    {'logits': (6, 2), 'feature': (6, 5), 'projection': (6, 4), 'prediction': (6, 4)}

    Raises:
        SpaceError: the model has no linear layer, whose input are the features.
    """

    def __init__(self, model: nn.Module, kind: Projectors) -> None:
        super().__init__(model, ("feature",))
        self.projector = perceptron((last_linear(model).in_features, *kind.projector), kind.norm, kind.closed)
        width = kind.projector[-1]
        self.predictor = perceptron((width, *kind.predictor)) if kind.predictor else None
        self.prototypes = Prototypes(width, kind.prototypes) if kind.prototypes else None

    def beside(self) -> dict[str, Tensor]:
        said = {"projection": self.projector(pooled(self.kept["feature"], "feature"))}
        if self.predictor is not None:
            said["prediction"] = self.predictor(said["projection"])
        if self.prototypes is not None:
            said["prototypes"] = self.prototypes(said["projection"])
        return said


@dataclass(frozen=True)
class Projectors:
    """Prepares a model factory for heads that compare rows: see `Projected`. The product is the bare model.

    ``projector`` and ``predictor`` are widths of layers (`perceptron`); the features' own comes first by itself.
    """

    projector: tuple[int, ...]
    predictor: tuple[int, ...] = ()
    prototypes: int = 0
    norm: bool = True
    closed: bool = False

    def __post_init__(self) -> None:
        if not self.projector or min(*self.projector, *self.predictor, 1) < 1 or self.prototypes < 0:
            raise SpaceError("a projector has layers of width 1 or more; give such widths")

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Projected(build(), self)

    def single(self, build: Any) -> Any:
        """What builds the product: the factory of the bare model."""
        return build
