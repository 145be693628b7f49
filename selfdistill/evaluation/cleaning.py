"""A cleaned copy of data whose labels look wrong: a folder of images by class, or a table; the originals stay.

A row is known by its number from 1 on in a table, and by its file in a folder. Each change says what becomes of a row
and what label it had, so that data that changed since the labels were scored are refused.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..data.annotators import read_names
from ..data.decisions import ACCEPT, CLASS, DROP, KEEP, SKIP, read_decisions
from ..data.table_files import TEXT, is_table, read_dialect, read_table, text_handle
from ..errors import DataError
from ..io.display import plural
from ..io.expressions import one_line
from ..io.files import write
from ..io.run_record import read_record
from .label_errors import read_label_errors
from .label_noise import LIKELY

RELABEL, SET_ASIDE = "relabel", "set-aside"
CONSENSUS = "consensus"  # the column of labels in the copy of a table of several annotators
ASIDE = "-set-aside"  # after the name of the copy: where rows lie that were set aside


AFTER = (
    "A model chose these rows: the noise rate that a run on the copy estimates will be too low. Its test labels are "
    "others too, so accuracies before and after are not comparable; compare them on rows whose labels you trust "
    "(--test PATH)."
)


class Panel(NamedTuple):
    """The columns of annotators, and the consensus of rows by their number from 1 on: it takes their place."""

    columns: tuple[str, ...]
    consensus: Mapping[int, str]


class Change(NamedTuple):
    """What becomes of a row: another ``label``, or none (the row is left out); ``given`` is the label it had."""

    given: str
    label: str | None


class Copy(NamedTuple):
    """What was written: the rows of the copy, and how many were changed or left out."""

    place: Path
    rows: int
    changed: int
    left_out: int
    aside: Path | None

    def to_json(self) -> dict[str, Any]:
        """The same for `--json`."""
        aside = str(self.aside) if self.aside else None
        return {**self._asdict(), "place": str(self.place), "aside": aside}

    def describe(self) -> str:
        """A line for people."""
        parts = [f"{plural(self.changed, 'row')} with another label"] * bool(self.changed)
        parts += [f"{plural(self.left_out, 'row')} left out"] * bool(self.left_out)
        aside = f", which {'lies' if self.left_out == 1 else 'lie'} in {self.aside}" if self.aside else ""
        return f"wrote {self.place}: {plural(self.rows, 'row')}, {' and '.join(parts) or 'nothing changed'}{aside}"


def clean(run: Path, place: str | Path, action: str | None = None, labels: str | None = None) -> Copy:
    """Write a copy of a run's data without its label errors; the originals stay as they are.

    Args:
        run: The folder of a finished run, which scored the labels.
        place: As of `write_cleaned`.
        action: What becomes of rows whose label looks wrong: ``drop`` (the default), ``relabel`` as suggested, or
            ``set-aside``, a drop that keeps them beside the copy.
        labels: A file of decisions: then these alone count.

    Raises:
        CheckpointError: the run is not finished, or has no scores.
        DataError: as of `write_cleaned`; or the decisions cannot be read, or change nothing.
    """
    listed, (_, request) = read_label_errors(run), read_record(run / "run.json")
    if labels is None:
        errors = [row for row in listed["labels"] if row["score"] > LIKELY]
        changes = {
            row["name"] or str(row["row"]): Change(row["given"], row["suggested"] if action == RELABEL else None)
            for row in errors
        }
        if not changes:
            raise DataError(f"{run}: no label looks wrong, so a copy would be the same; nothing was written")
    else:
        if action not in (None, SET_ASIDE):
            raise DataError(f"--action {action} is for labels that look wrong, and --labels decides; leave one out")
        changes = {}
        for decision in read_decisions(labels, request.raw_csv).values():
            if decision.decision in ("", KEEP, SKIP) or not decision.given:
                continue
            label = decision.suggested if decision.decision == ACCEPT else decision.decision.removeprefix(CLASS)
            changes[decision.row] = Change(decision.given, None if decision.decision == DROP else label)
        if not changes:
            raise DataError(f"{labels}: no decision changes a label or drops a row; fill in the column decision")
    consensus = {row["row"]: row["given"] for row in listed["labels"]} if request.annotators else {}
    panel = Panel(read_names(request.annotators), consensus) if consensus else None
    return write_cleaned(request.data, place, changes, request.target, aside=action == SET_ASIDE, panel=panel)


def write_cleaned(
    source: str,
    place: str | Path,
    changes: Mapping[str, Change],
    target: str | None,
    aside: bool = False,
    panel: Panel | None = None,
) -> Copy:
    """Write a copy of a folder of images or of a table with some labels changed and some rows left out.

    Args:
        source: The folder or table that was learnt.
        place: The copy, which must not exist: a folder, or a file that ends in .csv.
        changes: By number of the row or by file.
        target: The column of the label, of a table.
        aside: Write the rows that are left out beside the copy.
        panel: Several annotators in place of a target: the copy has the column ``consensus`` in place of theirs.

    Returns:
        What was written.

    Raises:
        DataError: the source is neither, the place exists, or a row is not what it was.

    Example::

        write_cleaned("photos", "cleaned", {"photos/cat/7.png": Change("cat", "dog")}, None)
    """
    path, place = Path(source), Path(place)
    beside = check_place(source, place, CONSENSUS if panel else target, SET_ASIDE if aside else None)
    if path.is_dir() and not is_table(source):
        return _write_folder(path, place, changes, beside)
    return _write_table(path, place, changes, target or CONSENSUS, beside, panel)


def check_place(source: str, place: str | Path, target: str | None, action: str | None) -> Path | None:
    """Refuse a copy that cannot be written, and name the place of rows that are set aside; None where none are.

    Args:
        source, place, target: As of `write_cleaned`.
        action: As of `clean`.

    Raises:
        DataError: the source is neither a folder nor a table, or the place exists or does not fit.
    """
    path, place = Path(source), Path(place)
    beside = place.with_name(place.stem + ASIDE + place.suffix) if action == SET_ASIDE else None
    for one in filter(None, (place, beside)):
        if one.exists() or one.is_symlink():
            raise DataError(f"--write {one}: it exists; give another place")
    if not place.parent.is_dir():
        raise DataError(f"--write {place}: {place.parent} is no folder; make it, or give another place")
    if path.is_dir() and not is_table(source):
        if place.resolve().is_relative_to(path.resolve()):
            raise DataError(f"--write {place}: it is inside of {path}, which it copies; give a place outside")
        if place.suffix.lower() == ".csv":
            raise DataError(f"--write {place}: the copy of a folder of images is a folder; give a name without .csv")
        return beside
    if not path.is_file() or not is_table(source) or target is None:
        raise DataError(
            f"--write copies a folder of images by class or a table, and {one_line(source, 60)} is neither; write your "
            "decisions on its rows with `review` and train by `run --labels FILE`"
        )
    if place.suffix.lower() != ".csv":
        raise DataError(f"--write {place}: the copy of a table is a CSV file; give a name that ends in .csv")
    return beside


# ---- a folder of images --------------------------------------------------------------------------------------------


def _write_folder(source: Path, place: Path, changes: Mapping[str, Change], beside: Path | None) -> Copy:
    """Copy every file of the folder to its place, those that stay first; nothing is left half written."""
    moves = {Path(name).resolve(): change for name, change in changes.items()}
    files = [file for file in sorted(source.rglob("*")) if file.is_file()]
    files.sort(key=lambda file: file.resolve() in moves)
    missing = next((name for name in changes if not Path(name).is_file()), None)
    if missing is not None:
        raise DataError(f"{missing}: the run learnt this file, and it is gone; run the data again")
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    changed = left_out = 0
    try:
        for file in files:
            inner, change = file.relative_to(source), moves.get(file.resolve())
            if change is None:
                _copy(file, partial / "copy" / inner)
            elif change.label is not None:
                _copy(file, _free(partial / "copy" / _moved(inner, change, file)))
                changed += 1
            else:
                left_out += 1
                if beside is not None:
                    _copy(file, _free(partial / "aside" / inner))
        (partial / "copy").replace(place)
        if beside is not None and left_out:
            (partial / "aside").replace(beside)
    except OSError as error:
        raise DataError(f"--write {place}: {error.strerror}; give a place with room that can be written") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Copy(place, len(files) - left_out, changed, left_out, beside if left_out else None)


def _moved(inner: Path, change: Change, file: Path) -> Path:
    """The place of a file with another label: its class is the first folder, or the second one below a split."""
    parts = list(inner.parts)
    number = next((i for i, part in enumerate(parts[:-1][:2]) if part == change.given), None)
    if number is None:
        raise DataError(f"{file}: its label was '{change.given}', and it lies in no such folder; run the data again")
    parts[number] = change.label or ""
    return Path(*parts)


def _free(path: Path) -> Path:
    """The path, or one with a number where a file of that name is there already."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def _copy(file: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(file, place)  # no link: whoever edits the copy must not edit the original


# ---- a table -------------------------------------------------------------------------------------------------------


def _write_table(
    source: Path, place: Path, changes: Mapping[str, Change], target: str, beside: Path | None, panel: Panel | None
) -> Copy:
    """Write the rows as text; a CSV or TSV file keeps every other cell as it is written."""
    text = source.name.lower().endswith(TEXT)
    header, rows, separator = _text_rows(source) if text else _frame_rows(source)
    if panel is not None:
        header, rows = _with_consensus(source, header, rows, panel)
    if target not in header:
        raise DataError(f"{source}: no column '{one_line(target, 40)}', which the run learnt; run the data again")
    column, kept, aside, changed = header.index(target), list[list[str]](), list[list[str]](), 0
    for number, row in enumerate(rows, 1):
        change = changes.get(str(number))
        if change is None:
            kept.append(row)
            continue
        if not _same(row[column], change.given):
            raise DataError(
                f"{source}, row {number}, column {target}: '{one_line(row[column], 40)}', and the run learnt "
                f"'{one_line(change.given, 40)}'; the file was changed, so run it again"
            )
        if change.label is None:
            aside.append(row)
        else:
            changed += 1
            kept.append([*row[:column], change.label, *row[column + 1 :]])
    beyond = [name for name in changes if not name.isdecimal() or int(name) > len(kept) + len(aside)]
    if beyond and len(beyond) == len(changes):
        raise DataError(f"--write copies {source}, and the labels that look wrong are of other files: {beyond[0]}")
    _save(place, header, kept, separator)
    if beside is not None and aside:
        _save(beside, header, aside, separator)
    return Copy(place, len(kept), changed, len(aside), beside if aside else None)


def _with_consensus(
    source: Path, header: list[str], rows: list[list[str]], panel: Panel
) -> tuple[list[str], list[list[str]]]:
    """The table with one column of the consensus, the last one, in place of the columns of annotators."""
    gone = set(panel.columns)
    if CONSENSUS in header:
        raise DataError(f"{source}: it has a column '{CONSENSUS}', which the copy needs for the labels; rename it")
    if missing := gone - set(header):
        raise DataError(f"{source}: no column '{one_line(min(missing), 40)}', which the run learnt; run the data again")
    kept = [i for i, name in enumerate(header) if name not in gone]
    lines = [[*(row[i] for i in kept), panel.consensus.get(number, "")] for number, row in enumerate(rows, 1)]
    return [*(header[i] for i in kept), CONSENSUS], lines


def _same(cell: str, given: str) -> bool:
    """Whether a cell holds a label: the same text, or the same number."""
    if cell.strip() == given.strip():
        return True
    try:
        value, label = float(cell.replace(",", ".")), float(given)
    except ValueError:
        return False
    return abs(value - label) <= 1e-5 * max(1.0, abs(label))  # a value in the list has six digits


def _text_rows(source: Path) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and separator of a text file; empty lines are no rows, as for whoever reads it to learn."""
    dialect = read_dialect(source)
    with text_handle(source, dialect.encoding) as handle:
        rows = [row for row in csv.reader(handle, delimiter=dialect.separator) if row]
    width = len(rows[0])
    return rows[0], [row + [""] * (width - len(row)) for row in rows[1:]], dialect.separator


def _frame_rows(source: Path) -> tuple[list[str], list[list[str]], str]:
    """The same of another kind of table, by pandas."""
    import pandas as pd

    table = read_table(source)
    frame: Any = pd.DataFrame({name: table.take(name) for name in table.names})
    lines = list(csv.reader(io.StringIO(frame.to_csv(index=False))))
    return lines[0], lines[1:], ","


def _save(place: Path, header: list[str], rows: list[list[str]], separator: str) -> None:
    with io.StringIO() as buffer:
        csv.writer(buffer, delimiter=separator, lineterminator="\n").writerows([header, *rows])
        write(place, buffer.getvalue())
