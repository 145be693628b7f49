"""A pretrained image model with a head: images in, features of the pretrained body, classes or values out.

The body is EfficientNet-Lite0 (`models.efficientnet`), or any image model of transformers. Images are resized and
normalised here, by the numbers that the model's own description gives, so that no other library of images is needed.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from ..io.expressions import one_line, parse_expression
from . import efficientnet, hub
from .networks import mlp
from .peers import WRAPS
from .text_encoder import described

SPEC = "selfdistill.models.image_encoder:encoder"  # what a `models.Build` calls


CHUNK = 64  # images of a forward pass without gradient


_WRITTEN = re.compile(r"\s*(?P<name>[^()]+?)\s*(?P<options>\(.*\))?\s*", re.DOTALL)


class Pixels(NamedTuple):
    """What a model expects: the side in pixels, and by which mean and deviation each channel is normalised."""

    side: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def options(
    size: int | None = None, depth: int = 0, width: int = 256, dropout: float = 0.0, exits: bool = False
) -> Any:
    """The options of an image model, checked.

    Args:
        size: Pixels a side at which images are read; None for those of the model.
        depth: Hidden layers of the head; 0 is a linear layer.
        width: Width of such a layer.
        dropout: In the head.
        exits: Whether earlier hidden layers have classifiers.

    Raises:
        RecipeError: a value outside its range.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 16 <= size <= 4096):
        raise RecipeError(f"an image model reads sizes from 16 to 4096 pixels a side, not {size!r}")
    values = {"size": size, "depth": depth, "width": width, "dropout": dropout, "exits": exits}
    mlp((1,), 1, **head_options(values))
    return {name: value for name, value in values.items() if value != _USUAL[name]}


_USUAL: dict[str, Any] = {"size": None, "depth": 0, "width": 256, "dropout": 0.0, "exits": False}


def head_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a head, which is an MLP, among those of a model."""
    return {name: given.get(name, _USUAL[name]) for name in ("depth", "width", "dropout", "exits")}


def named(spec: str) -> dict[str, Any] | None:
    """The options of `encoder` that a model's text stands for, or None if it names no pretrained image model.

    >>> named("efficientnet-lite0(size=160)"), named("cnn(width=8)")
    ({'name': 'efficientnet-lite0', 'size': 160}, None)

    Raises:
        RecipeError: an option that an image model has not.
    """
    written = _WRITTEN.fullmatch(spec)
    name = written["name"] if written else ""
    if written is None or not is_pretrained(name):
        return None
    if not written["options"]:
        return {"name": name}
    return {"name": name, **parse_expression("encoder" + written["options"], {"encoder": options}, kind="model")}


def is_pretrained(name: str) -> bool:
    """Whether a name is that of a pretrained image model: built in, a folder, or a name of the hub."""
    if name == efficientnet.NAME:
        return True
    if name in hub.BUILT_IN:
        return False
    folder = Path(name).is_dir()
    try:
        on_hub = not folder and ":" not in name and not name.endswith(".py") and isinstance(hub.locate(name), str)
    except DataError:
        return False
    return (folder or on_hub) and hub.reads_images(name)


def side(known: Mapping[str, Any]) -> int:
    """Pixels a side at which the model of `named` reads images; no weights are loaded.

    Raises:
        DataError: there is no such model.
    """
    if known.get("size") is not None:
        return int(known["size"])
    if known["name"] == efficientnet.NAME:
        return efficientnet.SIDE
    name = str(known["name"])
    return _pixels(name, hub.image_processor(name), hub.image_config(name)).side


# ---- bodies ----------------------------------------------------------------------------------------------------------


class TransformersBody(nn.Module):
    """An image model of transformers: normalised images -> features (rows, width).

    They are what its pooler returns where its weights have one; else the class token, where there is one; else the mean
    over positions.
    """

    def __init__(self, model: Any, pooled: bool) -> None:
        super().__init__()
        self.model, self.pooled = model, pooled
        self.classed = any(name.endswith("cls_token") for name, _ in model.named_parameters())
        self.resizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    def forward(self, x: Tensor) -> Tensor:
        more = {"interpolate_pos_encoding": True} if self.resizes else {}
        outputs = self.model(pixel_values=x, **more)
        if self.pooled and "pooler_output" in outputs:
            return outputs["pooler_output"].flatten(1)  # type: ignore[no-any-return]
        states = outputs["last_hidden_state"]
        if states.ndim == 4:
            return states.mean((2, 3))  # type: ignore[no-any-return]
        return states[:, 0] if self.classed else states.mean(1)  # type: ignore[no-any-return]


def _vision_part(model: Any) -> Any:
    """The part of a model of images and texts that reads images; an image model itself."""
    return model.get_submodule("vision_model") if "vision_model" in dict(model.named_children()) else model


@dataclass(frozen=True)
class Loaded:
    """A pretrained body, what it expects, and what builds it again without its weights."""

    body: nn.Module
    pixels: Pixels
    config: dict[str, Any]


def load_body(name: str) -> Loaded:
    """The pretrained body of a name.

    Raises:
        DataError: there is no such model, or it lacks weights.
    """
    if name == efficientnet.NAME:
        mean, std = (efficientnet.MEAN,) * 3, (efficientnet.STD,) * 3
        return Loaded(efficientnet.pretrained(), Pixels(efficientnet.SIDE, mean, std), {"model_type": name})
    model, missing = hub.image_model(name)
    body = _vision_part(model)
    pooled = not any("pooler" in key for key in missing)
    if not pooled:
        body.pooler = None
    config = described(model.config) | {"pooled": pooled}
    return Loaded(TransformersBody(body, pooled), _pixels(name, hub.image_processor(name), body.config), config)


def _body_of(name: str, config: Mapping[str, Any]) -> nn.Module:
    """The body that `Loaded.config` describes, with weights to be loaded."""
    if config.get("model_type") == efficientnet.NAME:
        return efficientnet.EfficientNetLite0()
    own = {key: value for key, value in config.items() if key != "pooled"}
    pooled = config.get("pooled") is True
    body = _vision_part(hub.from_config(name, own))
    if not pooled:
        body.pooler = None
    return TransformersBody(body, pooled)


def _pixels(name: str, processor: Mapping[str, Any], config: Any) -> Pixels:
    """What the description of a model's images says; what it leaves open is that of ImageNet models."""
    given = processor.get("crop_size") or processor.get("size") or {}
    sides = given.values() if isinstance(given, Mapping) else [given]
    own = next((side for side in sides if isinstance(side, int)), None) or vars(config).get("image_size") or 224
    side = own[0] if isinstance(own, (list, tuple)) else own
    if not processor.get("do_normalize", True):
        return Pixels(int(side), (0.0,) * 3, (1.0,) * 3)
    mean, std = processor.get("image_mean", (0.5,) * 3), processor.get("image_std", (0.5,) * 3)
    numbers = [*mean, *std] if isinstance(mean, list | tuple) and isinstance(std, list | tuple) else []
    if len(numbers) != 6 or not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers) or not all(std):
        raise DataError(
            f"{name}: {hub.IMAGE_PROCESSOR} has no image_mean and image_std of three numbers; save it again"
        )
    return Pixels(int(side), tuple(map(float, mean)), tuple(map(float, std)))


# ---- the model -------------------------------------------------------------------------------------------------


class ImageEncoder(nn.Module):
    """Images (rows, 1 or 3, height, width) in [0, 1] -> the features of a pretrained body -> a head.

    With ``basis`` (width, components) the head reads (features - center) basis. ``kept`` are the options that build the
    same module without the pretrained weights: a model folder has them.
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    basis: Tensor

    def __init__(
        self,
        body: nn.Module,
        pixels: Pixels,
        head: nn.Module,
        width: int,
        components: int = 0,
        kept: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.kept, self.width = dict(kept or {}), width
        self.body, self.head, self.side = body, head, pixels.side
        self.components = components
        self.register_buffer("mean", torch.tensor(pixels.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(pixels.std).view(3, 1, 1), persistent=False)
        if components:
            self.register_buffer("center", torch.zeros(width))
            self.register_buffer("basis", torch.zeros(width, components))

    def train(self, mode: bool = True) -> ImageEncoder:
        """Into training mode, but for batch norm, which keeps the statistics of the pretrained body."""
        super().train(mode)
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def features(self, x: Tensor) -> Tensor:
        """The features of the body, (rows, width)."""
        if not torch.is_grad_enabled() and len(x) > CHUNK:
            return torch.cat([self.features(part) for part in x.split(CHUNK)])
        if x.shape[1] == 1:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        x = (x.clamp(0, 1) - self.mean) / self.std
        return self.body(x.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        features = self.features(x)
        if self.components:
            features = (features - self.center) @ self.basis
        return self.head(features)  # type: ignore[no-any-return]


def encoder(
    shape: tuple[int, ...],
    outputs: int,
    *,
    name: str,
    size: int | None = None,
    depth: int = 0,
    width: int = 256,
    dropout: float = 0.0,
    exits: bool = False,
    components: int = 0,
    head: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    pixels: tuple[Any, ...] | None = None,
) -> nn.Module:
    """The pretrained image model ``name`` with a fresh head; of a ``config`` instead, with weights to be loaded.

    Args:
        shape: Of an image: (channels, height, width).
        outputs: Classes, or 1 for values.
        name: Of the model; see `named`.
        size, depth, width, dropout, exits: see `options`.
        components: Of the features, that the head reads; 0 for the features as they are.
        head: What builds the head, where it is no MLP: spec, outputs, options and wrap of a `Build`.
        config: What builds the body again.
        pixels: The fields of `Pixels`, with ``config``.

    Returns:
        An `ImageEncoder`.

    Raises:
        RecipeError: the rows are no images, or an option has no such value.
        DataError: there is no such model.
    """
    given = options(size, depth, width, dropout, exits)
    if len(shape) != 3:
        raise RecipeError(
            f"{name} reads images, not rows of shape {shape}; give a folder of images, or another --model"
        )
    if config is None or pixels is None:
        loaded = load_body(name)
        body, expected, config = loaded.body, loaded.pixels, loaded.config
    else:
        body, expected = _body_of(name, config), _saved_pixels(name, pixels)
    expected = expected if size is None else expected._replace(side=size)
    features = feature_width(body, expected, name)
    entrance = (components or features,)
    build = partial(mlp, entrance, outputs, **head_options(given))
    made = build() if head is None else _saved_head(name, entrance, head)()
    return ImageEncoder(body, expected, made, features, components, {"config": config, "pixels": tuple(expected)})


def _saved_pixels(name: str, pixels: tuple[Any, ...]) -> Pixels:
    try:
        side, mean, std = pixels
        return Pixels(int(side), tuple(map(float, mean)), tuple(map(float, std)))
    except (TypeError, ValueError) as error:
        raise RecipeError(f"the pixels of {name} are damaged ({one_line(error, 60)}); train it again") from error


def _saved_head(name: str, shape: tuple[int, ...], head: Mapping[str, Any]) -> Callable[[], nn.Module]:
    """What builds a head that was trained alone: an MLP, or several together."""
    try:
        build = partial(mlp, shape, int(head["outputs"]), **head_options(head["options"]))
        return partial(WRAPS[head["wrap"]], build) if head["wrap"] else build
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecipeError(f"the head of {name} is damaged ({one_line(error, 60)}); train it again") from error


def feature_width(body: nn.Module, pixels: Pixels, name: str) -> int:
    """The width of a body's features, from one black image.

    Raises:
        RecipeError: the body cannot read an image of this size.
    """
    training = body.training
    try:
        with torch.no_grad():
            return int(body.eval()(torch.zeros(1, 3, pixels.side, pixels.side)).shape[1])
    except Exception as error:  # another's code may raise anything
        why = f"{type(error).__name__}: {one_line(error, 120)}"
        raise RecipeError(
            f"{name} cannot read images of {pixels.side} pixels a side ({why}); give another size"
        ) from error
    finally:
        body.train(training)
