"""Patch masking: blocks of image patches hidden from the student, a function of address and sample id alone.

The blocks are those of BEiT (Bao, Dong, Piao and Wei, ICLR 2022, algorithm 1, arXiv:2106.08254), as iBOT draws them.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import rng
from ..errors import RecipeError
from .networks import patch_of

Address = tuple[int | str, ...]

HIDDEN = -1.0  # what no pixel is: who reads images with hidden patches looks for it


ASPECT = 0.3  # of a block, height to breadth: at least this, at most its inverse


TRIES = 10  # blocks in a row that find no place, and no more are tried


def hide(
    x: Tensor, ids: Tensor, address: Address, share: float, *, kind: str, spread: float = 0.0, unmasked: float = 0.0
) -> Tensor:
    """Images with blocks of their patches (`networks.patch_of` a side) filled with `HIDDEN`.

    A share ``unmasked`` of the images is left as it is; of each other one about a share drawn evenly from ``share`` -
    ``spread`` to ``share`` + ``spread`` is hidden.

    Raises:
        RecipeError: the rows are no images.

    >>> hide(torch.rand(3, 1, 8, 8), torch.arange(3), (0,), 0.3, kind="image").eq(HIDDEN).sum((1, 2, 3)).tolist()
    [16, 16, 16]
    """
    if kind != "image":
        raise RecipeError(f"patches are of images, and these rows are a {kind}; give a method without hidden patches")
    patch, (height, width) = patch_of(*x.shape[2:]), x.shape[2:]
    grid = (height // patch, width // patch)
    u = rng.uniform((*address, "share"), ids, 2)
    target = (share + spread * (2.0 * u[:, 1] - 1.0)) * (u[:, 0] >= unmasked) * (grid[0] * grid[1])
    hidden = blocks(target, grid, ids, address)[:, None]
    return x.masked_fill(hidden.repeat_interleave(patch, 2).repeat_interleave(patch, 3), HIDDEN)


def blocks(target: Tensor, grid: tuple[int, int], ids: Tensor, address: Address) -> Tensor:
    """Blocks laid one upon the other until ``target`` patches (rows,) are hidden: bool (rows, *grid).

    A block's area is uniform between (shorter side // 3)^2 and what is still wanted, the logarithm of height to breadth
    uniform too. It is smaller than the grid both ways, hides something new and no more than is wanted, or another one
    is drawn; after ten in vain a row stays as it is. So a few patches may be missing, and none is too many.

    >>> blocks(torch.tensor([0.0, 40.0]), (14, 14), torch.arange(2), (0,)).sum((1, 2)).tolist()[0]
    0
    """
    (height, width), least = grid, (min(grid) // 3) ** 2
    hidden = torch.zeros(len(ids), height, width, dtype=torch.bool, device=ids.device)
    vain, draw = torch.zeros_like(ids), 0
    while True:
        remaining = target - hidden.sum((1, 2))
        going = (remaining > 0) & (vain < TRIES)
        if not bool(going.any()):
            return hidden
        u = rng.uniform((*address, "block", draw), ids, 4).double()
        area = least + (remaining - least) * u[:, 0]
        aspect = torch.exp(math.log(ASPECT) * (1.0 - 2.0 * u[:, 1]))
        tall, broad = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
        spans = [_stretch(*span) for span in ((u[:, 2], tall, height), (u[:, 3], broad, width))]
        block = spans[0][:, :, None] & spans[1][:, None, :]
        gain = (block & ~hidden).sum((1, 2))
        accepted = going & (tall < height) & (broad < width) & (gain > 0) & (gain <= remaining)
        hidden |= block & accepted[:, None, None]
        vain, draw = torch.where(accepted, 0, vain + 1), draw + 1


def _stretch(u: Tensor, length: Tensor, side: int) -> Tensor:
    """A mask (rows, side) of an interval of a given length at a random position."""
    start = (u * (side - length + 1)).floor()
    position = torch.arange(side, device=u.device)
    return (position >= start[:, None]) & (position < (start + length)[:, None])


def hidden_patches(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A mask of the patches of images (rows, channels, height, width) with a hidden pixel: (rows, *grid)."""
    return F.adaptive_max_pool2d(x.eq(HIDDEN).any(1, keepdim=True).float(), grid)[:, 0] > 0
