"""How the columns of a table are read: numbers in their formats, dates, identifiers, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from selfdistill.data import column_types, frames
from selfdistill.data.column_types import Column, infer, parse_numbers
from selfdistill.data.dataset import inputs_for, load, write_card
from selfdistill.errors import DataError

WORDS = [f"the film number {i} was quite good" for i in range(40)]


def test_a_comma_before_three_digits_is_read_by_the_other_cells():
    for texts, comma, first in (
        (["1,060", "480"], True, 1060),
        (["1,060", "2,480"], True, 1.06),
        (["1,060"], False, 1060),
    ):
        assert parse_numbers(texts, np.ones(len(texts), dtype=np.int64), comma).values[0] == first


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1,5", "2,25"], [1.5, 2.25]),
        (["1,037", "12,500"], [1037.0, 12500.0]),
        (["0,125", "1,037"], [0.125, 1.037]),
        (["1.037,5", "2"], [1037.5, 2.0]),
        (["1 037,5", "2"], [1037.5, 2.0]),
        (["1\u202f037", "2"], [1037.0, 2.0]),
        (["1'037.5", "2"], [1037.5, 2.0]),
        (["12 kg", "-7.5kg"], [12.0, -7.5]),
        (["$5", "$1,200.50"], [5.0, 1200.5]),
        (["5 €", "7 €"], [5.0, 7.0]),
        (["USD 5", "USD 7"], [5.0, 7.0]),
        (["12%", "7 %"], [12.0, 7.0]),
        (["1e3", "\u22122"], [1000.0, -2.0]),
        (["12 kg", "500 g"], [12.0, np.nan]),
        (["A12", "B13"], [np.nan, np.nan]),
        (["10.0.0.1", "192.168.1.1"], [np.nan, np.nan]),
        (["2024-01-05", "3/4"], [np.nan, np.nan]),
    ],
)
def test_numbers_are_read_in_the_format_that_they_have(texts, values):
    parsed = parse_numbers(texts, np.ones(len(texts), dtype=np.int64), comma=False)
    assert np.array_equal(parsed.values, values, equal_nan=True)


@pytest.mark.parametrize(
    ("cells", "kind", "why"),
    [
        ([1.5, 2.0, None] * 10, "numeric", "10 empty"),
        ([f"{i},5" for i in range(30)], "numeric", "a decimal comma"),
        ([f"{i} kg" for i in range(30)], "numeric", "the unit 'kg'"),
        ([*map(str, range(29)), "?"], "numeric", "1 cell such as '?' read as missing"),
        (["red", "green", "blue"] * 10, "categorical", "3 different values"),
        ([True, False] * 15, "categorical", "2 different"),
        (pd.date_range("2024-01-15", periods=30).astype(str), "date", "month, weekday"),
        ([f"{i + 1:02d}.03.2024" for i in range(30)], "date", "%d.%m.%Y"),
        ([f"3/{i + 1}/2024" for i in range(30)], "date", "%m/%d/%Y"),
        ([f"03/{i % 12 + 1:02d}/2024" for i in range(30)], "date", "%d/%m/%Y would fit too"),
        ([f"U-{i:x}-{i}" for i in range(30)], "identifier", "30 different strings"),
        (WORDS, "text", "--text reads"),
        (["5"] * 30, "constant", "'5' in every row"),
        ([7.0] * 30, "constant", "7.0 in every row"),
        ([None] * 30, "empty", "no value"),
        ([" "] * 30, "empty", "no value"),
        (["1", "2", "3", "4+"] * 10, "categorical", "4 different"),
    ],
)
def test_each_column_has_a_type_and_a_reason(cells, kind, why):
    found = infer("c", pd.Series(list(cells)), "t.csv: column 'c'")
    assert found.type == kind
    assert why in found.why


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([*map(str, range(80)), "Total"], r"row 81 .*'Total' is no number, and 80 cells are; .* --column 'c=numeric'"),
        ([f"{i},5" for i in range(80)] + ["old", "x"], "'old' is no number, nor are 1 further cells"),
        ([*pd.date_range("2024-01-01", periods=80).astype(str), "soon"], "row 81 .*'soon' is no date"),
        ([f"{i} kg" for i in range(80)] + ["5 g"], "'5 g' is no number in kg"),
        ([[1], [2]], "lists"),
    ],
)
def test_a_few_cells_that_do_not_fit_are_refused_with_their_row(cells, message):
    with pytest.raises(DataError, match=message) as caught:
        infer("c", pd.Series(cells), "t.csv: column 'c'")
    assert "\n" not in str(caught.value)


def test_a_person_may_overrule_a_type():
    numbers = pd.Series([*map(str, range(80)), "Total"])
    found = infer("c", numbers, "t.csv: column 'c'", kind="numeric")
    assert found.lenient
    assert "1 cell such as 'Total' read as missing, as asked for" in found.why
    assert np.isnan(column_types.convert(found, numbers, "t.csv")["c"][-1])
    assert infer("c", numbers, "t", kind="categorical").type == "categorical"
    assert infer("c", numbers, "t", kind="identifier").type == "identifier"
    assert infer("c", pd.Series(["03/04/2024"] * 9), "t", kind="date:%d/%m/%Y").pattern == "%d/%m/%Y"
    for kind, cells in (("numeric", ["a", "b"]), ("date", ["a", "b"]), ("date:%q", ["2024-01-01"] * 3)):
        with pytest.raises(DataError):
            infer("c", pd.Series(cells), "t", kind=kind)
    with pytest.raises(DataError, match="no type of columns is called 'float'"):
        column_types.check_type("float")


def messy(rows=120):
    random = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": [f"u{i:04d}" for i in range(rows)],
            "size": [f"{v:.2f}".replace(".", ",") for v in random.normal(50, 9, rows)],
            "zip": [f"0{i % 5}" for i in range(rows)],
            "when": pd.date_range("2023-01-01", periods=rows).strftime("%d.%m.%Y"),
            "void": [None] * rows,
            "same": ["x"] * rows,
            "y": ["01" if i % 2 else "1" for i in range(rows)],
        }
    )


def test_new_rows_are_read_by_the_record(tmp_path):
    """As categories and decimal commas were, also where the new file alone would be read in another way."""
    messy().to_csv(tmp_path / "t.csv", index=False, sep=";")
    data = load(str(tmp_path / "t.csv"), target="y", columns={"zip": "categorical"})
    assert data.classes == ("01", "1")
    columns: Any = data.describe()["column_types"]
    record = {column["name"]: column for column in columns}
    assert {name: column["type"] for name, column in record.items()} == {
        "id": "identifier", "size": "numeric", "zip": "categorical", "when": "date", "void": "empty",
        "same": "constant",
    }  # fmt: skip
    assert record["size"]["decimal"] == ","
    assert data.note.startswith("t.csv: 120 rows; the target 'y' is 2 classes (01, 1) (cells separated by semicolons)")
    write_card(data, tmp_path / "model")
    inputs: Any = inputs_for(str(tmp_path / "t.csv"), tmp_path / "model")[0]
    assert inputs.equal(data.tensor)
    some = messy()[["when", "zip", "size"]][:3]
    some.to_csv(tmp_path / "new.csv", index=False, sep=";")
    inputs = inputs_for(str(tmp_path / "new.csv"), tmp_path / "model")[0]
    assert inputs.equal(data.tensor[:3])
    some.assign(size=["1.5", "2", "3"]).to_csv(tmp_path / "new.csv", index=False, sep=";")
    with pytest.raises(DataError, match=r"row 1: '1\.5' is no number \(',' before decimals\)"):
        inputs_for(str(tmp_path / "new.csv"), tmp_path / "model")


def test_a_damaged_record_is_refused_in_one_line():
    for record in (
        None,
        3,
        [{"name": "a"}],
        [{"name": "a", "type": "no"}],
        [{"name": "a", "type": "date", "parts": ["x"]}],
    ):
        with pytest.raises(DataError, match="the record of its columns is damaged"):
            column_types.from_json(record, "data.json")
    column = Column("a", "date", "dates", pattern="%Y/%m/%d", parts=("month",))
    assert column_types.from_json([column.to_json()], "data.json") == [column]


def test_a_table_without_a_usable_column_says_why(tmp_path):
    pd.DataFrame({"review": WORDS, "y": ["a", "b"] * 20}).to_csv(tmp_path / "t.csv", index=False)
    for reader in (load, frames.load):
        with pytest.raises(DataError, match=r"no column is left .*'review' is text.* --text"):
            reader(str(tmp_path / "t.csv"), target="y")
    with pytest.raises(DataError, match="no column is called 'revieww'"):
        load(str(tmp_path / "t.csv"), target="y", columns={"revieww": "categorical"})


def test_a_target_of_numbers_may_be_classes_and_the_other_way_round(tmp_path):
    pd.DataFrame({"a": np.arange(90.0) % 7, "y": np.arange(90) % 30}).to_csv(tmp_path / "t.csv", index=False)
    pd.DataFrame({"a": np.arange(90.0) % 7, "y": np.arange(90) % 2}).to_csv(tmp_path / "b.csv", index=False)
    assert load(str(tmp_path / "t.csv"), target="y").task == "regress"
    assert len(load(str(tmp_path / "t.csv"), target="y", columns={"y": "categorical"}).classes) == 30
    assert load(str(tmp_path / "b.csv"), target="y", columns={"y": "numeric"}).task == "regress"
