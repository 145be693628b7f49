"""Heads to compare rows without labels: a projector on the features, and a predictor or prototypes on that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SpaceError
from ..tasks.hiding import hidden_patches
from .reading import Featured, Hook, Tap, last_linear, layer_of, pooled


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


class Hiding(Hook):
    """A hook of the layer that makes patches: where a pixel is hidden, it says a token that is learnt instead."""

    def __init__(self, token: nn.Parameter) -> None:
        self.token = token

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], said: Tensor) -> Tensor:
        hidden = hidden_patches(args[0], (said.shape[2], said.shape[3]))
        return torch.where(hidden[:, None], self.token.to(said.dtype)[:, None, None], said)


class Patched(Projected):
    """`Projected` for transformers on patches: ``patch_prototypes`` too, and a token in the place of hidden patches.

    Raises:
        SpaceError: the model has no layer ``patches`` that makes them by a convolution, or no layer ``norm`` after it.
    """

    def __init__(self, model: nn.Module, kind: Projectors) -> None:
        super().__init__(model, kind)
        made = dict(model.named_modules()).get("patches")
        if not isinstance(made, nn.Conv2d):
            raise SpaceError("this method hides patches, and the model has no layer 'patches'; give --model vit")
        self.hidden = nn.Parameter(torch.randn(made.out_channels) * 0.02)
        made.register_forward_hook(Hiding(self.hidden))
        layer_of(model, "norm").register_forward_hook(Tap(self.kept, "norm"))

    def beside(self) -> dict[str, Tensor]:
        said = super().beside()
        if self.prototypes is not None:
            said["patch_prototypes"] = self.prototypes(self.projector(self.kept["norm"][:, 1:]))
        return said


@dataclass(frozen=True)
class Projectors:
    """Prepares a model factory for heads that compare rows: see `Projected`. The product is the bare model.

    ``projector`` and ``predictor`` are widths of layers (`perceptron`); the features' own comes first by itself. With
    ``patches`` the model is a transformer on patches of images, some of which may be hidden: see `Patched`.
    """

    projector: tuple[int, ...]
    predictor: tuple[int, ...] = ()
    prototypes: int = 0
    norm: bool = True
    closed: bool = False
    patches: bool = False

    @property
    def maps(self) -> bool:
        """Does it want a model of images?"""
        return self.patches

    def __post_init__(self) -> None:
        if not self.projector or min(*self.projector, *self.predictor, 1) < 1 or self.prototypes < 0:
            raise SpaceError("a projector has layers of width 1 or more; give such widths")

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        kind = Patched if self.patches else Projected
        return lambda: kind(build(), self)

    def single(self, build: Any) -> Any:
        """What builds the product: the factory of the bare model."""
        return build
