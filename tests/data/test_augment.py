"""Views: addressed draws, and every operation against Pillow, NumPy or SciPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage

from selfdistill.data import augment
from selfdistill.errors import RecipeError

ADDRESS = (0, "epoch", 3)


def picture(*shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def view(name, x, ids, address=ADDRESS, *, flips=True):
    kind = "image" if x.ndim == 4 else "table"
    name = ",".join(augment.PARTS[kind]) if name == "all parts" else name
    return augment.apply(name, x, ids, address, kind=kind, flips=flips)


@pytest.mark.parametrize("name", ["weak", "strong", "crop", "local", "all parts"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 33, 33), (3, 20, 12), (7,), (1,)])
class TestAddressing:
    """A view is a function of address and sample id."""

    def test_same_bits_in_any_batch(self, name, shape):
        """One batch, halves in another order, and single samples: equal to the last bit."""
        x, ids = picture(61, *shape), torch.arange(61) * 7 + 3
        whole = view(name, x, ids)
        order = torch.randperm(61, generator=torch.Generator().manual_seed(2))
        for rows in [*order.split(23), *order.split(1)]:
            assert view(name, x[rows], ids[rows]).equal(whole[rows])

    def test_other_addresses_and_ids_look_different(self, name, shape):
        x, ids = picture(1, *shape).expand(64, *shape), torch.arange(64)
        whole = view(name, x, ids)
        assert not whole.equal(view(name, x, ids, (0, "epoch", 4)))
        assert len({tuple(row.flatten().tolist()) for row in whole}) > 12

    def test_input_is_left_alone(self, name, shape):
        x = picture(40, *shape)
        before = x.clone()
        view(name, x, torch.arange(40))
        assert x.equal(before)


def test_same_bits_on_two_threads():
    """A large image alone is summed by two threads, in a batch by one: a sum of floats would differ."""
    threads, x, u = torch.get_num_threads(), picture(24, 3, 128, 128), picture(24, 1, 1, 1)
    torch.set_num_threads(2)
    try:
        whole = augment.RECOLOUR["contrast"](x, u)
        alone = [augment.RECOLOUR["contrast"](x[i : i + 1], u[i : i + 1]) for i in range(24)]
    finally:
        torch.set_num_threads(threads)
    assert torch.cat(alone).equal(whole)


def test_none_is_the_input_itself():
    x = picture(2, 1, 8, 8)
    assert view("none", x, torch.arange(2)) is x


def test_unknown_view_names_the_known():
    with pytest.raises(RecipeError, match="'stong': use one of none, weak, strong"):
        view("stong", picture(2, 1, 8, 8), torch.arange(2))


@pytest.mark.parametrize("flips", [True, False])
@pytest.mark.parametrize("side", [8, 28])
def test_weak_is_a_reflected_shift_and_a_mirror(side, flips):
    """Each result is one of NumPy's reflected crops, all of them occur, and mirrors only where allowed."""
    reach, image = side // 8, picture(1, 3, side, side)
    padded = np.pad(image[0].numpy(), ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    candidates = {}
    for i, j in itertools.product(range(2 * reach + 1), repeat=2):
        crop = padded[:, i : i + side, j : j + side]
        candidates[crop.tobytes()] = (i, j, False)
        candidates[np.ascontiguousarray(crop[:, :, ::-1]).tobytes()] = (i, j, True)
    count = 2000
    views = view("weak", image.expand(count, -1, -1, -1), torch.arange(count), flips=flips)
    seen = [candidates[v.numpy().tobytes()] for v in views]
    assert len(set(seen)) == (2 * reach + 1) ** 2 * (2 if flips else 1)
    assert abs(np.mean([mirrored for *_, mirrored in seen]) - (0.5 if flips else 0)) < 0.06
    assert abs(np.mean([i for i, *_ in seen]) - reach) < 0.15 * reach


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_strong_stays_in_range_and_differs_from_weak(shape):
    x, ids = picture(300, *shape), torch.arange(300)
    views = view("strong", x, ids)
    assert views.shape == x.shape
    assert views.min() >= 0
    assert views.max() <= 1
    changed = (views != view("weak", x, ids)).flatten(1).float().mean(1)
    assert (changed > 0.3).float().mean() > 0.8


@pytest.mark.parametrize(("name", "area"), [("crop", augment.GLOBAL), ("local", augment.LOCAL)])
@pytest.mark.parametrize("flips", [True, False])
def test_crops_show_a_part_of_the_area_as_scipy_samples_it(name, area, flips, monkeypatch):
    """A picture whose values are its own coordinates says where each pixel of a crop was taken from."""
    monkeypatch.setattr(augment, "_recolour", lambda x, choice, u: x)
    side, count = 24, 400
    places = (torch.arange(side).float() + 0.5) / side
    image = torch.stack([places.expand(side, side), places[:, None].expand(side, side)])[None]
    views = view(name, image.expand(count, -1, -1, -1), torch.arange(count), flips=flips)
    middle = slice(side // 4, 3 * side // 4)  # away from the border, which is repeated
    steps = [(views[:, i][:, middle, middle].diff(dim=2 - i) * side).mean((1, 2)) for i in range(2)]
    shown = steps[0].abs() * steps[1]
    assert area[0] * 0.9 < shown.min()
    assert shown.max() <= area[1] * 1.02
    assert shown.max() - shown.min() > 0.6 * (area[1] - area[0])
    assert (0.4 < (steps[0] < 0).float().mean() < 0.6) if flips else bool((steps[0] > 0).all())
    row = int(shown.argmin())
    centres = views[row][:, middle, middle].mean((1, 2)) * side - 0.5
    at = [float(centres[1]) + (np.arange(side) - (side - 1) / 2) * float(steps[1][row])]
    at.append(float(centres[0]) + (np.arange(side) - (side - 1) / 2) * float(steps[0][row]))
    theirs = ndimage.map_coordinates(image[0, 0].numpy(), np.meshgrid(*at, indexing="ij"), order=1, mode="nearest")
    assert np.abs(views[row, 0].numpy() - theirs).max() < 1e-4


@pytest.mark.parametrize("name", ["weak", "strong", "crop", "local"])
def test_flat_images_give_no_nan(name):
    for value in (0.0, 1.0):
        views = view(name, torch.full((200, 1, 8, 8), value), torch.arange(200))
        assert torch.isfinite(views).all()


# ---- operations on values, against Pillow --------------------------------------------------------------


def bytes_picture():
    values = np.random.default_rng(5).integers(20, 200, (16, 16, 3)).astype(np.uint8)
    return Image.fromarray(values), torch.from_numpy(values).permute(2, 0, 1)[None].float() / 255


def difference(ours, theirs):
    return (ours.clamp(0, 1)[0].permute(1, 2, 0) * 255 - torch.from_numpy(np.array(theirs)).float()).abs().max()


def operate(name, x, u):
    return augment.RECOLOUR[name](x, torch.tensor(u).view(1, 1, 1, 1))


@pytest.mark.parametrize("u", [0.0, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("name", ["brightness", "sharpness"])
def test_enhancing_equals_pillow(name, u):
    """Within the rounding of Pillow's bytes (its smoothed image and its blend are each rounded)."""
    pillow, ours = bytes_picture()
    factor = 1 + augment.ENHANCE * (2 * u - 1)
    theirs = getattr(ImageEnhance, name.capitalize())(pillow).enhance(factor)
    assert difference(operate(name, ours, u), theirs) <= 2.0


@pytest.mark.parametrize("u", [0.0, 0.3, 0.8])
def test_contrast_equals_pillow_on_grey(u):
    pillow, _ = bytes_picture()
    grey = pillow.convert("L")
    ours = torch.from_numpy(np.array(grey))[None, None].float() / 255
    theirs = ImageEnhance.Contrast(grey).enhance(1 + augment.ENHANCE * (2 * u - 1))
    assert difference(operate("contrast", ours, u), np.asarray(theirs)[:, :, None]) <= 2.0


def test_autocontrast_equals_pillow():
    pillow, ours = bytes_picture()
    assert difference(operate("autocontrast", ours, 0.0), ImageOps.autocontrast(pillow)) <= 1.0


@pytest.mark.parametrize("bits", [4, 5, 6, 7])
def test_posterise_equals_pillow(bits):
    pillow, ours = bytes_picture()
    theirs = ImageOps.posterize(pillow, bits)
    assert difference(operate("posterise", ours, (bits - 4) / 4 + 0.1), theirs) < 1e-3


def test_solarise_equals_pillow():
    pillow, ours = bytes_picture()
    assert difference(operate("solarise", ours, 99.5 / 255), ImageOps.solarize(pillow, 100)) < 1e-3


def test_each_sample_gets_the_operation_it_drew():
    """The batched dispatch equals one call per sample."""
    x, names = picture(70, 1, 8, 8), list(augment.RECOLOUR)
    choice, u = torch.arange(70) % len(augment.OPERATIONS), picture(70)
    result = augment._recolour(x, choice, u)
    for row in range(70):
        name = augment.OPERATIONS[int(choice[row])]
        alone = operate(name, x[row : row + 1], float(u[row])) if name in names else x[row : row + 1]
        assert result[row].equal(alone.clamp(0, 1)[0])


# ---- operations on places, against SciPy ---------------------------------------------------------------


def matrix(name, u):
    """Target pixel to source pixel, in half sides, as a 3 x 3 matrix of schoolbook trigonometry."""
    m, result = 2 * u - 1, np.eye(3)
    angle = 2 * math.atan(augment.TURN * m)
    if name == "rotate":
        result[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    elif name == "shear-x":
        result[0, 1] = augment.SLANT * m
    elif name == "shear-y":
        result[1, 0] = augment.SLANT * m
    elif name.startswith("translate"):
        result[0 if name.endswith("x") else 1, 2] = 2 * augment.MOVE * m
    return result


@pytest.mark.parametrize("first", augment.OPERATIONS[6:])
@pytest.mark.parametrize("second", augment.OPERATIONS[6:])
def test_two_movements_are_one_resampling(first, second):
    side, u = 14, (0.83, 0.27)
    x = picture(1, 1, side, side)
    choices = torch.tensor([[augment.OPERATIONS.index(first), augment.OPERATIONS.index(second)]])
    moved = augment._warp(x, choices, torch.tensor([u]))
    place = (2 * np.arange(side) + 1) / side - 1
    down, right = np.meshgrid(place, place, indexing="ij")
    source = np.einsum(
        "ij,jhw->ihw", matrix(first, u[0]) @ matrix(second, u[1]), np.stack([right, down, np.ones_like(down)])
    )
    pixels = ((source[:2] + 1) * side - 1) / 2  # x, y
    expected = ndimage.map_coordinates(x[0, 0].numpy(), pixels[::-1], order=1, mode="grid-constant", cval=0)
    assert np.abs(moved[0, 0].numpy() - expected).max() < 1e-4


def test_the_largest_rotation_is_thirty_degrees():
    assert math.degrees(2 * math.atan(augment.TURN)) == pytest.approx(30, abs=0.05)


def test_unmoved_samples_are_not_resampled():
    x = picture(5, 3, 9, 9)
    choices = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 6], [7, 0]])
    moved = augment._warp(x, choices, torch.full((5, 2), 0.9))
    assert [m.equal(o) for m, o in zip(moved, x, strict=True)] == [True, True, True, True, False]


def test_cutout_is_one_square_of_the_mean():
    """Of at most half the side, a full square inside the image, cut off at its border."""
    x = picture(400, 3, 16, 16)
    u = torch.rand(400, 3, generator=torch.Generator().manual_seed(3))
    sides = set()
    for before, after in zip(x, augment._cutout(x, u), strict=True):
        changed = (before != after).any(0)
        rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
        height, width = len(rows), len(columns)
        sides.add(max(height, width))
        if not height:
            continue
        block = after[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert changed.sum() == height * width
        assert (block - before.mean((1, 2))[:, None, None]).abs().max() < 1e-4
        touches = rows[0] == 0 or rows[-1] == 15 or columns[0] == 0 or columns[-1] == 15
        assert height == width or touches
    assert sides == set(range(9))


# ---- tables --------------------------------------------------------------------------------------------


def test_table_noise_has_the_stated_size():
    x = torch.full((4000, 10), 5.0)
    noise = view("weak", x, torch.arange(4000)) - x
    assert abs(float(noise.mean())) < 0.003
    assert float(noise.std()) == pytest.approx(0.1, abs=0.003)


def test_strong_table_masks_a_fifth():
    x = torch.full((4000, 10), 50.0)
    views = view("strong", x, torch.arange(4000))
    masked = views < 25
    assert float(masked.float().mean()) == pytest.approx(0.2, abs=0.01)
    assert float(masked.float().mean(0).std()) < 0.02
    assert float(views[masked].std()) == pytest.approx(0.2, abs=0.01)
    assert float((views[~masked] - 50).std()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("part", augment.PARTS["image"])
def test_each_part_of_images_does_what_its_name_says(part):
    """A part changes most images and keeps their shape and range; a flip is exactly a mirrored image."""
    x, ids = picture(64, 3, 16, 16), torch.arange(64)
    shown = view(part, x, ids)
    assert shown.shape == x.shape
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    changed = (shown != x).flatten(1).any(1)
    assert changed.float().mean() > 0.3
    if part == "flip":
        assert 0.2 < changed.float().mean() < 0.8
        assert shown[changed].equal(x[changed].flip(3))
    if part in ("flip", "shift"):  # pixels move and no value is made
        assert set(shown.unique().tolist()) <= set(x.unique().tolist())
