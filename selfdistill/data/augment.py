"""Weak and strong views of a batch, as batched tensor operations whose draws are addressed by sample id.

What a sample looks like is a function of the address and its id alone: not of the batch it is in, the rank or
the order. To keep that true bit for bit, pixels are summed as integers and rotations need no sine.

The pair is that of FixMatch (Sohn et al., NeurIPS 2020, arXiv:2001.07685): weak is a shift and a mirror;
strong adds two operations in the manner of RandAugment (Cubuk et al., CVPR-W 2020, arXiv:1909.13719) and a
cutout (DeVries and Taylor, arXiv:1708.04552). For tables, strong masks features in the manner of SCARF (Bahri
et al., ICLR 2022, arXiv:2106.15147), but with the mean in place of another row's value: no batch leaks in. Of texts,
tokens are masked at random; the model's dropout makes two views of it differ all the same.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..errors import RecipeError

Address = tuple[int | str, ...]

SHIFT = 1 / 8  # of the side


WEAK_NOISE, STRONG_NOISE = 0.1, 0.2  # tables: standard deviations of standardised inputs


MASKED = 0.2  # tables: share of features set to 0


WEAK_MASK, STRONG_MASK = 0.15, 0.3  # texts: share of the tokens


GLOBAL, LOCAL = (0.4, 1.0), (0.1, 0.4)  # images: the share of the area that a crop shows


ASPECT = (0.75, 4 / 3)  # of a crop, breadth to height


LOCAL_MASK = 0.6  # tables and texts: share of what is hidden where images show little


ENHANCE = 0.9  # brightness, contrast and sharpness change by up to this factor


SLANT, TURN, MOVE = 0.3, 0.268, 0.3  # shear; tangent of half of 30 degrees; translation in sides


class Tokens(NamedTuple):
    """Of a tokenizer: the id that hides a token, None if it has none, and the ids that are never hidden."""

    mask: int | None
    kept: tuple[int, ...]


def weak(
    x: Tensor, ids: Tensor, address: Address, *, kind: str, flips: bool = False, tokens: Tokens | None = None
) -> Tensor:
    """Images: a reflected shift by up to 1/8 of the side, mirrored if ``flips``. Tables: Gaussian noise, 0.1. Texts:
    15 % of the tokens are masked.

    ``x`` is (n, channels, height, width) in [0, 1], (n, features) standardised, or token ids (n, length); ``ids`` is
    (n,).

    >>> x = torch.rand(2, 1, 8, 8)
    >>> both = weak(x, torch.tensor([5, 6]), (0, "weak", 1), kind="image", flips=True)
    >>> both[1:].equal(weak(x[1:], torch.tensor([6]), (0, "weak", 1), kind="image", flips=True))
    True
    """
    if kind == "text":
        return _hidden(x, rng.uniform((*address, "tokens"), ids, x.shape[1]) < WEAK_MASK, tokens)
    if kind == "table":
        return x + WEAK_NOISE * rng.normal((*address, "noise"), ids, x.shape[1])
    return _shift(x, rng.uniform((*address, "shift"), ids, 3), flips)


def strong(
    x: Tensor, ids: Tensor, address: Address, *, kind: str, flips: bool = False, tokens: Tokens | None = None
) -> Tensor:
    """Images: a weak view, two drawn operations, one cutout. Tables: 20 % of features at 0, noise of 0.2. Texts: 30 %
    of the tokens are masked.

    Shapes as in ``weak``. The shift is drawn apart from the weak view's, so one address may serve both. Of
    the drawn operations those on pixel values come first, then all that move pixels, in one resampling.
    """
    if kind == "text":
        return _hidden(x, rng.uniform((*address, "strong tokens"), ids, x.shape[1]) < STRONG_MASK, tokens)
    if kind == "table":
        masked = rng.uniform((*address, "mask"), ids, x.shape[1]) < MASKED
        return x.masked_fill(masked, 0.0) + STRONG_NOISE * rng.normal((*address, "strong noise"), ids, x.shape[1])
    x = weak(x, ids, (*address, "strong"), kind=kind, flips=flips)
    u = rng.uniform((*address, "operations"), ids, 7)
    choices = (u[:, :2] * len(OPERATIONS)).long()  # (n, 2)
    for i in range(2):
        x = _recolour(x, choices[:, i], u[:, 2 + i])
    x = _warp(x, choices, u[:, 2:4])
    return _cutout(x, u[:, 4:7])


def crop(
    x: Tensor, ids: Tensor, address: Address, *, kind: str, flips: bool = False, tokens: Tokens | None = None
) -> Tensor:
    """Images: 40 to 100 % of the area, brought to full size, mirrored if ``flips``, one operation on the values. Tables
    and texts, which have no parts side by side: as ``strong``."""
    if kind != "image":
        return strong(x, ids, address, kind=kind, flips=flips, tokens=tokens)
    return _zoomed(x, rng.uniform((*address, "crop"), ids, 7), GLOBAL, flips)


def local(
    x: Tensor, ids: Tensor, address: Address, *, kind: str, flips: bool = False, tokens: Tokens | None = None
) -> Tensor:
    """The same of 10 to 40 % of the area: a small part. Tables and texts: 60 % of features or tokens are hidden.

    Source: Caron et al., Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, NeurIPS 2020.
    """
    if kind == "text":
        return _hidden(x, rng.uniform((*address, "local tokens"), ids, x.shape[1]) < LOCAL_MASK, tokens)
    if kind == "table":
        hidden = rng.uniform((*address, "local"), ids, x.shape[1]) < LOCAL_MASK
        return x.masked_fill(hidden, 0.0) + STRONG_NOISE * rng.normal((*address, "local noise"), ids, x.shape[1])
    return _zoomed(x, rng.uniform((*address, "local"), ids, 7), LOCAL, flips)


def apply(
    name: str, x: Tensor, ids: Tensor, address: Address, *, kind: str, flips: bool, tokens: Tokens | None = None
) -> Tensor:
    """The view called ``name``: "none" (``x`` itself), "weak", "strong", "crop" or "local", or parts (`read_parts`).

    Raises:
        RecipeError: there is no such augmentation.
    """
    if name == "none":
        return x
    if name in VIEWS:
        return VIEWS[name](x, ids, address, kind=kind, flips=flips, tokens=tokens)
    for part in read_parts(name, kind):
        x = _apply_part(part, x, ids, (*address, part), kind, tokens)
    return x


#: The parts of an augmentation that a person can name, by the kind of data.
PARTS = {
    "image": ("flip", "shift", "crop", "colour", "warp", "cutout"),
    "table": ("noise", "mask"),
    "text": ("mask",),
}


def read_parts(text: str, kind: str) -> tuple[str, ...]:
    """The parts that a text such as ``flip,crop`` names, in the order in which they are applied.

    Args:
        text: Names of `PARTS`, with commas between them.
        kind: The kind of the data.

    Raises:
        RecipeError: a name is none of this kind of data, or is there twice.

    >>> read_parts("crop, flip", "image")
    ('flip', 'crop')
    """
    names, known = [name.strip() for name in text.split(",")], PARTS[kind]
    for name in names:
        if name not in known:
            raise RecipeError(
                f"no augmentation of {kind}s is called {name[:40]!r}: use one of none, weak, strong, or parts of "
                f"{', '.join(known)}, such as {','.join(known[:2])}"
            )
        if names.count(name) > 1:
            raise RecipeError(f"the augmentation {text[:60]!r} has the part {name!r} twice; leave one of them out")
    return tuple(name for name in known if name in names)


def _apply_part(part: str, x: Tensor, ids: Tensor, address: Address, kind: str, tokens: Tokens | None) -> Tensor:
    """One part of `PARTS`, with the draws of its own address."""
    if kind == "text":
        return _hidden(x, rng.uniform(address, ids, x.shape[1]) < WEAK_MASK, tokens)
    if part == "noise":
        return x + WEAK_NOISE * rng.normal(address, ids, x.shape[1])
    if part == "mask":
        return x.masked_fill(rng.uniform(address, ids, x.shape[1]) < MASKED, 0.0)
    u = rng.uniform(address, ids, 7)
    if part == "flip":
        return torch.where((u[:, 0] < 0.5).view(-1, 1, 1, 1), x.flip(3), x)
    if part == "shift":
        return _shift(x, u, False)
    if part == "crop":
        return _zoomed(x, torch.cat([torch.zeros_like(u[:, :1]), u[:, 1:]], 1), GLOBAL, False)
    if part == "colour":
        return _recolour(x, (u[:, 0] * len(RECOLOUR)).long(), u[:, 1])
    if part == "warp":
        moves = len(OPERATIONS) - len(RECOLOUR)
        return _warp(x, len(RECOLOUR) + (u[:, :2] * moves).long(), u[:, 2:4])
    return _cutout(x, u[:, :3])


def one_sided(classes: Sequence[str]) -> str:
    """The first class that is a single letter or digit, of which a mirrored image is another sign; "" without one.

    >>> one_sided(["cat", "dog"]), one_sided(["A", "B"])
    ('', 'A')
    """
    return next(
        (name for name in classes if len(sign := unicodedata.normalize("NFC", name)) == 1 and sign.isalnum()), ""
    )


VIEWS: dict[str, Callable[..., Tensor]] = {"weak": weak, "strong": strong, "crop": crop, "local": local}


def _hidden(x: Tensor, hidden: Tensor, tokens: Tokens | None) -> Tensor:
    """The rows with the tokens ``hidden`` replaced by the mask token; special tokens and padding are never hidden.

    Raises:
        RecipeError: the tokenizer has no mask token.
    """
    if tokens is None or tokens.mask is None:
        raise RecipeError(
            "the tokenizer of this model has no mask token, so that no view can hide words; give another "
            "model, or a recipe without weak and strong views"
        )
    fixed = torch.isin(x, torch.tensor(tokens.kept, dtype=x.dtype, device=x.device))
    return x.masked_fill(hidden & ~fixed, tokens.mask)


# ---- moving pixels ------------------------------------------------------------


def _reflected(start: Tensor, side: int) -> Tensor:
    """Positions ``start + 0 .. side-1``, mirrored at the borders: (n, side), int64."""
    position = (start[:, None] + torch.arange(side, device=start.device)).abs()
    return (side - 1) - ((side - 1) - position).abs()


def _shift(x: Tensor, u: Tensor, flips: bool) -> Tensor:
    """Whole-pixel shift with reflection, and a mirror for half the samples if ``flips``; one gather."""
    channels, height, width = x.shape[1:]
    limits = (int(height * SHIFT), int(width * SHIFT))
    down, right = ((u[:, i] * (2 * limits[i] + 1)).long() - limits[i] for i in range(2))
    rows, columns = _reflected(down, height), _reflected(right, width)
    if flips:
        columns = torch.where(u[:, 2:3] < 0.5, columns.flip(1), columns)
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)  # (n, pixels)
    return x.flatten(2).gather(2, index[:, None].expand(-1, channels, -1)).view_as(x)


def _signed(u: Tensor) -> Tensor:
    return 2.0 * u - 1.0


def _matrix(choice: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Each sample's drawn movement: linear part (n, 2, 2) and offset (n, 2), x before y, in half sides."""
    m = _signed(u)
    ones, zeros = torch.ones_like(m), torch.zeros_like(m)
    # tan(angle / 2) gives sine and cosine by +, *, / alone, which round alike everywhere; sin and cos do not.
    tangent = TURN * m
    cosine, sine = (1 - tangent * tangent) / (1 + tangent * tangent), 2 * tangent / (1 + tangent * tangent)

    def only(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(choice == OPERATIONS.index(name), value, otherwise)

    diagonal = only("rotate", cosine, ones)
    across = only("shear-x", SLANT * m, only("rotate", -sine, zeros))
    down = only("shear-y", SLANT * m, only("rotate", sine, zeros))
    offset = torch.stack([only("translate-x", 2 * MOVE * m, zeros), only("translate-y", 2 * MOVE * m, zeros)], 1)
    return torch.stack([diagonal, across, down, diagonal], 1).view(-1, 2, 2), offset


def _centres(side: int, x: Tensor) -> Tensor:
    """Where the pixels of a side lie, in half sides from its middle: (side,)."""
    return (2 * torch.arange(side, device=x.device) + 1) / side - 1


def _warp(x: Tensor, choices: Tensor, u: Tensor) -> Tensor:
    """Rotate, shear and translate as one affine map, for the samples that drew any; the outside is black."""
    rows = (choices >= OPERATIONS.index("rotate")).any(1).nonzero()[:, 0]
    if not len(rows):
        return x
    (a, p), (b, q) = (_matrix(choices[rows, draw], u[rows, draw]) for draw in range(2))

    def times(i: int, j: int) -> Tensor:  # a matrix product written out: batched kernels may round by batch size
        return (a[:, i, 0] * b[:, 0, j] + a[:, i, 1] * b[:, 1, j])[:, None, None]

    height, width = x.shape[2:]
    down, right = _centres(height, x)[None, :, None], _centres(width, x)[None, None, :]
    grid = [
        times(i, 0) * right
        + times(i, 1) * down
        + (a[:, i, 0] * q[:, 0] + a[:, i, 1] * q[:, 1] + p[:, i])[:, None, None]
        for i in range(2)
    ]
    # interpolation may overshoot 1 by a rounding
    warped = F.grid_sample(x[rows], torch.stack(grid, 3), mode="bilinear", align_corners=False).clamp_(0, 1)
    return x.index_copy(0, rows, warped)


def _zoomed(x: Tensor, u: Tensor, area: tuple[float, float], flips: bool) -> Tensor:
    """A part of each image, bilinearly brought to full size, after one operation on its values; ``u`` is (n, 7).

    Source: the random resized crop of Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6.
    """
    x = _recolour(x, (u[:, 0] * len(RECOLOUR)).long(), u[:, 1])
    share, aspect = (low + (high - low) * u[:, i] for i, (low, high) in ((2, area), (3, ASPECT)))
    broad, tall = (share * aspect).sqrt().clamp(max=1.0), (share / aspect).sqrt().clamp(max=1.0)
    if flips:
        broad = torch.where(u[:, 6] < 0.5, -broad, broad)
    axes = []
    for side, size, position in ((x.shape[3], broad, u[:, 4]), (x.shape[2], tall, u[:, 5])):
        axes.append(size[:, None] * _centres(side, x) + ((1 - size.abs()) * _signed(position))[:, None])  # (n, side)
    height, width = x.shape[2:]
    grid = torch.stack([axes[0][:, None, :].expand(-1, height, -1), axes[1][:, :, None].expand(-1, -1, width)], 3)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(0, 1)


def _cutout(x: Tensor, u: Tensor) -> Tensor:
    """One square of up to half the side, anywhere, clipped at the border, filled with the sample's mean."""
    height, width = x.shape[2:]
    side = (u[:, 0] * (min(height, width) // 2 + 1)).long()
    spans = []
    for axis, length in enumerate((height, width)):
        start = (u[:, 1 + axis] * length).long() - side // 2
        position = torch.arange(length, device=x.device)
        spans.append((position >= start[:, None]) & (position < (start + side)[:, None]))
    square = (spans[0][:, :, None] & spans[1][:, None, :])[:, None]  # (n, 1, height, width)
    return torch.where(square, _mean(x, (2, 3)), x)


# ---- changing values ------------------------------------------------------------


def _mean(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean to 2^-16 by integers, whose sum is the same in any order, so for any batch."""
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return (x * 65536.0).round().long().sum(axes, keepdim=True).float() / (65536.0 * count)


def _identity(x: Tensor, u: Tensor) -> Tensor:
    return x


def _autocontrast(x: Tensor, u: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high <= low  # one value only: nothing to stretch
    return torch.where(flat, x, (x - low) / torch.where(flat, 1.0, high - low))


def _brightness(x: Tensor, u: Tensor) -> Tensor:
    return x * (1 + ENHANCE * _signed(u))


def _contrast(x: Tensor, u: Tensor) -> Tensor:
    mean = _mean(x, (1, 2, 3))
    return mean + (x - mean) * (1 + ENHANCE * _signed(u))


def _sharpness(x: Tensor, u: Tensor) -> Tensor:
    """Away from, or towards, the smoothing kernel (1 1 1; 1 5 1; 1 1 1) / 13; the border stays."""
    columns = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    box = columns[..., :-2, :] + columns[..., 1:-1, :] + columns[..., 2:, :]
    inner = x[..., 1:-1, 1:-1]
    blurred = x.clone()
    blurred[..., 1:-1, 1:-1] = (box + 4 * inner) / 13
    return blurred + (x - blurred) * (1 + ENHANCE * _signed(u))


def _posterise(x: Tensor, u: Tensor) -> Tensor:
    """Keep the upper 4 to 7 of 8 bits."""
    step = torch.tensor([16.0, 8.0, 4.0, 2.0], device=x.device)[(u * 4).long()]
    return ((x * 255).round() / step).floor() * step / 255


def _solarise(x: Tensor, u: Tensor) -> Tensor:
    return torch.where(x >= u, 1 - x, x)


RECOLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterise": _posterise,
    "solarise": _solarise,
}


# An operation's number is its place here; every one from "rotate" on moves pixels.
OPERATIONS = (*RECOLOUR, "rotate", "shear-x", "shear-y", "translate-x", "translate-y")


def _recolour(x: Tensor, choice: Tensor, u: Tensor) -> Tensor:
    """Each sample's drawn operation on values, in a batch per operation; ``choice`` and ``u`` are (n,)."""
    x = x.clone()
    for number, operation in enumerate(RECOLOUR.values()):
        rows = (choice == number).nonzero()[:, 0]
        if number and len(rows):
            x[rows] = operation(x[rows], u[rows].view(-1, 1, 1, 1)).clamp_(0, 1)
    return x
