"""Tables: kinds of columns and targets, preprocessing learnt from training rows, safe files, refusals."""

import datetime
import decimal
import pickle
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
import skops.io
import torch

from selfdistill.data import dataset, tables
from selfdistill.errors import DataError

COLOURS = ("red", "green", "blue")


class Foreign:
    """A type that no preprocessing needs."""


def frame(rows=90):
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "age": random.normal(40, 12, rows),
            "rooms": random.integers(1, 6, rows),
            "colour": [COLOURS[i % 3] for i in range(rows)],
            "sold": ["yes" if i % 2 else "no" for i in range(rows)],
        }
    )


def written(folder, table, name="table.csv"):
    path = folder / name
    if name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    return path


def load(path, target="sold", **options):
    return dataset.load(str(path), target=target, **options)


# ---- reading -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.tsv", "t.parquet", "T.CSV"])
def test_every_format_gives_the_same_rows(tmp_path, name):
    loaded = load(written(tmp_path, frame(), name))
    same = load(written(tmp_path, frame()))
    assert (loaded.name, loaded.kind, loaded.classes) == (name, "table", ("no", "yes"))
    assert loaded.x.equal(same.x)
    assert loaded.y.equal(same.y)
    assert loaded.y.tolist() == [0, 1] * 45
    assert [len(loaded.test), len(loaded.audit), len(loaded.labelled)] == [18, 11, 61]


def test_numbers_are_standardised_by_training_rows_alone(tmp_path):
    """Against NumPy: median for the missing, an indicator, population deviation; nothing else takes part."""
    table = frame()
    table.loc[::7, "age"] = np.nan
    loaded = load(written(tmp_path, table))
    age = pd.read_csv(tmp_path / "table.csv")["age"].to_numpy()
    train = loaded.labelled.numpy()
    missing = np.isnan(age).astype(float)
    filled = np.where(np.isnan(age), np.nanmedian(age[train]), age)
    for column, values in ((0, filled), (2, missing)):  # ColumnTransformer: age, rooms, then the indicator
        expected = (values - values[train].mean()) / values[train].std()
        assert np.abs(loaded.x[:, column].numpy() - expected).max() < 1e-5


def test_unlabelled_rows_take_part_in_the_scaling(tmp_path):
    table = frame()
    table.loc[:9, "sold"] = np.nan
    table.loc[:9, "age"] += 1000
    loaded = load(written(tmp_path, table))
    train = torch.cat([loaded.labelled, loaded.unlabelled])
    assert float(loaded.x[train, 0].mean()) == pytest.approx(0, abs=1e-5)
    assert float(loaded.x[loaded.labelled, 0].mean()) < -0.1


def test_categories_are_one_column_each_with_missing_as_one(tmp_path):
    table = frame()
    table.loc[5, "colour"] = np.nan
    loaded = load(written(tmp_path, table))
    names = [str(n) for n in loaded.preprocessor.get_feature_names_out()]
    for label in COLOURS:
        column = next(i for i, name in enumerate(names) if name.endswith(f"colour_{label}"))
        assert loaded.x[:, column].bool().tolist() == (table["colour"] == label).tolist()


def test_a_category_unknown_to_training_is_all_zeros(tmp_path):
    loaded = load(written(tmp_path, frame()))
    other = frame(1).assign(colour="violet")
    x = tables.transform(loaded.preprocessor, other)
    assert x[0, 2:].tolist() == [0, 0, 0]


def test_many_rare_categories_share_a_column(tmp_path):
    table = frame(400).assign(colour=[f"shade {i}" for i in range(400)])
    assert load(written(tmp_path, table), columns={"colour": "categorical"}).shape == (2 + 64,)


def test_times_and_truths_and_empty_columns_are_usable(tmp_path):
    table = frame()
    start = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    table["when"] = [start + datetime.timedelta(days=i) for i in range(90)]
    table["garden"] = [i % 4 == 0 for i in range(90)]
    table["empty"] = np.nan
    table["price"] = [decimal.Decimal(i) / 4 for i in range(90)]
    loaded = load(written(tmp_path, table, "t.parquet"))
    names = tables.feature_names(loaded.preprocessor)
    assert names == ["age", "rooms", "colour", "when", "when (month)", "when (weekday)", "garden", "price"]
    assert {c.name: c.type for c in loaded.columns}["empty"] == "empty"
    assert torch.isfinite(loaded.x).all()
    assert (loaded.x[1:, 2] > loaded.x[:-1, 2]).all(), "later is larger"
    assert (loaded.x[1:, 5] > loaded.x[:-1, 5]).all()


# ---- targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["b", "a"] * 45, ("a", "b")),
        ([True, False] * 45, ("False", "True")),
        ([10, 9] * 45, ("9", "10")),
        ([0.5, 1.0] * 45, ("0.5", "1.0")),
        (list(range(18)) * 5, tuple(map(str, range(18)))),
        ([i / 4 for i in range(90)], ()),
        (list(range(90)), ()),
    ],
)
def test_the_target_says_the_task(tmp_path, values, classes):
    loaded = load(written(tmp_path, frame().assign(sold=values)))
    assert loaded.classes == classes
    assert loaded.task == ("classify" if classes else "regress")
    if classes:
        told = [classes[label] for label in loaded.y.tolist()]
        assert told == [str(v) for v in values]
    else:
        assert loaded.y.equal(torch.tensor(values, dtype=torch.float32))


def test_rows_without_target_are_unlabelled(tmp_path):
    table = frame()
    table.loc[[3, 8, 20], "sold"] = [np.nan, "", " "]
    loaded = load(written(tmp_path, table))
    assert loaded.unlabelled.tolist() == [3, 8, 20]
    assert loaded.y[loaded.unlabelled].tolist() == [-1, -1, -1]
    values = frame().assign(sold=np.arange(90) / 7)
    values.loc[[1, 2], "sold"] = np.nan
    loaded = load(written(tmp_path, values))
    assert loaded.unlabelled.tolist() == [1, 2]
    assert torch.isnan(loaded.y[[1, 2]]).all()


@pytest.mark.parametrize("drop", [["sold"], []])
def test_another_table_gives_unlabelled_rows(tmp_path, drop):
    more = written(tmp_path, frame(7).drop(columns=drop), "more.csv")
    loaded = load(written(tmp_path, frame()), unlabelled=str(more))
    assert loaded.unlabelled.tolist() == list(range(90, 97))
    assert (loaded.y[90:] == -1).all()
    assert len(loaded.labelled) == 61


def test_a_class_may_be_called_none(tmp_path):
    """pandas reads such words as missing; as a target they are names, and only empty cells unlabelled."""
    table = frame().assign(sold=["None", "NA", "mild"] * 30)
    table.loc[[0, 7], "sold"] = ""
    loaded = load(written(tmp_path, table))
    assert loaded.classes == ("NA", "None", "mild")
    assert loaded.unlabelled.tolist() == [0, 7]


def test_row_names_of_a_frame_do_not_matter(tmp_path):
    table = frame()
    table.index = [f"row {i}" for i in range(90)]
    assert load(written(tmp_path, table, "t.parquet")).x.equal(load(written(tmp_path, frame())).x)


# ---- refusals ------------------------------------------------------------------------------------------


def cell(column, row, value):
    table = frame()
    table[column] = table[column].astype(object)
    table.loc[row, column] = value
    return table


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (frame(), {"target": None}, r"which column is the target .*: age, rooms, colour, sold"),
        (
            frame(),
            {"target": "sould"},
            "no column is called 'sould'; choose one of: age, rooms, colour, sold",
        ),
        (cell("age", 11, np.inf), {}, r"table\.csv: column 'age', row 12 .* infinite value inf"),
        (cell("age", 11, -1e300), {}, r"column 'age', row 12 .* infinite value -1e\+300"),
        (frame().assign(sold=np.r_[np.arange(89.0), np.inf]), {}, "column 'sold', row 90 .* infinite"),
        (frame().assign(sold="yes"), {}, "only the class 'yes'"),
        (frame().assign(sold=np.nan), {}, "column 'sold' is empty in every row"),
        (cell("sold", 4, "maybe"), {}, r"class 'maybe' has too few labelled rows to split \(1, needed 3\)"),
        (
            frame().assign(sold=[f"{i}.5" if i != 30 else "n/a?" for i in range(90)]),
            {},
            r"column 'sold', row 31 .*: 'n/a\?' is no number, and the others are",
        ),
        (frame()[["sold"]], {}, "no column but the target"),
        (frame()[:0], {}, "the table has no rows"),
        (frame(), {"labels": 62}, "62 labels were asked for, but only 61"),
        (frame(), {"image_size": 8}, "a table has no image size"),
    ],
)
def test_unusable_tables_are_refused_in_one_line(tmp_path, table, options, message):
    with pytest.raises(DataError, match=message) as caught:
        load(written(tmp_path, table), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "cannot be read as a table"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "cannot be read as a table"),
        ("t.csv", b"a,sold\n1,2,3\n4,5,6\n", "more cells than the header"),
        ("t.csv", b"a,sold\n\xff\xfe,2\n", "cannot be read as a table"),
        ("t.csv.gz", b"not packed", "cannot be read as a table"),
        ("t.parquet", b"not parquet", "cannot be read as a table"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_an_unlabelled_table_must_fit(tmp_path):
    path = written(tmp_path, frame())
    cases = {
        "column 'rooms' is missing; it has: age, colour": frame(5)[["age", "colour"]],
        "column 'age', row 2: 'old' is no number": frame(5).assign(age=["1", "old", "3", "4", "5"]),
        "the table has no rows": frame(5)[:0],
    }
    for message, table in cases.items():
        with pytest.raises(DataError, match=message):
            load(path, unlabelled=str(written(tmp_path, table, "more.csv")))
    with pytest.raises(DataError, match="no such table"):
        load(path, unlabelled=str(tmp_path / "none.csv"))


@pytest.mark.parametrize("module", ["pandas", "skops", "skops.io"])
def test_missing_packages_name_the_extra(tmp_path, monkeypatch, module):
    path = written(tmp_path, frame())
    loaded = load(path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'selfdistill\[tables\]'"):
        load(path) if module == "pandas" else dataset.write_card(loaded, tmp_path / "model")


# ---- saved preprocessing -------------------------------------------------------------------------------


def test_saved_preprocessing_gives_the_same_inputs(tmp_path):
    table = frame()
    table.loc[::7, "age"] = np.nan
    table.loc[5, "colour"] = np.nan
    path = written(tmp_path, table)
    loaded = load(path)
    dataset.write_card(loaded, tmp_path / "model")
    x, names = dataset.inputs_for(str(path), tmp_path / "model")
    assert isinstance(x, torch.Tensor)
    assert x.equal(loaded.tensor)
    assert names == [str(i) for i in range(1, 91)]
    shuffled = written(tmp_path, table[["colour", "rooms", "age"]].assign(extra=1), "new.csv")
    again, _ = dataset.inputs_for(str(shuffled), tmp_path / "model")
    assert isinstance(again, torch.Tensor)
    assert again.equal(x)


def test_new_rows_are_checked_like_the_old(tmp_path):
    dataset.write_card(load(written(tmp_path, frame())), tmp_path / "model")
    cases = {
        "column 'colour' is missing": frame(5).drop(columns="colour"),
        "column 'age', row 3 .* infinite value": frame(5).assign(age=[1, 2, np.inf, 4, 5]),
    }
    for message, table in cases.items():
        path = written(tmp_path, table, "new.csv")
        with pytest.raises(DataError, match=rf"new\.csv: {message}"):
            dataset.inputs_for(str(path), tmp_path / "model")


def test_foreign_types_are_not_loaded(tmp_path):
    fitted = load(written(tmp_path, frame())).preprocessor
    fitted.extra = Foreign()
    tables.save(fitted, tmp_path / "p.skops")
    with pytest.raises(DataError, match=r"holds the foreign type .*Foreign"):
        tables.load(tmp_path / "p.skops")


def test_pickles_and_damage_are_not_loaded(tmp_path):
    path = tmp_path / "p.skops"
    with pytest.raises(DataError, match="no preprocessing saved there"):
        tables.load(path)
    fitted = load(written(tmp_path, frame())).preprocessor
    path.write_bytes(pickle.dumps(fitted))
    with pytest.raises(DataError, match=r"p\.skops: damaged"):
        tables.load(path)
    tables.save(fitted, path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"p\.skops: damaged"):
        tables.load(path)
    skops.io.dump([1, 2], path)
    with pytest.raises(DataError, match="not a fitted preprocessing"):
        tables.load(path)


def test_the_saved_file_holds_no_pickle(tmp_path):
    tables.save(load(written(tmp_path, frame())).preprocessor, tmp_path / "p.skops")
    with zipfile.ZipFile(tmp_path / "p.skops") as archive:
        assert {name.rsplit(".", 1)[-1] for name in archive.namelist()} <= {"json", "npy"}
        for name in archive.namelist():
            if name.endswith(".npy"):
                with archive.open(name) as array:
                    np.lib.format.read_array(array, allow_pickle=False)
