"""Cleaned copies: what changes, what is refused, and that originals stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfdistill.data.cleaned import Change, changes, check_target, proposals, write_cleaned
from selfdistill.data.decisions import LabelDecision
from selfdistill.errors import DataError

TABLE = 'a;target;note\n1;cat;"x;y"\n\n2;dog;\n3;cat;z\n4;;w\n'


@pytest.fixture
def table(tmp_path: Path) -> Path:
    (tmp_path / "t.csv").write_text(TABLE)
    return tmp_path / "t.csv"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png", "unlabelled/9.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_text(name)
    return tmp_path / "photos"


def test_a_table_keeps_its_other_cells(table: Path, tmp_path: Path) -> None:
    """Rows are counted without blank lines, as everywhere."""
    made = {"1": Change("cat", "dog"), "2": Change("dog", None, row=False), "3": Change("cat", None)}
    text = write_cleaned(str(table), "target", made, tmp_path / "c.csv")
    assert (tmp_path / "c.csv").read_text() == 'a;target;note\n1;dog;"x;y"\n3;;z\n4;;w\n'
    assert "1 row dropped, 1 set aside, 1 relabelled" in text
    assert table.read_text() == TABLE


def test_a_folder_is_copied_without_its_label_errors(photos: Path, tmp_path: Path) -> None:
    made = {
        str(photos / "cat/1.png"): Change("cat", "dog"),
        str(photos / "cat/2.png"): Change("cat", None),
        str(photos / "dog/1.png"): Change("dog", None, row=False),
    }
    write_cleaned(str(photos), None, made, tmp_path / "c")
    files = {path.relative_to(tmp_path / "c").as_posix(): path.read_text() for path in (tmp_path / "c").rglob("*.png")}
    assert files == {
        "dog/1.png": "cat/1.png",
        "unlabelled/cat/2.png": "cat/2.png",
        "unlabelled/9.png": "unlabelled/9.png",
    }
    assert len(list(photos.rglob("*.png"))) == 4


def test_no_file_of_a_folder_is_written_over(photos: Path, tmp_path: Path) -> None:
    """dog/1.png and a relabelled cat/1.png have one name."""
    write_cleaned(str(photos), None, {str(photos / "cat/1.png"): Change("cat", "dog")}, tmp_path / "c")
    texts = sorted(path.read_text() for path in (tmp_path / "c" / "dog").iterdir())
    assert texts == ["cat/1.png", "dog/1.png"]


def test_decisions_and_proposals() -> None:
    made = changes(
        {
            "1": LabelDecision("1", "cat", "dog", "accept"),
            "2": LabelDecision("2", "cat", "dog", "class:keep"),
            "3": LabelDecision("3", "cat", "dog", "drop"),
            "4": LabelDecision("4", "cat", "dog", "keep"),
            "5": LabelDecision("5", "cat", "dog", ""),
        },
        "set-aside",
    )
    assert made == {"1": Change("cat", "dog"), "2": Change("cat", "keep"), "3": Change("cat", None, row=True)}
    assert proposals({"1": ("a", "b")}, "drop") == {"1": Change("a", None, row=False)}
    assert proposals({"1": ("a", "b")}, "set-aside") == {"1": Change("a", None, row=True)}


def test_what_cannot_be_written_is_refused_before(table: Path, photos: Path, tmp_path: Path) -> None:
    for source, out, message in [
        (table, table, "exists already"),
        (table, photos, "exists already"),
        (photos, photos / "new", "lies in"),
        (table, tmp_path / "no" / "c.csv", "its folder does not exist"),
        ("digits", tmp_path / "c", "no file or folder"),
    ]:
        with pytest.raises(DataError, match=message):
            check_target(str(source), out)
    (tmp_path / "t.parquet").write_text("")
    with pytest.raises(DataError, match="CSV"):
        check_target(str(tmp_path / "t.parquet"), tmp_path / "c")


def test_data_that_changed_are_refused(table: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 2, column target: 'dog'"):
        write_cleaned(str(table), "target", {"2": Change("cat", "dog")}, tmp_path / "c.csv")
    with pytest.raises(DataError, match="no column 'label'"):
        write_cleaned(str(table), "label", {}, tmp_path / "c.csv")
    with pytest.raises(DataError, match="no folder above it"):
        write_cleaned(str(photos), None, {str(photos / "cat/1.png"): Change("dog", "cat")}, tmp_path / "c")
    assert not (tmp_path / "c.csv").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [], "nothing half-written stays"
