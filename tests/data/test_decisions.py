"""Files of decisions: what is written is read, what does not fit is refused by line and column, and splits stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from selfdistill.data import frames
from selfdistill.data.dataset import Data, load
from selfdistill.data.decisions import LabelDecision, RowNames, decide, read_decisions, write_decisions
from selfdistill.data.splits import LabelColumn, Splits, make_splits
from selfdistill.errors import DataError
from tests.terminal import refused

HEAD = "row,given,suggested,decision,by\n"


def data() -> tuple[Splits, LabelColumn]:
    column = LabelColumn("mine", torch.tensor([0, 1, 0, 1, -1, -1, 0, 1]), ("keep", "=cat"))
    return make_splits(column, test=torch.tensor([2, 3]), audit=torch.tensor([6, 7])), column


NAMES = RowNames(counts=[("a.csv", 5), ("more.csv", 3)])


@pytest.mark.parametrize("raw", [False, True])
def test_what_is_written_is_read(tmp_path: Path, raw: bool) -> None:
    """Names that look like formulas, and that hold commas, quotes and line ends, come back as they were."""
    rows = [LabelDecision("=1+1.png", "", "'=cat", "accept"), LabelDecision('a,"b"\nc', "-x", "@y", "+z", "model")]
    write_decisions(tmp_path / "d.csv", rows, raw)
    assert list(read_decisions(tmp_path / "d.csv", raw).values()) == rows
    assert ("\n=1+1" in (tmp_path / "d.csv").read_text()) == raw


def test_a_spreadsheet_may_have_saved_it(tmp_path: Path) -> None:
    """Semicolons, a byte-order mark, other line ends, further columns, empty lines and capitals."""
    text = "note;by;decision;suggested;given;row\r\n\r\nsee;Person; Accept ;=cat;;5\r\n;;;;;\r\n"
    (tmp_path / "d.csv").write_bytes(text.encode("utf-8-sig"))
    assert list(read_decisions(tmp_path / "d.csv").values()) == [LabelDecision("5", "", "=cat", "accept", "person")]


def test_decisions_change_the_rows_that_teach_alone(tmp_path: Path) -> None:
    """New labels teach, relabelled and dropped rows too; the test split stays, whatever the file says of it."""
    parts, column = data()
    rows = [
        LabelDecision("5", "", "=cat", "accept"),
        LabelDecision("more.csv:1", "", "=cat", "class:keep", "model"),
        LabelDecision("1", "keep", "=cat", "=cat"),
        LabelDecision("2", "=cat", "keep", "drop"),
        LabelDecision("more.csv:2", "keep", "=cat", "skip"),
        LabelDecision("3", "keep", "=cat", "accept"),
    ]
    write_decisions(tmp_path / "d.csv", rows)
    after, note, by_model = decide(parts, column, NAMES, tmp_path / "d.csv")
    assert after.labelled.tolist() == [0, 4, 5]
    assert after.y[after.labelled].tolist() == [1, 1, 0]
    assert by_model.tolist() == [5]
    assert torch.equal(after.test, parts.test)
    assert torch.equal(after.y[parts.test], parts.y[parts.test])
    assert torch.equal(after.audit, parts.audit)
    assert len(after.unlabelled) == 0
    for part in ("3 labels were decided, 2 of them new, 1 by the model", "1 row dropped", "1 row of the test split"):
        assert part in note


BAD: dict[str, tuple[str, list[str]]] = {
    "nothing": ("", ["line 1", "'row' is missing"]),
    "a column missing": ("row,given,suggested,by\n5,,keep,person\n", ["line 1", "'decision' is missing"]),
    "a column twice": ("row,row,given,suggested,decision,by\n", ["'row' is twice"]),
    "a short line": (HEAD + "5,,keep\n", ["line 2", "3 cells", "5"]),
    "an unknown row": (HEAD + "99,,keep,accept,person\n", ["line 2", "column row", "'99'", "other data"]),
    "a row by another name": (HEAD + "05,,keep,accept,person\n", ["line 2", "'05'"]),
    "a row of no file": (HEAD + "b.csv:1,,keep,accept,person\n", ["'b.csv:1'"]),
    "a row twice": (HEAD + "5,,keep,accept,person\n5,,keep,skip,person\n", ["line 3", "column row", "line 2 too"]),
    "an empty row": (HEAD + ",,keep,accept,person\n", ["line 2", "column row", "empty"]),
    "another given label": (HEAD + "1,=cat,keep,skip,person\n", ["line 2", "column given", "'keep'", "other data"]),
    "an unknown class": (HEAD + "5,,keep,=cow,person\n", ["line 2", "column decision", "'=cow'", "=cat"]),
    "an unknown suggestion": (HEAD + "5,,dog,accept,person\n", ["line 2", "column suggested", "'dog'"]),
    "nothing to accept": (HEAD + "5,,,accept,person\n", ["line 2", "column decision", "nothing is suggested"]),
    "nobody": (HEAD + "5,,keep,accept,me\n", ["line 2", "column by", "'me'", "person"]),
    "no decision": (HEAD + "5,,keep,,person\n", ["no decision", "fill in"]),
    "test rows alone": (HEAD + "3,keep,=cat,accept,person\n", ["no decision on a row that teaches"]),
    "an open quote": (HEAD + '5,,"keep,accept,person\n', ["line 2", "no CSV"]),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    text, words = BAD[name]
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(DataError) as error:
        decide(*data(), NAMES, tmp_path / "d.csv")
    assert "\n" not in str(error.value)
    for word in [str(tmp_path / "d.csv"), *words]:
        assert word in str(error.value)


@pytest.mark.parametrize("content", [b"row,given\xff", b"\x00\x01", None])
def test_what_is_no_text_is_refused_in_a_line(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "d.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"d\.csv"):
        read_decisions(tmp_path / "d.csv")


def test_values_are_decided_by_numbers(tmp_path: Path) -> None:
    column = LabelColumn("mine", torch.tensor([1.0, 2.0, 3.0, torch.nan, torch.nan]), ())
    parts = make_splits(column, test=torch.tensor([0]), audit=0)
    (tmp_path / "d.csv").write_text(HEAD + "4,,2.5,accept,person\n5,,1,1e3,person\n")
    assert decide(parts, column, RowNames(), tmp_path / "d.csv").parts.y[3:].tolist() == [2.5, 1000.0]
    for text in ("nan", "inf", "two"):
        (tmp_path / "d.csv").write_text(HEAD + f"4,,2.5,{text},person\n")
        with pytest.raises(DataError, match="line 2, column decision"):
            decide(parts, column, RowNames(), tmp_path / "d.csv")


def images(tmp_path: Path) -> str:
    from PIL import Image

    for number in range(12):
        path = tmp_path / "pets" / ("cat", "dog", "unlabelled")[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 20 * number + 1).save(path)
    return str(tmp_path / "pets")


def table(tmp_path: Path) -> str:
    lines = [f"{number},{'' if number % 3 == 2 else 'cat' if number % 3 else 'dog'}" for number in range(24)]
    (tmp_path / "t.csv").write_text("\n".join(["size,kind", *lines]) + "\n")
    return str(tmp_path / "t.csv")


@pytest.mark.parametrize("make", [images, table])
def test_rows_of_images_and_tables_are_found_again(make: Callable[[Path], str], tmp_path: Path) -> None:
    """Every row's name finds the row; a label that was decided is that row's, and the test split is the same one."""
    source = make(tmp_path)
    options = {"image_size": 8} if make is images else {"target": "kind"}
    before: Data = load(source, **options)
    names = before.row_names
    assert [names.find(names.name(row)) for row in range(len(before.y))] == list(range(len(before.y)))
    row = int(before.unlabelled[1])
    write_decisions(tmp_path / "d.csv", [LabelDecision(names.name(row), "", "", "dog")])
    after: Data = load(source, decisions=tmp_path / "d.csv", **options)
    assert after.classes[int(after.y[row])] == "dog"
    assert torch.equal(after.labelled, torch.cat([before.labelled, before.unlabelled[1:2]]).sort().values)
    assert torch.equal(after.test, before.test)
    assert "1 labels were decided" in after.note
    if make is table:
        frame = frames.load(source, target="kind", decisions=str(tmp_path / "d.csv"))
        assert row in frame.labelled
        assert frame.classes[frame.y[row]] == "dog"


def test_a_hidden_label_stays_hidden_and_is_decided(tmp_path: Path) -> None:
    """Of digits with 50 labels the others are unlabelled; one that was decided teaches, and no other does."""
    before = load("digits", labels=50)
    row = int(before.unlabelled[7])
    write_decisions(tmp_path / "d.csv", [LabelDecision(str(row + 1), "", "3", "accept")])
    after = load("digits", labels=50, decisions=tmp_path / "d.csv")
    assert len(after.labelled) == 51
    assert int(after.y[row]) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--labels 50 --labels 60", ["'60'", "one number and one file"]),
        ("--labels nothing.csv", ["'nothing.csv'", "files of decisions"]),
        ("--labels 0", ["0", "x>=1"]),
        ("--labels d.csv", ["line 2", "'99999'"]),
    ],
)
def test_labels_are_a_number_or_a_file(
    options: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.csv").write_text(HEAD + "99999,,3,accept,person\n")
    line = refused("run", "digits", "--steps", "2", *options.split())
    for word in words:
        assert word in line
