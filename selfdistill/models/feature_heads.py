"""Heads on features: all classifiers of a model with exits, projectors and prototypes, and rotations as classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.outputs import ModelWrapper, output_of
from ..errors import SpaceError
from .feature_taps import Extended, Featured, Hook, Tap, last_linear, layer_of, pooled
from .heads import Exits
from .patch_masking import hidden_patches


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
        outputs = self.model(x)
        if not isinstance(outputs, dict) or "exits" not in outputs:
            raise SpaceError("the model has no early exits; give one that has (the default models do)")
        heads: dict[str, Tensor] = {**outputs}
        classifiers = torch.cat([outputs["exits"], outputs["logits"].unsqueeze(1)], dim=1)
        count = classifiers.shape[1]
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        heads |= {
            "classifiers": classifiers,
            "pupils": classifiers[:, [i for i, _ in pairs]],
            "tutors": classifiers[:, [j for _, j in pairs]],
        }
        if "features" in outputs and outputs["features"].shape[-1] == outputs["feature"].shape[-1]:
            heads["levels"] = torch.cat([outputs["features"], outputs["feature"].unsqueeze(1)], dim=1)
        if self.number:
            if "levels" not in heads or count != self.number:
                raise SpaceError(
                    f"the model has {count} classifiers, its own included, and {self.number} linear layers as large as "
                    "its last one; let each exit end in such a layer, on features of one width"
                )
            heads["fused"] = self.fused(heads["levels"].flatten(1))
        return heads


@dataclass(frozen=True)
class Levels(Exits):
    """Prepares a model factory for K classifiers side by side (`Several`). The final model is the model with exits."""

    fused: bool = False

    @property
    def maps(self) -> bool:
        return self.fused  # a model whose exits end in linear layers of their own

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        with_exits: Callable[..., Any] = super().__call__(build)
        return lambda: Several(with_exits(), self.fused)


def perceptron(widths: tuple[int, ...], norm: bool = True, closed: bool = False) -> nn.Sequential:
    """Linear layers of these widths, the first that of the input, with batch norm and ReLU between, or GELU alone.

    Layers that batch norm follows have no bias. ``closed`` ends it in a batch norm without weights.

    >>> [type(layer).__name__ for layer in perceptron((3, 4, 2), closed=True)]
    ['Linear', 'BatchNorm1d', 'ReLU', 'Linear', 'BatchNorm1d']
    """
    layers = list[nn.Module]()
    for number, (inputs, outputs) in enumerate(pairwise(widths), start=2):
        is_last = number == len(widths)
        layers.append(nn.Linear(inputs, outputs, bias=not (closed if is_last else norm)))
        if not is_last:
            layers += [nn.BatchNorm1d(outputs), nn.ReLU()] if norm else [nn.GELU()]
        elif closed:
            layers.append(nn.BatchNorm1d(outputs, affine=False))
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

    def extra_heads(self) -> dict[str, Tensor]:
        heads = {"projection": self.projector(pooled(self.kept["feature"], "feature"))}
        if self.predictor is not None:
            heads["prediction"] = self.predictor(heads["projection"])
        if self.prototypes is not None:
            heads["prototypes"] = self.prototypes(heads["projection"])
        return heads


class Hiding(Hook):
    """A hook of the patch layer: it outputs a learnt token where a pixel is hidden."""

    def __init__(self, token: nn.Parameter) -> None:
        self.token = token

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        hidden = hidden_patches(args[0], (output.shape[2], output.shape[3]))
        return torch.where(hidden[:, None], self.token.to(output.dtype)[:, None, None], output)


class Patched(Projected):
    """`Projected` for transformers on patches: ``patch_prototypes`` too, and a token in the place of hidden patches.

    Raises:
        SpaceError: the model has no layer ``patches`` that makes them by a convolution, or no layer ``norm`` after it.
    """

    def __init__(self, model: nn.Module, kind: Projectors) -> None:
        super().__init__(model, kind)
        patches = dict(model.named_modules()).get("patches")
        if not isinstance(patches, nn.Conv2d):
            raise SpaceError("this method hides patches, and the model has no layer 'patches'; give --model vit")
        self.hidden = nn.Parameter(torch.randn(patches.out_channels) * 0.02)
        patches.register_forward_hook(Hiding(self.hidden))
        layer_of(model, "norm").register_forward_hook(Tap(self.kept, "norm"))

    def extra_heads(self) -> dict[str, Tensor]:
        heads = super().extra_heads()
        if self.prototypes is not None:
            heads["patch_prototypes"] = self.prototypes(self.projector(self.kept["norm"][:, 1:]))
        return heads


@dataclass(frozen=True)
class Projectors(ModelWrapper):
    """Prepares a model factory for heads that compare rows: see `Projected`. The final model is the bare model.

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
        """Whether the model must take images."""
        return self.patches

    def __post_init__(self) -> None:
        if not self.projector or min(*self.projector, *self.predictor, 1) < 1 or self.prototypes < 0:
            raise SpaceError("a projector has layers of width 1 or more; give such widths")

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        kind = Patched if self.patches else Projected
        return lambda: kind(build(), self)


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
        classifier = last_linear(model)
        classifier.register_forward_hook(Tap(self.kept, "feature", given=True))
        self.joint = nn.Linear(classifier.in_features, TURNS * classifier.out_features)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not self.training:
            logits_plain = self._logits(x)
            self.kept.clear()
            return {"logits": logits_plain}
        if x.dim() != 4 or x.shape[2] != x.shape[3]:
            raise SpaceError(f"rows of shape {tuple(x.shape[1:])} cannot be rotated; square images are wanted")
        rotated = torch.stack([torch.rot90(x, m, (2, 3)) for m in range(TURNS)], dim=1)
        logits = self._logits(rotated.flatten(0, 1)).unflatten(0, (-1, TURNS))
        joint = self.joint(pooled(self.kept.pop("feature"), "feature")).unflatten(0, (-1, TURNS))
        by_turn = joint.unflatten(-1, (-1, TURNS)).diagonal(dim1=1, dim2=3)  # (rows, classes, turns)
        return {"logits": logits[:, 0], "joint": joint, "aggregated": by_turn.mean(-1)}

    def _logits(self, x: Tensor) -> Tensor:
        output: Any = self.model(x)
        return output_of(output if isinstance(output, Mapping) else {"": output}, "logits")


@dataclass(frozen=True)
class Rotations(ModelWrapper):
    """Prepares a model factory for four rotations of each row: see `Rotated`. The final model is the bare model."""

    @property
    def maps(self) -> bool:
        return True

    @property
    def copies(self) -> int:
        return TURNS

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Rotated(build())
