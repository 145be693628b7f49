"""Copies of rows and groups: equal inputs share a split and a fold, are counted, and are listed where labels differ."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfdistill.data import dataset, frames, splits
from selfdistill.data.copies import conflict_text, connect, near_copies, numbered, row_groups
from selfdistill.errors import DataError
from selfdistill.training.cross_fitting import parts as folds_of

PARTS = ("labelled", "unlabelled", "audit", "test")


def copied(rows=80, times=5, seed=0, values=False):
    """Rows by chance, each several times, with labels by chance; in a random order."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 4, generator=g)
    y = torch.rand(rows, generator=g) if values else torch.randint(0, 2, (rows,), generator=g)
    order = torch.randperm(rows * times, generator=g)
    return x.repeat(times, 1)[order], y.repeat(times)[order]


def table(path, rows=60, times=3):
    x, y = copied(rows, times)
    frame = pd.DataFrame(x.numpy(), columns=list("abcd"))
    frame["kind"] = np.where(x[:, 0] > 0, "p", "q")
    frame["t"] = np.where(y == 1, "yes", "no")
    frame.to_csv(path, index=False)
    return str(path)


def divided(data, groups):
    """The groups that lie in more than one split, unlabelled rows among those that teach."""
    sides = [
        set(groups[np.asarray(ids)].tolist())
        for ids in (
            np.concatenate([np.asarray(data.labelled), np.asarray(data.unlabelled)]),
            np.asarray(getattr(data, "audit", [])),
            np.asarray(data.test),
        )
    ]
    return (sides[0] & sides[1]) | (sides[0] & sides[2]) | (sides[1] & sides[2])


@pytest.mark.parametrize("values", [False, True], ids=["classes", "values"])
@pytest.mark.parametrize("labels", [None, 20])
def test_copies_share_a_split_whatever_the_seed(values, labels):
    x, y = copied(values=values)
    groups = numbered(x[:, 0].numpy())
    for seed in range(5):
        data = dataset.from_tensors(x, y, seed=seed, labels=labels)
        assert not divided(data, groups)
        assert 60 <= len(data.test) <= 85
        assert len(data.audit)
        assert (data.copies.rows, data.copies.distinct, data.copies.conflicting) == (400, 80, 0)
    assert data.describe()["copies"] == {"rows": 400, "distinct": 80}
    assert "400 rows are copies" in data.note


def test_images_and_tables_for_learners_obey_the_same_rule(tmp_path):
    x, y = copied()
    pixels = (x.view(-1, 1, 2, 2).sigmoid() * 255).round().to(torch.uint8)
    data = dataset.from_tensors(pixels, y)
    assert not divided(data, numbered(pixels[:, 0, 0, 0].numpy().astype(np.int64) * 256 + pixels[:, 0, 0, 1].numpy()))
    frame = frames.load(table(tmp_path / "d.csv"), target="t")
    rows = {name: set(part.features["a"]) for name, part in frame.parts.items()}
    assert not rows["labelled"] & rows["test"]
    assert len(frame.test) == 36
    assert frame.describe()["copies"]["rows"] == 180


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=12, max_size=40), st.lists(st.integers(0, 6), min_size=40, max_size=40))
def test_rows_that_are_connected_have_one_number(copies, groups):
    """Against a plain search through the graph of rows."""
    copies, groups = numbered(np.array(copies)), groups[: len(copies)]
    numbers = connect(copies, groups)
    reached, wait = {0}, [0]
    while wait:
        i = wait.pop()
        near = {k for k in range(len(copies)) if copies[k] == copies[i] or groups[k] == groups[i]} - reached
        reached |= near
        wait += near
    assert {k for k in range(len(copies)) if numbers[k] == numbers[0]} == reached


def test_without_copies_the_draw_is_that_of_rows():
    """A group of one row is drawn as the row: splits of data without copies stay what they were."""
    y = torch.arange(600) % 3
    for reserve, count in ((0, 100), (1, 598), (2, 7)):
        by_group = splits._draw_groups(torch.arange(600), y, torch.arange(600), count, (3, "t"), reserve)
        assert by_group.equal(splits.draw(torch.arange(600), y, count, (3, "t"), reserve=reserve))


def test_the_digits_have_no_copies_and_keep_their_splits():
    digits = dataset.load("digits")
    assert digits.groups is None
    assert "copies" not in digits.describe()
    assert len(digits.test) == 500


def test_an_unlabelled_copy_of_a_judged_row_does_not_teach():
    x = torch.arange(200.0).view(100, 2)
    y = torch.cat([torch.arange(50) % 2, torch.full((50,), -1)])
    data = dataset.from_tensors(torch.cat([x[:50], x[:50]]), y)
    assert not divided(data, np.arange(100) % 50)
    assert data.copies.left_out == len(data.audit) + len(data.test)
    assert f"{data.copies.left_out} rows are in no split" in data.note


def test_copies_with_different_labels_are_listed():
    x = torch.arange(100.0)[:, None].repeat(1, 2)
    y = torch.arange(100) % 2
    x[7], x[20], x[30] = x[2], x[2], x[2]
    y[30] = -1
    data = dataset.from_tensors(x, y, classes=["no", "yes"])
    (conflict,) = data.copies.conflicts
    assert (conflict.rows, conflict.labels) == ([3, 8, 21], ["no", "yes", "no"])
    assert conflict_text(conflict._asdict()) == "rows 3 (label 'no') and 8 (label 'yes')"
    json.dumps(data.describe())


def test_a_given_test_split_is_taken_and_its_copies_are_counted():
    x, y = copied(rows=40, times=2)
    groups = numbered(x[:, 0].numpy())
    data = dataset.from_tensors(x, y, test=torch.arange(30))
    assert data.test.tolist() == list(range(30))
    outside = set(groups[30:].tolist())
    assert data.copies.across.tolist() == [i for i in range(30) if groups[i] in outside]
    teach, audit = set(groups[data.labelled].tolist()), set(groups[data.audit].tolist())
    assert not teach & audit


def test_a_class_of_copies_of_one_row_is_too_rare():
    x, y = torch.arange(40.0)[:, None].repeat(1, 2), torch.arange(40) % 2
    x[y == 1] = 1.0
    with pytest.raises(
        DataError, match=r"class '1' has too few labelled rows to split that are not equal .*\(1, needed 3"
    ):
        dataset.from_tensors(x, y)


def test_folds_of_labels_keep_copies_together():
    y = torch.arange(40) % 2
    groups = torch.arange(40) // 4 * 2 + y
    fold = folds_of(y, 5, 0, groups=groups)
    assert all(len(fold[groups == g].unique()) == 1 for g in groups.unique())
    assert fold.bincount().tolist() == [8] * 5 or len(fold.unique()) == 5


def test_the_latest_rows_test_and_the_earliest_teach():
    x, time = torch.arange(200.0).view(100, 2), np.random.default_rng(0).permutation(100) // 2.0
    rows = splits.LabelColumn("mine", torch.arange(100) % 2, ("0", "1"))
    groups = row_groups(x.numpy(), time=time)
    made = splits.make_splits(rows, test=0.2, audit=0.15, groups=groups)
    latest = [time[np.asarray(ids)] for ids in (made.labelled, made.audit, made.test)]
    assert latest[0].max() < latest[1].min()
    assert latest[1].max() < latest[2].min()
    assert [len(ids) for ids in latest] == [68, 12, 20]


def test_a_group_stays_in_the_split_where_it_begins():
    x, time = torch.arange(200.0).view(100, 2), np.arange(100.0)
    rows = splits.LabelColumn("mine", torch.arange(100) % 2, ("0", "1"))
    owner = np.where(np.arange(100) % 10 == 0, 0, np.arange(100))
    groups = row_groups(x.numpy(), owner, time)
    made = splits.make_splits(rows, test=0.2, audit=0.15, groups=groups)
    assert not divided(made, owner)
    assert {10, 60} <= set(made.labelled.tolist())
    assert 90 not in made.test
    assert splits.report_copies(rows, groups, made).left_out == 3
    same = row_groups(x.numpy(), time=np.zeros(100))
    with pytest.raises(DataError, match="have one time"):
        splits.make_splits(rows, test=0.2, audit=0.15, groups=same)


def photo(seed, side=48):
    """A smooth image of a few waves."""
    random = np.random.default_rng(seed)
    grid = np.mgrid[0:side, 0:side] / side
    waves = np.zeros((side, side))
    for k in range(1, 7):
        waves = waves + np.sin(np.tensordot(random.normal(size=2) * 3 * k, grid, 1) + random.uniform(0, 6)) / k
    shades = (waves - waves.min()) / (waves.max() - waves.min()) * 255
    return Image.fromarray(shades.astype(np.uint8)).convert("RGB")


def test_equal_pixels_share_a_split_and_near_copies_are_told(tmp_path):
    for i in range(24):
        folder = tmp_path / "ab"[i % 2]
        folder.mkdir(exist_ok=True)
        photo(i).save(folder / f"{i}.png")
        if i < 8:
            photo(i).save(folder / f"{i}-again.bmp")
        if i >= 16:
            photo(i).save(folder / f"{i}-small.jpg", quality=80)
    photo(0).save(tmp_path / "b" / "wrong.webp", lossless=True)
    data = dataset.load(str(tmp_path))
    assert data.digests is not None
    _, codes = np.unique(data.digests.numpy(), axis=0, return_inverse=True)
    assert not divided(data, codes.reshape(-1))
    assert (data.copies.rows, data.copies.distinct) == (17, 8)
    (conflict,) = data.copies.conflicts
    assert sorted(conflict.labels) == ["a", "a", "b"]
    assert any(name.endswith("wrong.webp") for name in conflict.names)
    side = {int(i): name for name in PARTS for i in getattr(data, name)}
    names = {name: i for i, name in enumerate(data.names)}
    pairs = [(tmp_path / "ab"[i % 2] / f"{i}.png", tmp_path / "ab"[i % 2] / f"{i}-small.jpg") for i in range(16, 24)]
    pairs = [pair for pair in pairs if len({side[names[str(path)]] for path in pair}) == 2]
    assert data.copies.nearly >= len(pairs) > 0
    assert all(side[names[one]] != side[names[other]] for one, other in data.copies.near)
    assert "are nearly those of another split" in data.note
    assert "remove one of each, or keep them together by --groups" in data.note
    assert all("small" in one or "small" in other for one, other in data.copies.near)


def test_near_copies_are_found_as_by_comparing_all_pairs():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 256, (300, 32)).astype(np.uint8)
    for i in range(40):
        hashes[100 + i] = hashes[i]
        for bit in random.choice(256, i % 12, replace=False):
            hashes[100 + i, bit // 8] ^= 1 << (bit % 8)
    part = torch.arange(300) % 3 - 1
    bits = np.unpackbits(hashes, axis=1).astype(int)
    near = [
        [i, k]
        for i in range(300)
        for k in range(i + 1, 300)
        if (bits[i] != bits[k]).sum() <= min(8, (bits[i] | bits[k]).sum() / 10)
        and part[i] != part[k]
        and min(part[i], part[k]) >= 0
    ]
    rows, pairs = near_copies(torch.from_numpy(hashes), part, most=1000)
    assert pairs.tolist() == near
    assert rows.tolist() == sorted({i for pair in near for i in pair})
    assert near_copies(torch.from_numpy(hashes), part, most=3)[1].tolist() == near[:3]


def test_letters_of_fonts_are_no_copies_of_other_letters(tmp_path):
    """Small glyphs have little but paper in them; only those that look alike are told."""
    from PIL import Image, ImageDraw, ImageFont

    from selfdistill.data.image_store import Picture, gradient_hash

    random, hashes, letters = np.random.default_rng(107), [], []
    for letter in "CEFGHILOT":
        for _ in range(12):  # sizes, places and slants stand for fonts, which a machine may not have
            image = Image.new("RGB", (32, 32), "white")
            font = ImageFont.load_default(int(random.integers(18, 26)))
            place = (int(random.integers(4, 9)), int(random.integers(0, 5)))
            ImageDraw.Draw(image).text(place, letter, fill="black", font=font, stroke_width=int(random.integers(0, 2)))
            slant = (1, float(random.uniform(-0.2, 0.2)), 0, 0, 1, 0)
            image = image.transform((32, 32), Image.Transform.AFFINE, slant, fillcolor="white")
            hashes.append(np.frombuffer(gradient_hash(Picture(image, False, False)), np.uint8))
            letters.append(letter)
    bits = np.unpackbits(np.stack(hashes), axis=1).astype(int)
    few = (bits[:, None] != bits[None]).sum(2) <= 8
    other = np.array(letters)[:, None] != np.array(letters)[None]
    assert (few & other).any(), "few bits alone would call different letters copies"
    _, pairs = near_copies(torch.from_numpy(np.stack(hashes)), torch.arange(len(hashes)) % 2, most=10_000)
    assert not [(letters[i], letters[k]) for i, k in pairs.tolist() if letters[i] != letters[k]]
