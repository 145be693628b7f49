"""Hidden patches: blocks against BEiT's algorithm as a loop, shares, and what is told of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from selfdistill import rng
from selfdistill.errors import RecipeError
from selfdistill.models import patch_masking

ADDRESS = (0, "epoch", 3)


def picture(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def one_by_one(wanted: float, height: int, width: int, sample: int) -> np.ndarray:
    """BEiT's algorithm for one image, patch by patch, with the numbers that its address gives."""
    mask, count, turn = np.zeros((height, width), bool), 0, 0
    while count < wanted:
        added = 0
        for _ in range(10):
            u = rng.uniform((*ADDRESS, "block", turn), torch.tensor([sample]), 4)[0].tolist()
            turn += 1
            least = (min(height, width) // 3) ** 2
            area = least + (wanted - count - least) * u[0]
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * u[1])
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (h < height and w < width):
                continue
            top, left = int(u[2] * (height - h + 1)), int(u[3] * (width - w + 1))
            cells = {(i, j) for i in range(top, top + h) for j in range(left, left + w) if not mask[i, j]}
            if 0 < len(cells) <= wanted - count:
                for cell in cells:
                    mask[cell] = True
                added = len(cells)
                break
        if not added:
            break
        count += added
    return mask


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (4, 4), (6, 10), (1, 5)])
def test_blocks_are_those_of_the_loop(grid: tuple[int, int]) -> None:
    ids = torch.arange(40) * 7
    wanted = rng.uniform(("wanted",), ids, 1)[:, 0] * 0.6 * grid[0] * grid[1]
    found = patch_masking.blocks(wanted, grid, ids, ADDRESS)
    for row, share, sample in zip(found, wanted.tolist(), ids.tolist(), strict=True):
        np.testing.assert_array_equal(row.numpy(), one_by_one(share, *grid, sample))
    assert bool((found.sum((1, 2)) <= wanted).all())
    assert patch_masking.blocks(wanted[9:11], grid, ids[9:11], ADDRESS).equal(found[9:11])


@pytest.mark.parametrize(("side", "least"), [(14, 0.28), (7, 0.26), (4, 0.22)])
def test_about_the_share_is_hidden_in_blocks(side: int, least: float) -> None:
    """Three tenths at most, little less, no side more than another, and hidden patches have hidden neighbours."""
    ids = torch.arange(500)
    found = patch_masking.blocks(torch.full((500,), 0.3 * side * side), (side, side), ids, ADDRESS).float()
    assert least < found.mean() <= 0.3
    where = found.mean(0)  # blocks reach a corner seldom
    assert where.min() > 0
    assert (where.mean(0) - where.mean(0).flip(0)).abs().max() < 0.06
    assert (where.mean(1) - where.mean(1).flip(0)).abs().max() < 0.06
    beside = torch.nn.functional.pad(found, (1, 1, 1, 1))
    near = torch.stack([beside[:, :-2, 1:-1], beside[:, 2:, 1:-1], beside[:, 1:-1, :-2], beside[:, 1:-1, 2:]])
    alone = found * (near.amax(0) == 0)
    assert alone.sum() / found.sum() < 0.25
    evenly = torch.rand(500, side, side, generator=torch.Generator().manual_seed(0)) < 0.3
    neighbours = float((near.sum(0) * found).sum() / found.sum())
    assert neighbours > 1.3 * 4 * evenly.float().mean() * (side - 1) / side


@pytest.mark.parametrize(("shape", "patch"), [((1, 28, 28), 4), ((3, 32, 32), 4), ((1, 8, 8), 2), ((3, 12, 20), 2)])
def test_hidden_patches_are_whole_and_told_again(shape: tuple[int, int, int], patch: int) -> None:
    x, ids = picture(50, *shape), torch.arange(50)
    hidden = patch_masking.hide(x, ids, ADDRESS, 0.3, kind="image", spread=0.2)
    gone = hidden == patch_masking.HIDDEN
    assert hidden[~gone].equal(x[~gone])
    cells = gone.unfold(2, patch, patch).unfold(3, patch, patch).permute(0, 2, 3, 1, 4, 5).flatten(3)
    assert cells.any(3).equal(cells.all(3))
    assert patch_masking.hidden_patches(hidden, (cells.shape[1], cells.shape[2])).equal(cells.all(3))
    assert len({tuple(row) for row in cells.all(3).flatten(1).tolist()}) > 10
    assert patch_masking.hide(x[7:9], ids[7:9], ADDRESS, 0.3, kind="image", spread=0.2).equal(hidden[7:9])


def test_shares_are_spread_and_some_images_are_whole() -> None:
    ids = torch.arange(2000)
    x = torch.zeros(2000, 1, 28, 28)
    shares = (
        patch_masking.hide(x, ids, ADDRESS, 0.3, kind="image", spread=0.2, unmasked=0.4)
        .eq(-1.0)
        .flatten(1)
        .float()
        .mean(1)
    )
    assert abs(float((shares == 0).float().mean()) - 0.4) < 0.04
    seen = shares[shares > 0]
    assert float(seen.max()) <= 0.5
    assert float(seen.max()) > 0.45
    assert float(seen.min()) < 0.12
    assert abs(float(seen.mean()) - 0.28) < 0.02


def test_patches_of_a_table_are_refused() -> None:
    with pytest.raises(RecipeError, match="patches are of images"):
        patch_masking.hide(picture(2, 5), torch.arange(2), ADDRESS, 0.3, kind="table")
