"""Files of tables: every format gives the same rows, and a file that cannot be read is named with a remedy."""

import json
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from selfdistill.data import frames, table_files
from selfdistill.data.dataset import load
from selfdistill.data.table_files import is_table, read_table
from selfdistill.errors import DataError

ROWS = 60


def frame():
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "a": random.normal(size=ROWS).round(3),
            "n": random.integers(0, 9, ROWS),
            "kind": ["x", "y", None] * (ROWS // 3),
            "t": ["01", "1"] * (ROWS // 2),
        }
    )


def write(folder, name):
    table, path = frame(), folder / name
    if ".csv" in name or ".tsv" in name:
        table.to_csv(path, index=False, sep="\t" if ".tsv" in name else ",")
    elif name.endswith(".parquet"):
        table.to_parquet(path)
    elif name.endswith((".feather", ".arrow")):
        table.to_feather(path)
    elif name.endswith(".xlsx"):
        table.to_excel(path, index=False)
    elif name.endswith(".json"):
        path.write_text(table.to_json(orient="records"))
    elif name.endswith((".ndjson", ".jsonl")):
        path.write_text(table.to_json(orient="records", lines=True))
    else:
        import datasets

        datasets.Dataset.from_pandas(table).save_to_disk(str(path))
    return str(path)


@pytest.mark.parametrize(
    "name",
    ["t.csv", "t.tsv", "t.csv.gz", "t.csv.xz", "t.csv.bz2", "t.csv.zip", "t.parquet", "t.feather", "t.arrow", "t.xlsx",
     "t.json", "t.ndjson", "t.jsonl", "folder"],
)  # fmt: skip
def test_every_format_gives_the_same_rows(tmp_path, name):
    known = load(write(tmp_path, "known.csv"), target="t")
    loaded = load(write(tmp_path, name), target="t")
    assert loaded.classes == ("01", "1")
    assert loaded.y.equal(known.y)
    assert loaded.tensor.equal(known.tensor)
    assert frames.load(str(tmp_path / name), target="t").kinds() == {"a": "number", "n": "number", "kind": "category"}


def test_numpy_archives_and_class_labels_of_datasets(tmp_path):
    import datasets

    np.savez(tmp_path / "t.npz", x=np.arange(120.0).reshape(60, 2) % 7, y=np.array(["no", "yes"] * 30))
    loaded = load(str(tmp_path / "t.npz"), target="y")
    assert (loaded.classes, loaded.shape) == (("no", "yes"), (2,))
    features = datasets.Features({"a": datasets.Value("float32"), "y": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"a": [i % 7 for i in range(60)], "y": [0, 1] * 30}, features=features)
    datasets.DatasetDict({"train": rows, "extra": rows}).save_to_disk(str(tmp_path / "d"))
    loaded = load(str(tmp_path / "d"), target="y")
    assert loaded.classes == ("no", "yes")
    assert "splits that are not read: extra" in loaded.note


def test_the_splits_of_a_saved_data_set_are_those_of_a_run(tmp_path):
    import datasets

    features = datasets.Features({"a": datasets.Value("float32"), "y": datasets.ClassLabel(names=["no", "yes"])})

    def rows(first: int, count: int, hidden: bool = False) -> Any:
        y = [-1 if hidden else i % 2 for i in range(count)]
        return datasets.Dataset.from_dict({"a": [float(first + i) for i in range(count)], "y": y}, features=features)

    parts = {"train": rows(0, 60), "validation": rows(60, 20), "test": rows(75, 20)}  # five rows are in both
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "d"))
    loaded = load(str(tmp_path / "d"), target="y")
    assert [len(ids) for ids in (loaded.labelled, loaded.audit, loaded.test)] == [60, 20, 20]
    assert loaded.shape == (1,)
    assert len(loaded.copies.across) == 5
    datasets.DatasetDict({**parts, "test": rows(80, 20, hidden=True)}).save_to_disk(str(tmp_path / "h"))
    loaded = load(str(tmp_path / "h"), target="y")
    assert len(loaded.y) == 80
    assert "splits that are not read: test" in loaded.note


def test_whole_numbers_stay_whole_as_names_of_classes(tmp_path):
    """Beside a missing one pandas makes them floats."""
    table = pd.DataFrame({"a": np.arange(60) % 7, "y": pd.array([1, 2] * 29 + [None, None], dtype="Int64")})
    table.to_parquet(tmp_path / "t.parquet")
    rows = [{"a": i % 7, "y": None if i > 57 else 2**53 + i % 2} for i in range(60)]
    (tmp_path / "t.ndjson").write_text("\n".join(map(json.dumps, rows)))
    table.to_excel(tmp_path / "t.xlsx", index=False)
    assert load(str(tmp_path / "t.parquet"), target="y").classes == ("1", "2")
    assert load(str(tmp_path / "t.ndjson"), target="y").classes == ("9007199254740992", "9007199254740993")
    assert load(str(tmp_path / "t.xlsx"), target="y").classes == ("1", "2")


def test_excel_says_which_sheet_was_read(tmp_path):
    with pd.ExcelWriter(tmp_path / "t.xlsx") as book:
        pd.DataFrame().to_excel(book, sheet_name="About", index=False)
        frame().to_excel(book, sheet_name="Data", index=False)
    assert read_table(tmp_path / "t.xlsx").note == "sheet 'Data', one of 2"


TEXT = "a,b,t\n" + "".join(f"{i},{i % 3},{'yes' if i % 2 else 'no'}\n" for i in range(40))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", TEXT.encode() + b"\0\0", "line 42: a NUL byte"),
        ("t.csv", TEXT.replace("yes", "s\u00ed").encode("latin-1"), "line 3: cannot be read .*not UTF-8"),
        ("t.csv", TEXT.encode() + b"Total,40\n", "the last line, 'Total,40', has 2 of 3 cells"),
        ("t.csv", TEXT.replace("a,b", "a,a").encode(), "two columns are called 'a'"),
        ("t.csv", b"# exported\n" + TEXT.encode(), "more cells than the header"),
        ("t.csv", b"PK\x03\x04" + bytes(9), "the file is packed"),
        ("t.csv.gz", b"no", "cannot be read as a table"),
        ("t.xlsx", b"PK\x03\x04" + bytes(9), "cannot be read as a table"),
        ("t.feather", b"ARROW1" + bytes(9), "cannot be read as a table"),
        ("t.ndjson", b'{"a": 1}\n[1]\n', "line 2: no JSON object"),
        ("t.json", b'{"a": [1]}', "no list of objects"),
        ("t.npz", b"PK", "cannot be read as a table"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / name), target="t")
    assert "\n" not in str(caught.value)


def test_archives_of_other_arrays_are_refused(tmp_path):
    for arrays, message in (
        ({"x": np.zeros((9, 2, 2)), "y": np.zeros(9)}, "has shape"),
        ({"x": np.zeros((9, 2)), "y": np.zeros(8)}, "different lengths"),
        ({"x": np.zeros((9, 1)), "x0": np.zeros(9)}, "two columns are called 'x0'"),
        ({"x": np.array([{}] * 9), "y": np.zeros(9)}, "cannot be read"),
    ):
        np.savez(tmp_path / "t.npz", **arrays)
        with pytest.raises(DataError, match=message):
            read_table(tmp_path / "t.npz")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_other_dialects_are_read(tmp_path, separator, encoding):
    text = TEXT.replace(",", separator).replace("yes", '"ye\ns"')
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    loaded = load(str(tmp_path / "t.csv"), target="t")
    assert (loaded.classes, loaded.shape) == (("no", "ye\ns"), (2,))


def test_a_column_whose_chunks_differ_is_read_as_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "CHUNK_CELLS", 1)  # chunks of 1,000 rows
    rows = [f"{i % 5 if i < 1500 else 'x'},{i},{i % 2}" for i in range(2000)]
    (tmp_path / "t.csv").write_text("0a,b,t\n" + "\n".join(rows) + "\n")
    table = read_table(tmp_path / "t.csv")
    assert table.rows == 2000
    assert set(table.take("0a")) == {"0", "1", "2", "3", "4", "x"}
    assert table.take("b").tolist() == list(range(2000))


def test_missing_packages_name_the_extra(tmp_path, monkeypatch):
    for name, package, extra in (("t.xlsx", "openpyxl", "tables"), ("d", "datasets", "datasets")):
        path = write(tmp_path, name)
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(DataError, match=rf"reading it needs {package}: pip install 'selfdistill\[{extra}\]'"):
            load(path, target="t")


def test_json_lines_are_prompts_unless_a_column_is_named(tmp_path):
    assert not is_table("t.jsonl")
    assert is_table("t.jsonl", named=True)
    assert is_table("T.XLSX")
    assert is_table("hf:owner/name")
    assert not is_table(str(tmp_path))


def test_rows_with_fewer_cells_are_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "1,2,x\n" * 5 + "1\n\n" + '"1\n",2\n' + "1,2,x\n" * 5)
    note = "2 rows have fewer cells than the header, first in line 7: the others count as empty"
    assert read_table(path).note == note
    assert read_table(path, ["c"]).note == note
    path.write_text("a,b,c\n" + "1,2,x\n\n" * 5)
    assert read_table(path).note == ""
