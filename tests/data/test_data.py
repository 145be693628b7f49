"""The data door: splits, label removal and noise, tensors, the card of a model, and every refusal."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from selfdistill.data import dataset, images, splits
from selfdistill.data.image_store import ImageStore
from selfdistill.errors import DataError
from selfdistill.views import View, Views
from tests.data.test_images import pets, write_idx

TRUTH = torch.from_numpy(load_digits().target)


def parts(loaded):
    return [loaded.labelled, loaded.unlabelled, loaded.audit, loaded.test]


def counts(y, classes=10):
    return torch.bincount(y, minlength=classes).tolist()


# ---- shares --------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 20))
def test_allocation_is_the_closest_to_proportional(sizes, count):
    """Against all ways to share: none of the same sum is nearer in squares to the exact proportion."""
    total = sum(sizes)
    count = min(count, total)
    shares = splits.allocate(sizes, count)
    assert sum(shares) == count
    assert all(0 <= share <= size for share, size in zip(shares, sizes, strict=True))

    def distance(candidate):
        return sum((c * total - count * s) ** 2 for c, s in zip(candidate, sizes, strict=True))

    others = itertools.product(*(range(size + 1) for size in sizes))
    assert distance(shares) == min(distance(o) for o in others if sum(o) == count)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=6),
    st.integers(0, 40),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_allocation_keeps_its_bounds(sizes, count, least, keep):
    shares = splits.allocate(sizes, count, least=least, reserve=keep)
    most = [max(size - keep, 0) for size in sizes]
    low = [min(least, top) for top in most]
    assert all(a <= share <= b for a, share, b in zip(low, shares, most, strict=True))
    assert sum(shares) == min(max(count, sum(low)), sum(most))


# ---- digits --------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_unit_range():
    digits = dataset.load("digits")
    rows = digits.rows(torch.arange(1797))
    assert rows.dtype == torch.float32
    assert rows[:, 0].equal(torch.from_numpy(load_digits().images / 16).float())
    assert digits.x.dtype == torch.uint8
    assert digits.y.equal(TRUTH)
    assert (digits.kind, digits.task, digits.augment, digits.flips) == ("image", "classify", "none", False)


@pytest.mark.parametrize("options", [{}, {"labels": 100}, {"labels": 300, "label_noise": 0.3}, {"audit": 0.1}])
def test_every_row_is_in_exactly_one_split(options):
    digits = dataset.load("digits", seed=4, **options)
    assert torch.cat(parts(digits)).sort().values.equal(torch.arange(1797))


def tensors(folder):
    y = torch.arange(60) % 3
    y[50:] = -1
    mask = torch.arange(60) % 7 == 1
    mask[50:] = False
    given = dataset.from_tensors(torch.rand(60, 2), y, test=mask, audit=torch.tensor([9, 2, 30]))
    return [
        given,
        dataset.from_tensors(torch.rand(60, 2), y, labels=9),
        dataset.from_tensors(torch.rand(60, 2), y / 2.0),
    ]


def digits_and_pictures(folder):
    pets(folder / "more")
    return [dataset.load("digits"), dataset.load("digits", labels=50, label_noise=0.2, unlabelled=str(folder / "more"))]


def folders(folder):
    pets(folder / "flat")
    for part in ("train", "val", "test"):
        pets(folder / "split" / part)
    return [dataset.load(str(folder / "flat"), labels=4), dataset.load(str(folder / "split"))]


def idx_files(folder):
    write_idx(folder / "letters")
    return [dataset.load(str(folder / "letters"), labels=20), dataset.load(str(folder / "letters"), audit=0.3)]


def table(folder):
    rows = [f"{i},{i * i % 7},{'' if i % 9 == 0 else 'uvw'[i % 3]}" for i in range(80)]
    (folder / "rows.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    return [
        dataset.load(str(folder / "rows.csv"), target="y", labels=12),
        dataset.load(str(folder / "rows.csv"), target="a"),
    ]


@pytest.mark.parametrize("source", [tensors, digits_and_pictures, folders, idx_files, table])
def test_no_sample_is_in_two_splits_and_every_one_in_one(tmp_path, source):
    """Whatever the rows come from: the audit and the test never teach."""
    for loaded in source(tmp_path):
        assert sorted(torch.cat(parts(loaded)).tolist()) == list(range(len(loaded.y)))
        assert min(len(loaded.labelled), len(loaded.audit), len(loaded.test)) > 0
        known = torch.cat([loaded.labelled, loaded.audit, loaded.test])
        assert splits.has_label(loaded.y).nonzero()[:, 0].equal(known.sort().values)


def test_splits_are_stratified():
    """Every class has its share in every split, to less than one row."""
    digits = dataset.load("digits")
    assert [len(p) for p in parts(digits)] == [1097, 0, 200, 500]
    everyone = counts(TRUTH)
    for part in (digits.test, digits.audit):
        for got, of in zip(counts(TRUTH[part]), everyone, strict=True):
            assert abs(got - len(part) * of / 1797) < 1.01


def test_test_rows_do_not_depend_on_the_seed_and_the_others_do():
    one, two = dataset.load("digits", seed=1), dataset.load("digits", seed=2)
    assert one.test.equal(two.test)
    assert not one.audit.equal(two.audit)
    assert one.fingerprint != two.fingerprint
    assert one.fingerprint == dataset.load("digits", seed=1).fingerprint


@pytest.mark.parametrize("labels", [10, 11, 100, 1097])
def test_labels_keep_every_class_and_hide_the_rest(labels):
    digits = dataset.load("digits", labels=labels)
    assert len(digits.labelled) == labels
    assert min(counts(digits.y[digits.labelled])) >= 1
    assert max(counts(digits.y[digits.labelled])) <= labels / 10 + 1.5 + labels / 100
    assert len(digits.audit) == min(labels, 200), "the audit holds no more labels than training"
    assert min(counts(digits.y[digits.audit])) >= 1
    assert (digits.y[digits.unlabelled] == -1).all()
    assert digits.y[digits.labelled].equal(TRUTH[digits.labelled])


@pytest.mark.parametrize(("labels", "noise"), [(None, 0.4), (100, 0.25), (33, 0.5)])
def test_noise_is_exact_symmetric_and_spares_the_test(labels, noise):
    digits = dataset.load("digits", labels=labels, label_noise=noise)
    for part in (digits.labelled, digits.audit):
        assert digits.noisy[part].sum() == round(noise * len(part))
    known = torch.cat([digits.labelled, digits.audit])
    assert (digits.y != TRUTH)[known].equal(digits.noisy[known]), "a marked label is wrong, all others right"
    assert digits.y[digits.test].equal(TRUTH[digits.test])
    assert not digits.noisy[digits.test].any()
    assert not digits.noisy[digits.unlabelled].any()


def test_wrong_labels_are_even_over_the_other_classes():
    """Chi-square over the nine steps from true to wrong: below the 99.9 % point of 8 degrees of freedom."""
    digits = dataset.load("digits", label_noise=0.9)
    steps = counts(((digits.y - TRUTH) % 10)[digits.noisy])
    expected = sum(steps) / 9
    assert steps[0] == 0
    assert sum((step - expected) ** 2 / expected for step in steps[1:]) < 26.1


def test_noise_differs_by_seed():
    one, two = (dataset.load("digits", label_noise=0.4, seed=s) for s in (0, 1))
    assert not one.y.equal(two.y)


def test_description_is_json_and_counts_true():
    told = json.loads(json.dumps(dataset.load("digits", labels=100, label_noise=0.4).describe()))
    assert told["rows"] == {"labelled": 100, "unlabelled": 1097, "audit": 100, "test": 500}
    assert told["noise"] == 0.4
    assert told["shape"] == [1, 8, 8]
    assert len(told["fingerprint"]) == 64


def test_fingerprint_sees_inputs_labels_and_splits():
    x, y = torch.rand(60, 3), torch.arange(60) % 2
    base = dataset.from_tensors(x, y).fingerprint
    changed = x.clone()
    changed[7, 1] += 1e-6
    flipped = y.clone()
    flipped[:2] = flipped[:2].flip(0)
    others = [
        dataset.from_tensors(changed, y),
        dataset.from_tensors(x, flipped),
        dataset.from_tensors(x, y, seed=1),
        dataset.from_tensors(x, y, ["a", "b"]),
    ]
    assert base == dataset.from_tensors(x.clone(), y.clone()).fingerprint
    assert len({base, *(other.fingerprint for other in others)}) == 5


# ---- tensors -------------------------------------------------------------------------------------------


def test_tensors_of_values_are_regression():
    y = torch.rand(100)
    y[::4] = torch.nan
    loaded = dataset.from_tensors(torch.rand(100, 2), y, labels=20)
    assert (loaded.task, loaded.classes, loaded.y.dtype) == ("regress", (), torch.float32)
    assert len(loaded.labelled) == 20
    assert len(loaded.test) == 15
    assert torch.cat(parts(loaded)).sort().values.equal(torch.arange(100))
    assert torch.isnan(loaded.y[loaded.unlabelled]).all()
    assert torch.isfinite(loaded.y[torch.cat([loaded.labelled, loaded.audit, loaded.test])]).all()


def test_tensors_with_their_own_test_rows_and_no_audit():
    own = torch.tensor([5, 3, 8])
    loaded = dataset.from_tensors(torch.rand(40, 2), torch.arange(40) % 2, test=own, audit=0.0)
    assert loaded.test.tolist() == [3, 5, 8]
    assert len(loaded.audit) == 0
    assert len(loaded.labelled) == 37


@pytest.mark.parametrize("audit", [0.2, torch.arange(40) >= 34])
def test_a_mask_means_the_rows_where_it_is_true(audit):
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[3, 5, 8]] = True
    x, y = torch.rand(40, 2), torch.arange(40) % 2
    loaded = dataset.from_tensors(x, y, test=mask, audit=audit)
    assert loaded.test.tolist() == [3, 5, 8]
    if isinstance(audit, torch.Tensor):
        assert loaded.audit.tolist() == list(range(34, 40))
        assert loaded.fingerprint == dataset.from_tensors(x, y, test=mask.nonzero()[:, 0], audit=audit).fingerprint


def test_byte_images_are_scaled_and_floating_ones_kept():
    y, byte = torch.arange(40) % 2, torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    ids = torch.tensor([4, 2])
    assert dataset.from_tensors(byte, y).rows(ids).equal(byte[ids].float() / 255)
    floating = byte.float() / 255
    loaded = dataset.from_tensors(floating, y, flips=True, augment="weak")
    assert loaded.rows(ids).equal(floating[ids])
    assert (loaded.kind, loaded.flips, loaded.augment) == ("image", True, "weak")


def broken(value, row, column):
    x = torch.zeros(40, 3)
    x[row, column] = value
    return x


FINE, HALF = torch.arange(120.0).view(40, 3), torch.arange(40) % 2
UNLABELLED = torch.where(torch.arange(40) < 30, HALF, -1)
UNSAID = torch.where(torch.arange(40) < 30, torch.rand(40), torch.nan)


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        (broken(torch.nan, 7, 2), HALF, {}, "nan in row 7, column 2"),
        (broken(torch.inf, 9, 0), HALF, {}, "inf in row 9, column 0"),
        (FINE, HALF - 2, {}, "label -2 in row 0"),
        (FINE, HALF, {"classes": ["a"]}, r"label 1 in row 1 .*use 0\.\.0, or -1"),
        (FINE, HALF.float() / 0, {}, "label inf in row 1"),
        (FINE, HALF[:9], {}, "give one label per row"),
        (FINE, HALF * 0, {}, "only the class '0'"),
        (FINE, HALF * 0 - 1, {}, "no class at all"),
        (FINE, torch.arange(40).clamp(max=37), {"test": 0.1}, "class '0' has too few labelled rows"),
        (FINE[:, 0], HALF, {}, "inputs of shape"),
        (torch.zeros(40, 2, 8, 8), HALF, {}, "inputs of shape"),
        (torch.full((40, 1, 8, 8), 255.0), HALF, {}, "scale them to"),
        (FINE, HALF, {"test": torch.tensor([40])}, r"test ids outside 0\.\.39, such as 40"),
        (FINE, HALF, {"audit": torch.tensor([3, -1])}, r"audit ids outside 0\.\.39, such as -1"),
        (FINE, HALF, {"test": torch.tensor([4, 5, 9, 5])}, "row 5 is twice among the test ids"),
        (FINE, HALF, {"audit": torch.tensor([7, 7])}, "row 7 is twice among the audit ids"),
        (FINE, HALF, {"test": torch.arange(8), "audit": torch.arange(6, 14)}, "2 rows are in both .* row 6 "),
        (FINE, HALF, {"test": torch.ones(39, dtype=torch.bool)}, r"test mask of shape \(39,\).* each of 40 rows"),
        (FINE, HALF, {"audit": torch.ones(40, 1, dtype=torch.bool)}, r"audit mask of shape \(40, 1\)"),
        (FINE, HALF, {"test": torch.tensor([1.5, 2.0])}, r"test ids are float32 of shape \(2,\)"),
        (FINE, HALF, {"test": torch.tensor([[1], [2]])}, r"test ids are int64 of shape \(2, 1\)"),
        (FINE, UNLABELLED, {"test": torch.tensor([2, 31, 4])}, "row 31 .*in the test split, but has no label"),
        (FINE, UNLABELLED, {"audit": torch.tensor([30])}, "row 30 .*in the audit split, but has no label"),
        (FINE, UNSAID, {"test": torch.tensor([39])}, "row 39 .*in the test split, but has no label"),
        (FINE, HALF, {"test": torch.arange(1, 40, 2)}, "only the class '0'"),
        (FINE, HALF, {"test": 1.0}, "test is a share"),
        (FINE, HALF, {"labels": 28}, "28 labels were asked for, but only 27"),
        (FINE, HALF, {"labels": 1}, "1 labels for 2 classes"),
        (FINE, HALF, {"label_noise": 1.0}, "label noise is a share"),
        (FINE, HALF, {"label_noise": -0.1}, "label noise is a share"),
        (FINE, torch.rand(40), {"label_noise": 0.1}, "label noise swaps classes"),
        (FINE[:2], torch.rand(2), {}, "only 2 rows"),
    ],
)
def test_unusable_tensors_are_refused_in_one_line(x, y, options, message):
    with pytest.raises(DataError, match=message) as caught:
        dataset.from_tensors(x, y, **options)
    assert "\n" not in str(caught.value)


def test_a_tested_class_must_be_taught():
    y = torch.arange(40) % 2
    y[:3] = 2
    with pytest.raises(DataError, match="class '2' is in the test split, but no labelled training row"):
        dataset.from_tensors(torch.arange(80.0).view(40, 2), y, test=torch.arange(3))


# ---- requests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("digts", {}, "did you mean 'digits'.*use digits, fashion-mnist"),
        ("nowhere/rows.csv", {"target": "y"}, "no data called 'nowhere/rows.csv'"),
        ("digits", {"target": "y"}, "names a column"),
        ("nowhere", {"target": "y"}, "no data called 'nowhere'"),
        ("digits", {"image_size": 16}, "leave image_size out"),
        ("digits", {"labels": 1098}, "only 1097 training rows"),
        ("digits", {"unlabelled": "nowhere"}, "nowhere: no such folder"),
    ],
)
def test_impossible_requests_are_refused(source, options, message):
    with pytest.raises(DataError, match=message):
        dataset.load(source, **options)


def test_near_names_include_files_beside(tmp_path):
    (tmp_path / "flowers.csv").write_text("a,y\n1,2\n")
    with pytest.raises(DataError, match=r"did you mean '.*flowers\.csv'"):
        dataset.load(str(tmp_path / "flower.csv"), target="y")


# ---- the card of a model -------------------------------------------------------------------------------


def test_digits_card_prepares_test_rows_and_pictures(tmp_path):
    from PIL import Image

    digits = dataset.load("digits", seed=5)
    dataset.write_card(digits, tmp_path / "model")
    x, names = dataset.inputs_for("digits", tmp_path / "model")
    assert isinstance(x, torch.Tensor)
    assert torch.equal(x, digits.rows(digits.test))
    assert names[0] == f"test/{int(digits.test[0]) + 1}"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    shade = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    Image.fromarray(shade).save(tmp_path / "deep" / "er" / "one.png")
    Image.fromarray(255 - shade).save(tmp_path / "deep" / "two.png")
    x, names = dataset.inputs_for(str(tmp_path / "deep"), tmp_path / "model")
    assert names == ["er/one.png", "two.png"]
    assert isinstance(x, ImageStore)  # images on disk are decoded when they are asked for
    pixels = x[torch.arange(2)]
    assert pixels[0, 0].equal(torch.from_numpy(shade))
    alone, names = dataset.inputs_for(str(tmp_path / "deep" / "two.png"), tmp_path / "model")
    assert names == ["two.png"]
    assert isinstance(alone, ImageStore)
    assert alone[torch.arange(1)][0].equal(pixels[1])


def test_inputs_of_another_shape_or_kind_are_refused(tmp_path):
    dataset.write_card(dataset.from_tensors(torch.rand(40, 3), torch.arange(40) % 2), tmp_path)
    (tmp_path / "wide.csv").write_text("a,b\n1,2\n")
    (tmp_path / "right.csv").write_text("a,b,c\n1,2,3\n4,5,6\n")
    (tmp_path / "hole.csv").write_text("a,b,c\n1,,3\n")
    x, names = dataset.inputs_for(str(tmp_path / "right.csv"), tmp_path)
    assert isinstance(x, torch.Tensor)
    assert x.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert names == ["1", "2"]
    refused = {
        "digits": r"image rows of shape \(1, 8, 8\).*table rows of shape \(3,\)",
        str(tmp_path / "wide.csv"): r"table rows of shape \(2,\)",
        str(tmp_path / "hole.csv"): "nan in row 0, column 1",
        str(tmp_path): "trained on a table",
    }
    for source, message in refused.items():
        with pytest.raises(DataError, match=message):
            dataset.inputs_for(source, tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", '{"kind": "image"}'])
def test_a_broken_card_is_named(tmp_path, content):
    if content is not None:
        (tmp_path / "data.json").write_text(content)
    with pytest.raises(DataError, match=r"data\.json: cannot be read"):
        dataset.inputs_for("digits", tmp_path)


@pytest.mark.skipif(len(images.idx_files(images.DEBIAN / "fashion-mnist")) < 4, reason="not installed")
def test_fashion_mnist_as_installed():
    clothes = dataset.load("fashion-mnist", labels=250)
    assert (clothes.name, clothes.shape, clothes.classes[9]) == ("fashion-mnist", (1, 28, 28), "Ankle boot")
    assert [len(p) for p in parts(clothes)] == [250, 59500, 250, 10000]
    assert counts(clothes.y[clothes.test]) == [1000] * 10
    assert counts(clothes.y[clothes.labelled]) == [25] * 10
    assert (clothes.augment, clothes.flips) == ("weak", True)


def clean_views(clean=None):
    return Views((View("x"), View("clean", "clean")), clean=clean)


@pytest.mark.parametrize(("clean", "rows"), [(None, 100), (0.25, 50), (30, 30), (200, 200)])
def test_clean_rows_are_validation_rows_that_judge_no_more(clean, rows):
    """Of all classes, with right labels under noise, drawn once; the other splits and their noise stay."""
    whole, right = dataset.load("digits", label_noise=0.4), dataset.load("digits")
    data = dataset.with_clean_rows(whole, clean_views(clean), seed=3)
    assert (len(data.clean), len(data.audit)) == (rows, 200 - rows)
    assert sorted(torch.cat([data.clean, data.audit]).tolist()) == whole.audit.tolist()
    assert torch.equal(data.y[data.clean], right.y[data.clean])
    assert len(data.y[data.clean].unique()) == 10
    assert torch.equal(data.y[data.labelled], whole.y[data.labelled])
    assert 0.2 < float(data.noisy[data.audit].float().mean()) < 0.6 or not len(data.audit)
    assert dataset.with_clean_rows(data, clean_views(clean), seed=4) is data
    assert dataset.with_clean_rows(whole, Views()) is whole
    assert f"'clean': {rows}" in str(data.describe()["rows"])
    assert f"{rows} validation rows have the clean labels" in data.note
    assert data.fingerprint != whole.fingerprint
    kept = dataset.sealed(data)
    assert kept.before_noise is not None
    assert bool((kept.before_noise[data.test] == -1).all())


def test_rows_that_a_person_checked_are_the_clean_ones(tmp_path):
    """Kept labels, new ones and corrected ones, of rows that teach; not what a model decided, nor validation rows."""
    whole = dataset.load("digits", labels=200)
    row, new, judge = int(whole.labelled[0]), int(whole.unlabelled[0]), int(whole.audit[0])
    other = int(whole.labelled[1])
    lines = [f"{row + 1},,,keep,person", f"{new + 1},,,3,person", f"{judge + 1},,,5,person", f"{other + 1},,,4,model"]
    lines.append(f"{int(whole.unlabelled[1]) + 1},,,keep,person")
    (tmp_path / "d.csv").write_text("\n".join(["row,given,suggested,decision,by", *lines]))
    data = dataset.load("digits", labels=200, decisions=tmp_path / "d.csv")
    assert data.clean.tolist() == sorted([row, new])
    assert dataset.with_clean_rows(data, clean_views()) is data
    assert len(dataset.with_clean_rows(data, clean_views(20)).clean) == 20
    (tmp_path / "d.csv").write_text("\n".join(["row,given,suggested,decision,by", lines[0]]))
    assert dataset.load("digits", labels=200, decisions=tmp_path / "d.csv").clean.tolist() == [row]


@pytest.mark.parametrize("clean", [201, 0.001])
def test_more_clean_rows_than_validation_rows_are_refused(clean):
    with pytest.raises(DataError, match="200 validation rows; give more by --validation"):
        dataset.with_clean_rows(dataset.load("digits"), clean_views(clean))
