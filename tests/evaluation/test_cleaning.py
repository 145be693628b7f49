"""Copies of data without label errors: what stays, what moves, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from selfdistill.data.decisions import LabelDecision, write_decisions
from selfdistill.errors import DataError
from selfdistill.evaluation.cleaning import Change, clean, write_cleaned
from selfdistill.evaluation.label_errors import read_label_errors
from selfdistill.evaluation.label_noise import LIKELY
from selfdistill.experiments.run import Run
from selfdistill.io.display import plural
from selfdistill.io.run_record import Request
from tests.terminal import passed, refused, write_images

TEXT = 'n;say;y\n1;"a; b";cat\n\n2;"two\nlines";dog\n3;;cat\n'


def test_a_table_keeps_every_other_cell_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(TEXT, encoding="utf-8")
    changes = {"1": Change("cat", "dog"), "3": Change("cat", None)}
    copy = write_cleaned(str(tmp_path / "t.csv"), tmp_path / "c.csv", changes, "y", aside=True)
    assert (tmp_path / "c.csv").read_text() == 'n;say;y\n1;"a; b";dog\n2;"two\nlines";dog\n'
    assert (tmp_path / "c-set-aside.csv").read_text() == "n;say;y\n3;;cat\n"
    assert (copy.rows, copy.changed, copy.left_out) == (2, 1, 1)
    assert (tmp_path / "t.csv").read_text() == TEXT


@pytest.mark.parametrize(
    ("changes", "place", "words"),
    [
        (
            {"1": Change("bird", None)},
            "c.csv",
            "row 1, column y: 'cat', and the run learnt 'bird'; the file was changed",
        ),
        ({"1": Change("cat", None)}, "t.csv", "it exists"),
        ({"1": Change("cat", None)}, "c.parquet", "ends in .csv"),
        ({"1": Change("cat", None)}, "no/c.csv", "is no folder"),
        ({"more.csv:1": Change("cat", None)}, "c.csv", "are of other files: more.csv:1"),
    ],
)
def test_what_does_not_fit_a_table_is_refused(
    changes: dict[str, Change], place: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text(TEXT, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        write_cleaned(str(tmp_path / "t.csv"), tmp_path / place, changes, "y")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_images_move_to_the_folder_of_their_new_class(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("train/a/1.png", "train/b/1.png", "test/a/2.png", "unlabelled/3.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_text(name)
    changes = {str(photos / "train/a/1.png"): Change("a", "b"), str(photos / "test/a/2.png"): Change("a", None)}
    copy = write_cleaned(str(photos), tmp_path / "c", changes, None, aside=True)
    names = sorted(str(path.relative_to(tmp_path / "c")) for path in (tmp_path / "c").rglob("*.png"))
    assert names == ["train/b/1-2.png", "train/b/1.png", "unlabelled/3.png"]
    assert (tmp_path / "c/train/b/1-2.png").read_text() == "train/a/1.png"
    assert (tmp_path / "c-set-aside/test/a/2.png").read_text() == "test/a/2.png"
    assert len(list(photos.rglob("*.png"))) == 4, "the originals stay"
    assert copy.describe().endswith(
        f"1 row with another label and 1 row left out, which lies in {tmp_path}/c-set-aside"
    )
    with pytest.raises(DataError, match="inside of"):
        write_cleaned(str(photos), photos / "c", changes, None)
    with pytest.raises(DataError, match="the copy of a folder of images is a folder"):
        write_cleaned(str(photos), tmp_path / "c.csv", changes, None)
    (photos / "train/a/1.png").unlink()
    with pytest.raises(DataError, match="it is gone"):
        write_cleaned(str(photos), tmp_path / "d", changes, None)
    assert not (tmp_path / "d").exists()


def test_a_run_writes_a_cleaned_table_and_learns_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [("ab"[i % 2], float(i % 2), i / 100) for i in range(200)]
    rows[3], rows[150] = ("a", *rows[3][1:]), ("b", *rows[150][1:])  # the wrong labels
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("y", "x", "z"), *rows])
    Run.create(Request("t.csv", target="y", model="mlp(width=16)", method="elr()", steps=200), tmp_path / "r").execute()
    said = passed("label-errors", "r", "--write", "c.csv", "--action", "relabel").stdout
    likely = {row["row"]: row["suggested"] for row in read_label_errors("r")["labels"] if row["score"] > LIKELY}
    assert likely.keys() & {4, 151}
    assert f"wrote c.csv: 200 rows, {plural(len(likely), 'row')} with another label" in said
    with Path("c.csv").open(newline="") as file:
        cleaned = list(csv.reader(file))[1:]
    assert [row[0] for row in cleaned] == [likely.get(n, row[0]) for n, row in enumerate(rows, 1)]
    write_decisions("d.csv", [LabelDecision("4", "a", "b", "accept"), LabelDecision("151", "b", "a", "keep")])
    copy = clean(tmp_path / "r", "e.csv", labels="d.csv")
    assert (copy.rows, copy.changed, copy.left_out) == (200, 1, 0)
    assert "give --write PLACE too" in refused("label-errors", "r", "--action", "drop")
    both = ("--labels", "d.csv", "--action", "relabel")
    assert "leave one out" in refused("label-errors", "r", "--write", "f.csv", *both)


def test_data_that_are_no_file_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "photos")
    with pytest.raises(DataError, match="digits is neither"):
        write_cleaned("digits", tmp_path / "c", {}, None)
