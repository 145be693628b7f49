"""Feature signals: heads that read a layer of any model by its name, with projectors where two layers differ.

A head is written ``operation:layer``, or ``operation:layer@other`` where a second layer gives the size:

=====================  ================================================================  =====================
``vector:L``           what L says, its mean over positions                              (rows, width)
``input:L``            the same of what L is given                                       (rows, width)
``map:L``              every position                                                    (rows, positions, width)
``attention:L[@M]``    softmax over positions of sum_c f_c^2, as large as M's map        (rows, positions)
``energy:L[@M]``       mean_c f_c^2 over positions, divided by its Euclidean norm        (rows, positions)
``dense:L``            the model's own last linear layer at every position               (rows, positions, classes)
``project:L@M``        the vector, by a linear projector that is learnt, as wide as M's  (rows, width of M)
``classify:L``         the vector, by a linear classifier that is learnt                 (rows, classes)
=====================  ================================================================  =====================

``feature`` alone is what the last linear layer sits on, where the model does not return it itself. Layers say (rows,
width), (rows, tokens, width) or (rows, width, height, breadth). The hooks belong to the model: a copy has its own, and
what they keep is returned by ``forward``, so that DDP and `torch.compile` see one module with several outputs.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..core.outputs import Composite, ModelWrapper
from ..errors import SpaceError

HOW = ("vector", "input", "map", "attention", "energy", "dense", "project", "classify")


LEARNT = ("project", "classify")


SIZED = ("attention", "energy", "project")  # may name, or must, a second layer


_FORM = re.compile(r"(?P<operation>\w+):(?P<layer>[\w.]+)(@(?P<reference>[\w.]+))?")


class Reading(NamedTuple):
    """The parts of a head's name: the operation, the layer it reads, and the layer that gives the size."""

    operation: str
    layer: str
    reference: str | None

    @classmethod
    def of(cls, head: str) -> Reading:
        """Read a head's name.

        Raises:
            SpaceError: it is not of the form ``operation:layer``.

        >>> Reading.of("attention:stages.1@stages.0")
        Reading(operation='attention', layer='stages.1', reference='stages.0')
        """
        match = _FORM.fullmatch(head)
        operation, sized = (match["operation"], match["reference"] is not None) if match else ("", False)
        if (
            match is None
            or operation not in HOW
            or (sized and operation not in SIZED)
            or (operation == "project" and not sized)
        ):
            raise SpaceError(
                f"no head is called {head!r}: write {', '.join(HOW)} and a layer, such as 'vector:layer4', and for "
                "'project:layer3@layer4' a second one"
            )
        return cls(operation, match["layer"], match["reference"])


class Hook:
    """Belongs to what is put around a model; the final model has none of them."""


class Tap(Hook):
    """A hook that keeps the output or the input of its layer until the end of the forward pass."""

    def __init__(self, kept: dict[str, Tensor], key: str, given: bool = False) -> None:
        self.kept, self.key, self.given = kept, key, given

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        value = args[0] if self.given else output
        if not isinstance(value, Tensor):
            raise SpaceError(f"layer {self.key!r} says a {type(value).__name__}; name a layer that says a tensor")
        self.kept[self.key] = value


class DenseTap(Tap):
    """A hook of the last linear layer that applies it to every position of a map, while its weights are whole."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.key in self.kept:
            logits = F.linear(positions(self.kept[self.key], self.key), module.get_parameter("weight"), _bias(module))
            self.kept[f"dense:{self.key}"] = logits


class Extended(Composite):
    """A model with heads that learn beside it; the final model has none. In training it sees ``copies`` of a row."""

    model: nn.Module

    def final_model(self) -> nn.Module:
        """The final model of a training."""
        model = copy.deepcopy(self.model)
        for module in model.modules():
            for number, hook in list(module._forward_hooks.items()):
                if isinstance(hook, Hook):
                    del module._forward_hooks[number]
        return model


class Featured(Extended):
    """A model that also returns ``heads`` read from its layers.

    >>> import torch
    >>> model = Featured(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), ("vector:1", "project:0@2"))
    >>> {name: tuple(said.shape) for name, said in model(torch.zeros(4, 3)).items()}
    {'logits': (4, 2), 'vector:1': (4, 5), 'project:0@2': (4, 2)}

    Raises:
        SpaceError: the model has no such layer, or a projector's width cannot be told.
    """

    def __init__(self, model: nn.Module, heads: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.kept = model, dict[str, Tensor]()
        self.heads = {head: Reading.of(head) for head in heads if head != "feature"}
        self.learnt = nn.ModuleList()
        self.places = dict[str, int]()
        if len(self.heads) < len(heads):
            last_linear(model).register_forward_hook(Tap(self.kept, "feature", given=True))
        for operation, layer, reference in dict.fromkeys(self.heads.values()):
            for name in filter(None, (layer, reference if operation in ("attention", "energy") else None)):
                key = f"input:{name}" if operation == "input" else name
                layer_of(model, name).register_forward_hook(Tap(self.kept, key, given=operation == "input"))
            if operation == "dense":
                last_linear(model).register_forward_hook(DenseTap(self.kept, layer))
        for head, (operation, layer, reference) in self.heads.items():
            if operation in LEARNT:
                size = width_of(model, reference) if reference else last_linear(model).get_parameter("weight").shape[0]
                self.places[head] = len(self.learnt)
                self.learnt.append(nn.Linear(width_of(model, layer), size))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.kept.clear()
        output = self.model(x)
        heads = {**output} if isinstance(output, Mapping) else {"logits": output}
        for head, reading in self.heads.items():
            heads[head] = self._read(head, *reading)
        if "feature" in self.kept:
            heads.setdefault("feature", pooled(self.kept["feature"], "feature"))
        heads |= self.extra_heads()
        self.kept.clear()
        return heads

    def extra_heads(self) -> dict[str, Tensor]:
        """Further heads, from the layers' outputs in this forward pass (``kept``, by name)."""
        return {}

    def _read(self, head: str, operation: str, layer: str, reference: str | None) -> Tensor:
        key = f"{operation}:{layer}" if operation in ("input", "dense") else layer
        if key not in self.kept:
            raise SpaceError(f"layer {layer!r} took no part in the forward pass; name another for the head {head!r}")
        value = self.kept[key]
        if operation in ("attention", "energy"):
            return attention(value, layer, operation, self.kept[reference] if reference else None)
        if operation == "map":
            return positions(value, layer)
        if operation == "dense":
            return value
        vector = pooled(value, layer)
        return self.learnt[self.places[head]](vector) if operation in LEARNT else vector


def positions(value: Tensor, layer: str) -> Tensor:
    """(rows, width, height, breadth), (rows, tokens, width) or (rows, width) as (rows, positions, width)."""
    if value.dim() not in (2, 3, 4):
        raise SpaceError(f"layer {layer!r} says {tuple(value.shape)}; a vector, tokens or a map for each row is wanted")
    if value.dim() == 4:
        return value.flatten(2).transpose(1, 2)
    return value if value.dim() == 3 else value.unsqueeze(1)


def pooled(value: Tensor, layer: str) -> Tensor:
    """The mean over positions, (rows, width)."""
    return positions(value, layer).mean(1)


def attention(value: Tensor, layer: str, operation: str = "attention", reference: Tensor | None = None) -> Tensor:
    """The attention map of a layer, (rows, positions): a softmax, or (``energy``) of unit length.

    Args:
        value: a map (rows, width, height, breadth), or tokens (rows, tokens, width).
        reference: another map, to whose size the squares are brought first, bilinearly.

    Raises:
        SpaceError: the layer says one vector a row, which has no positions.
    """
    if value.dim() not in (3, 4):
        raise SpaceError(f"layer {layer!r} says {tuple(value.shape)}: no positions to compare; use a model of maps")
    squares = value.square().sum(1, keepdim=True) if value.dim() == 4 else value.square().sum(-1)
    if operation == "energy":
        squares = squares / (value.shape[1] if value.dim() == 4 else value.shape[-1])
    if reference is not None and value.dim() == 4 and reference.shape[2:] != value.shape[2:]:
        squares = F.interpolate(squares, reference.shape[2:], mode="bilinear", align_corners=False)
    flat = squares.flatten(1)
    return flat.softmax(-1) if operation == "attention" else F.normalize(flat, dim=-1)


def layer_of(model: nn.Module, name: str) -> nn.Module:
    """A layer by its name in ``named_modules``.

    Raises:
        SpaceError: there is none; the message lists what there is.
    """
    layers: dict[str, nn.Module] = dict(model.named_modules())
    if name not in layers:
        names = [key for key in layers if key and key.count(".") <= 1]
        listing = f"{', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        raise SpaceError(
            f"the model has no layer {name!r} (it has: {listing}); name its layers in the method, or give another "
            "model (--model cnn, say)"
        )
    return layers[name]


def width_of(model: nn.Module, name: str) -> int:
    """The width of a layer's output: that of its last part with a known width.

    Raises:
        SpaceError: no part of it has one.
    """
    for part in reversed(list(layer_of(model, name).modules())):
        for attribute in ("out_features", "out_channels", "num_features", "num_channels"):
            if isinstance(getattr(part, attribute, None), int):
                return int(getattr(part, attribute))
        if isinstance(part, nn.LayerNorm):
            return math.prod(part.normalized_shape)
    raise SpaceError(f"layer {name!r} has no linear, convolution or norm that tells its width; name another")


def last_linear(model: nn.Module) -> nn.Linear:
    """The linear layer that was made last: the classifier, as a rule.

    Raises:
        SpaceError: there is none.
    """
    layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise SpaceError("the model has no linear layer as classifier; name the layer that is read")
    return layers[-1]


def _bias(module: nn.Module) -> Tensor | None:
    return module.get_parameter("bias") if getattr(module, "bias", None) is not None else None


@dataclass(frozen=True)
class Features(ModelWrapper):
    """Prepares a model factory for heads that read its layers: see `Featured`. The final model is the bare model."""

    heads: tuple[str, ...]
    maps: bool = True  # does it want a model whose stages say maps?

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Featured(build(), self.heads)
