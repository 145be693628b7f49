"""Default networks: an MLP, a small CNN, a small residual network and a transformer, with early exits on request."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import RecipeError
from ..io.expressions import one_line

_SMALLEST_SIDE = 4  # maps are not made smaller than this


MOST_WIDTH = 2**20


_MOST = {"depth": 1000, "blocks": 1000, "heads": 1000}


class Scaled(nn.Module):
    """A model of standardised values that returns values in the unit of the target: scale x value + center.

    All heads are scaled except features and ``ranks``; of ``gaussian``, the mean and the log variance.

    >>> Scaled(nn.Identity(), center=10.0, scale=2.0)(torch.tensor([[1.0]])).item()
    12.0
    """

    def __init__(self, model: nn.Module, center: float, scale: float) -> None:
        super().__init__()
        self.model, self.center, self.scale = model, center, scale

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        output = self.model(x)
        if isinstance(output, Tensor):
            return self.scale * output + self.center
        return {head: self._in_units(head, value) for head, value in output.items()}

    def _in_units(self, head: str, value: Tensor) -> Tensor:
        if "feature" in head or head == "ranks":
            return value
        if "gaussian" not in head:
            return self.scale * value + self.center
        mean, log_variance = value.unbind(-1)
        return torch.stack([self.scale * mean + self.center, log_variance + 2.0 * math.log(self.scale)], dim=-1)

    def standardised(self, center: float, scale: float) -> Scaled:
        """The same model in standardised units: its values minus ``center``, divided by ``scale``."""
        return Scaled(self.model, (self.center - center) / scale, self.scale / scale)


class Staged(nn.Module):
    """Stages in a row, a classifier on the last one and, with ``exits``, one on each earlier stage too.

    Without exits, ``forward`` returns logits (rows, outputs). With them it returns ``logits`` and ``feature``
    (rows, D) of the deepest classifier, and ``exits`` (rows, E, outputs) and ``features`` (rows, E, D) of the
    shallow ones, shallow to deep: a bottleneck of its own brings each stage to the same D before its
    classifier (Zhang et al., Be your own teacher, ICCV 2019).
    """

    def __init__(self, stages: list[nn.Module], bottlenecks: list[nn.Module], width: int, outputs: int, dropout: float):
        super().__init__()
        self.stages, self.bottlenecks = nn.ModuleList(stages), nn.ModuleList(bottlenecks)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)
        self.classifiers = nn.ModuleList(nn.Linear(width, outputs) for _ in bottlenecks)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        shallow: list[Tensor] = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i < len(self.bottlenecks):
                shallow.append(_pooled(self.bottlenecks[i](x)))
        feature = _pooled(x)  # (rows, D)
        logits: Tensor = self.classifier(self.dropout(feature))
        if not shallow:
            return logits
        exits = [classifier(self.dropout(f)) for classifier, f in zip(self.classifiers, shallow, strict=True)]
        return {
            "logits": logits,
            "exits": torch.stack(exits, dim=1),
            "feature": feature,
            "features": torch.stack(shallow, dim=1),
        }


def _pooled(x: Tensor) -> Tensor:
    """Global average over whatever space there is: (rows, channels, ...) -> (rows, channels)."""
    return x.flatten(2).mean(dim=2) if x.dim() > 2 else x


def mlp(
    shape: tuple[int, ...],
    outputs: int,
    *,
    width: int = 256,
    depth: int = 2,
    dropout: float = 0.0,
    exits: bool = False,
) -> nn.Module:
    """``depth`` blocks of Linear and ReLU on the flattened input, then a Linear; no batch norm.

    With depth 0 it is a linear layer, with dropout on its input.

    >>> mlp((1, 8, 8), 10)(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])

    Raises:
        RecipeError: a size is below 1, ``dropout`` is not in [0, 1), or exits are asked of a single block.
    """
    linear = depth == 0 and not isinstance(depth, bool)
    _check("mlp", dropout, width=width, outputs=outputs, depth=1 if linear else depth)
    if exits and depth < 2:
        raise RecipeError(f"mlp with exits needs depth 2 or more, not {depth}; an exit sits on each earlier block")
    widths = [math.prod(shape)] + [width] * depth
    stages: list[nn.Module] = []
    for i in range(depth):
        block = [
            nn.Linear(widths[i], widths[i + 1]),
            nn.ReLU(),
            nn.Dropout(dropout if i < depth - 1 else 0.0),
        ]
        stages.append(nn.Sequential(*([nn.Flatten()] if i == 0 else []), *block))
    if linear:
        return Staged([nn.Flatten()], [], widths[0], outputs, dropout)
    bottlenecks: list[nn.Module] = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth - 1)]
    return Staged(stages, bottlenecks if exits else [], width, outputs, dropout)


def cnn(
    shape: tuple[int, ...],
    outputs: int,
    *,
    width: int = 32,
    dropout: float = 0.0,
    exits: bool = False,
    norm: str = "batch",
    stem: int = 1,
) -> nn.Module:
    """Three stages of two 3x3 convolutions (``width``, 2x, 4x channels), global average, Linear.

    ``norm`` is "batch" or "group"; the latter does not look at the other rows of a batch. ``stem`` is the stride of the
    first convolution. About 0.3 million weights at the default width.

    >>> sorted(cnn((3, 16, 16), 5, exits=True)(torch.zeros(2, 3, 16, 16)))
    ['exits', 'feature', 'features', 'logits']

    Raises:
        RecipeError: the rows are no images, a size is below 1, or ``dropout`` or ``norm`` has no such value.
    """
    _check("cnn", dropout, image=shape, norm=norm, width=width, outputs=outputs, stem=stem)
    channels = [shape[0], width, 2 * width, 4 * width]
    strides = _strides((shape[0], *(-(-side // stem) for side in shape[1:])))
    stages: list[nn.Module] = []
    for i, stride in enumerate(strides):
        first = _convolution(channels[i], channels[i + 1], norm, stem if i == 0 else 1)
        layers = first + _convolution(channels[i + 1], channels[i + 1], norm)
        stages.append(nn.Sequential(*([nn.MaxPool2d(stride)] if stride > 1 else []), *layers))
    bottlenecks = _bottlenecks(width, strides, norm) if exits else []
    return Staged(stages, bottlenecks, 4 * width, outputs, dropout)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int, norm: str) -> None:
        super().__init__()
        self.first = nn.Sequential(*_convolution(before, after, norm, stride))
        self.second = nn.Sequential(*_convolution(after, after, norm)[:-1])  # the ReLU comes after the sum
        same = stride == 1 and before == after
        self.shortcut: nn.Module = nn.Identity()
        if not same:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), _norm(after, norm))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


def resnet(
    shape: tuple[int, ...],
    outputs: int,
    *,
    width: int = 16,
    blocks: int = 2,
    dropout: float = 0.0,
    exits: bool = False,
    norm: str = "batch",
) -> nn.Module:
    """Three stages of residual blocks: 6 ``blocks`` + 2 layers (He et al., CVPR 2016, section 4.2).

    >>> resnet((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Raises:
        RecipeError: the rows are no images, a size is below 1, or ``dropout`` or ``norm`` has no such value.
    """
    _check("resnet", dropout, image=shape, norm=norm, width=width, blocks=blocks, outputs=outputs)
    strides = _strides(shape)
    channels = [width, width, 2 * width, 4 * width]
    stages: list[nn.Module] = []
    for i, stride in enumerate(strides):
        stem = _convolution(shape[0], width, norm) if i == 0 else []
        first = Residual(channels[i], channels[i + 1], stride, norm)
        rest = [Residual(channels[i + 1], channels[i + 1], 1, norm) for _ in range(blocks - 1)]
        stages.append(nn.Sequential(*stem, first, *rest))
    bottlenecks = _bottlenecks(width, strides, norm) if exits else []
    return Staged(stages, bottlenecks, 4 * width, outputs, dropout)


class Block(nn.Module):
    """Attention among tokens, then two linear layers, each behind a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, nn.Dropout(dropout)
        self.norm1, self.qkv, self.projection = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm2 = nn.LayerNorm(width)
        self.linear1, self.linear2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.projection(attended))
        out: Tensor = x + self.dropout(self.linear2(F.gelu(self.linear1(self.norm2(x)))))
        return out


class Transformer(nn.Module):
    """Patches of an image as tokens, blocks, and a classifier on a token of its own, which stands first."""

    def __init__(
        self, channels: int, grid: tuple[int, int], patch: int, blocks: list[nn.Module], width: int, outputs: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = nn.Parameter(torch.randn(1, 1 + grid[0] * grid[1], width) * 0.02)
        self.blocks, self.norm, self.classifier = nn.Sequential(*blocks), nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (rows, patches, width)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.places
        logits: Tensor = self.classifier(self.norm(self.blocks(tokens))[:, 0])
        return logits


def vit(
    shape: tuple[int, ...],
    outputs: int,
    *,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    patch: int | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """A small vision transformer: ``depth`` blocks on patches of side ``patch`` (`patch_of` the image, if left open).

    About 0.2 million weights at the default width; learnt places, no convolution but that of the patches.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, section 3.1.

    >>> vit((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])

    Raises:
        RecipeError: the rows are no images, or are not divided by the patches, or ``width`` is not by the heads.
    """
    _check("vit", dropout, image=shape, width=width, depth=depth, heads=heads, outputs=outputs)
    patch = patch_of(*shape[1:]) if patch is None else patch
    _check("vit", dropout, patch=patch)
    if shape[1] % patch or shape[2] % patch:
        raise RecipeError(f"vit cannot cut {shape[1]}x{shape[2]} pixels into patches of side {patch}; give a divisor")
    if width % heads:
        raise RecipeError(f"vit shares its width among its heads: {width} is not divided by {heads}")
    blocks: list[nn.Module] = [Block(width, heads, dropout) for _ in range(depth)]
    return Transformer(shape[0], (shape[1] // patch, shape[2] // patch), patch, blocks, width, outputs)


def patch_of(height: int, width: int) -> int:
    """The side of a patch: the largest divisor of both sides that leaves about seven patches a side, 16 at most.

    >>> patch_of(28, 28), patch_of(8, 8), patch_of(224, 224)
    (4, 2, 16)
    """
    most = min(16, max(2, min(height, width) // 7))
    return max(side for side in range(1, most + 1) if height % side == 0 and width % side == 0)


def _strides(shape: tuple[int, ...]) -> list[int]:
    """By how much each of three stages shrinks its map: by two, as long as no side falls below four."""
    side, strides = min(shape[1:]), [1]
    for _ in range(2):
        strides.append(2 if side // 2 >= _SMALLEST_SIDE else 1)
        side //= strides[-1]
    return strides


def _norm(channels: int, norm: str) -> nn.Module:
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(math.gcd(8, channels), channels)


def _convolution(before: int, after: int, norm: str, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, stride, padding=1, bias=False), _norm(after, norm), nn.ReLU()]


def _bottlenecks(width: int, strides: list[int], norm: str) -> list[nn.Module]:
    """One per shallow stage: depthwise, then pointwise convolutions, shrinking as the later stages do."""
    bottlenecks: list[nn.Module] = []
    for stage in (0, 1):
        layers: list[nn.Module] = []
        for later in range(stage + 1, 3):
            c = width * 2 ** (later - 1)
            layers += [nn.Conv2d(c, c, 3, strides[later], padding=1, groups=c, bias=False)]
            layers += [nn.Conv2d(c, 2 * c, 1, bias=False), _norm(2 * c, norm), nn.ReLU()]
        bottlenecks.append(nn.Sequential(*layers))
    return bottlenecks


def _check(name: str, dropout: float, image: tuple[int, ...] | None = None, norm: str = "batch", **sizes: int) -> None:
    if image is not None and len(image) != 3:
        raise RecipeError(f"{name} reads images (channels, height, width), not rows of shape {tuple(image)}; use mlp")
    if norm not in ("batch", "group"):
        raise RecipeError(f"{name} has norm 'batch' or 'group', not {norm!r}")
    for size, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise RecipeError(f"{name} needs a whole number from 1 on as {size}, not {value!r}")
        if value > _MOST.get(size, MOST_WIDTH):
            most = _MOST.get(size, MOST_WIDTH)
            raise RecipeError(f"{name} takes at most {most} as {size}, not {one_line(value, 40)}")
    if not 0 <= dropout < 1:
        raise RecipeError(f"{name} needs dropout in [0, 1), not {dropout!r}")
