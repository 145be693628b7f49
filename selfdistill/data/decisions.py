"""Decisions on labels: one CSV file that commands propose, a person fills in, and `run --labels FILE` trains on.

Its columns are those of `LabelDecision`. ``row`` names a row of the data exactly: its number from 1 on (the header of a
table is not counted), ``FILE:NUMBER`` for a row of a further file of the request, or the file of an image.
``decision`` is empty while it is open, ``accept`` (the suggestion is the label), ``keep`` (the given label stays),
``skip`` (nothing changes), ``drop`` (the row teaches and validates no more), or the label itself: a class or a number.
A class with the name of one of these words is written ``class:NAME``. ``by`` is person or model.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, SupportsFloat

import torch
from torch import Tensor

from ..errors import DataError
from ..io.display import plural
from ..io.expressions import nearest, one_line
from ..io.files import csv_text, unescape_formula
from ..io.files import write as write_text
from .splits import LabelColumn, Splits, difference, has_label

ACCEPT, KEEP, SKIP, DROP = WORDS = ("accept", "keep", "skip", "drop")
PERSON, MODEL = DECIDERS = ("person", "model")
FILE = "decisions.csv"  # in a run folder
CLASS = "class:"  # before the name of a class that is one of the words
LARGEST = 1 << 28  # bytes of a file


class LabelDecision(NamedTuple):
    """A row of the file, its cells as texts; ``given`` is empty where the row has no label."""

    row: str
    given: str = ""
    suggested: str = ""
    decision: str = ""
    by: str = PERSON


class RowNames(NamedTuple):
    """The names of rows: the ``files`` of images, else numbers by the row ``counts`` of the files that hold them."""

    files: Sequence[str] = ()
    counts: Sequence[tuple[str, int]] = ()  # of the main file, then of further ones

    def name(self, row: int) -> str:
        """The name of a row.

        >>> names = RowNames(counts=[("t.csv", 3), ("more.csv", 2)])
        >>> names.name(0), names.name(4), names.find("more.csv:2"), names.find("4")
        ('1', 'more.csv:2', 4, None)
        """
        if self.files:
            return self.files[row]
        for place, (file, count) in enumerate(self.counts):
            if row < count:
                return f"{file}:{row + 1}" if place else str(row + 1)
            row -= count
        return str(row + 1)

    def find(self, name: str) -> int | None:
        """The row of a name; None where no row, or more than one, has it."""
        if self.files:
            return _unique(self.files).get(name)
        file, _, number = name.rpartition(":")
        if re.fullmatch("[1-9][0-9]{,11}", number) is None:  # one name a row: 07 is none
            return None
        begin = 0
        for place, (other, count) in enumerate(self.counts):
            if (file == other) if place else not file:
                return begin + int(number) - 1 if int(number) <= count else None
            begin += count
        return int(number) - 1 if not file and not self.counts else None


def write_decisions(path: str | Path, decisions: Iterable[LabelDecision], raw: bool = False) -> None:
    """Write a file of decisions, all of it or nothing.

    Args:
        path: the file.
        decisions: its rows.
        raw: leave cells as they are that a spreadsheet takes for formulas.

    Raises:
        DataError: it cannot be written.
    """
    write_text(Path(path), csv_text([LabelDecision._fields, *decisions], raw))


def read_decisions(path: str | Path, raw: bool = False) -> dict[int, LabelDecision]:
    """The decisions of a file by the number of their line.

    Args:
        path: the file; a spreadsheet may have saved it with semicolons or tabs, and with further columns.
        raw: whether it was written with ``raw``.

    Raises:
        DataError: it cannot be read, or a line does not fit; the message names line and column.
    """
    try:
        if (size := Path(path).stat().st_size) > LARGEST:
            raise DataError(f"{path}: {size / 1e6:,.0f} MB are no file of decisions; give another one")
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file of decisions") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no UTF-8 text (byte {error.start + 1}); save it as CSV with UTF-8") from None
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count), strict=True)
    lines = dict[int, LabelDecision]()
    first = dict[str, int]()
    try:
        places = _places(path, next(reader, []))
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            line = reader.line_num
            decision = _read_line(f"{path}, line {line}", cells, places, raw)
            if decision.row in first:
                raise DataError(
                    f"{path}, line {line}, column row: {one_line(decision.row, 60)} is in line {first[decision.row]} "
                    "too; remove one of them"
                )
            first[decision.row], lines[line] = line, decision
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: no CSV ({error}); save the file again as CSV") from None
    return lines


def _places(path: str | Path, header: Sequence[str]) -> list[int]:
    """Where each column is."""
    names = [cell.strip().lower() for cell in header]
    for name in LabelDecision._fields:
        if names.count(name) != 1:
            state = "twice" if name in names else "missing"
            raise DataError(
                f"{path}, line 1: column '{name}' is {state}; a file of decisions has the columns "
                f"{', '.join(LabelDecision._fields)}"
            )
    return [names.index(name) for name in LabelDecision._fields]


def _read_line(place: str, cells: Sequence[str], places: Sequence[int], raw: bool) -> LabelDecision:
    if len(cells) <= max(places):
        raise DataError(
            f"{place}: {plural(len(cells), 'cell')}, and its columns are {max(places) + 1}; repair the line"
        )
    texts = [cells[column] if raw else unescape_formula(cells[column]) for column in places]
    decision = LabelDecision(*texts)._replace(decision=texts[3].strip(), by=texts[4].strip().lower())
    if not decision.row.strip():
        raise DataError(f"{place}, column row: it is empty; name the row")
    if decision.by not in DECIDERS:
        raise DataError(f"{place}, column by: {one_line(decision.by, 40)!r} is neither {PERSON} nor {MODEL}")
    word = decision.decision.lower()
    if word in WORDS:
        decision = decision._replace(decision=word)
    if word == ACCEPT and not decision.suggested:
        raise DataError(f"{place}, column decision: accept, and nothing is suggested; write the label itself")
    return decision


class Labelled(NamedTuple):
    """The splits after decisions, and what became of these in words."""

    parts: Splits
    note: str
    by_model: Tensor  # ids of the rows whose labels the model gave


def decide(parts: Splits, column: LabelColumn, names: RowNames, path: str | Path | None, raw: bool = False) -> Labelled:
    """The splits with the labels that were decided: unlabelled rows come to those that teach.

    Rows of the test split never change, nor do rows that are in no split; they are counted in the note.

    Args:
        parts: the splits as they were drawn.
        column: the labels and classes of the data.
        names: the names of its rows.
        path: the file of decisions; without one nothing changes.
        raw: as of `read_decisions`.

    Raises:
        DataError: a row or a class is unknown, or the file is of other data, or has no decision yet.
    """
    if path is None:
        return Labelled(parts, "", parts.test[:0])
    y, noisy, dropped, changed = parts.y.clone(), parts.noisy.clone(), list[int](), list[int]()
    where = torch.full((len(y),), -1)
    for number, ids in enumerate((parts.labelled, parts.unlabelled, parts.audit)):
        where[ids] = number
    apart, guessed, checked, lines = 0, list[int](), list[int](), read_decisions(path, raw)
    find = _unique(names.files).get if names.files else names.find
    for line, decision in lines.items():
        place = f"{path}, line {line}"
        row = _row(place, decision, find, len(y), column)
        if bool(has_label(parts.y[row : row + 1])[0]):
            _check_given(place, decision, parts.y[row], column)
        label = _label(place, decision, column)
        kept_label = decision.decision == KEEP and where[row] == 0
        if decision.by == PERSON and (kept_label or (label is not None and 0 <= where[row] <= 1)):
            checked.append(row)
        if label is None and decision.decision != DROP:
            continue
        if where[row] < 0:
            apart += 1
        elif label is None:
            dropped.append(row)
        else:
            y[row], noisy[row] = label, False
            changed.append(row)
            guessed += [row] if decision.by == MODEL else []
    if not changed and not dropped and not checked:
        raise DataError(
            f"{path}: it has no decision on a row that teaches or validates; fill in the column decision (accept, a "
            "class, drop)"
        )
    gone, rows = torch.tensor(dropped, dtype=torch.int64), torch.tensor(changed, dtype=torch.int64)
    new = rows[where[rows] == 1]
    note = f"{path}: {len(rows)} labels were decided, {len(new)} of them new"
    note += f", {len(guessed)} by the model, which are no truth to judge a model by" if guessed else ""
    note += f"; {plural(len(gone), 'row')} dropped" if len(gone) else ""
    note += f"; {plural(apart, 'row')} of the test split or of no split kept as they are" if apart else ""
    kept = {name: difference(getattr(parts, name), gone) for name in ("unlabelled", "audit")}
    labelled = difference(torch.cat([parts.labelled, new]).sort().values, gone)
    unlabelled = difference(kept["unlabelled"], new)
    clean = torch.tensor(checked, dtype=torch.int64).sort().values
    decided = Splits(y, labelled, unlabelled, kept["audit"], parts.test, noisy, clean, parts.before_noise)
    return Labelled(decided, note, torch.tensor(guessed, dtype=torch.int64))


def _unique(files: Sequence[str]) -> dict[str, int]:
    """The place of each name that is there once."""
    places = {file: place for place, file in enumerate(files)}
    for file, count in Counter(files).items() if len(places) < len(files) else ():
        if count > 1:
            del places[file]
    return places


def _row(place: str, decision: LabelDecision, find: Callable[[str], int | None], rows: int, column: LabelColumn) -> int:
    row = find(decision.row)
    if row is None or row >= rows:
        raise DataError(
            f"{place}, column row: {column.name} has no single row {one_line(decision.row, 60)!r}; the file is of "
            "other data, or the cell was changed"
        )
    return row


def label_text(value: SupportsFloat, classes: Sequence[str]) -> str:
    """A label as the file holds it.

    >>> label_text(torch.tensor(1), ["no", "yes"]), label_text(torch.tensor(0.1), [])
    ('yes', '0.1')
    """
    return classes[int(float(value))] if classes else f"{float(value):.6g}"


def _check_given(place: str, decision: LabelDecision, value: Tensor, column: LabelColumn) -> None:
    label = label_text(value, column.classes)
    if decision.given and decision.given != label:
        raise DataError(
            f"{place}, column given: {one_line(decision.given, 40)!r}, and the row has the label "
            f"{one_line(label, 40)!r}; the file is of other data"
        )


def _label(place: str, decision: LabelDecision, column: LabelColumn) -> float | None:
    """The label that was decided: a class by its number, or a value; None where nothing changes."""
    text = decision.decision
    if text in ("", KEEP, SKIP, DROP):
        return None
    name, cell = (decision.suggested, "suggested") if text == ACCEPT else (text, "decision")
    if column.classes:
        if name not in column.classes and cell == "decision":
            name = name.removeprefix(CLASS)
        if name in column.classes:
            return column.classes.index(name)
        close = nearest(name, list(column.classes))
        some = close or ", ".join(column.classes[:6]) + (", ..." if len(column.classes) > 6 else "")
        raise DataError(
            f"{place}, column {cell}: {one_line(name, 40)!r} is no class of {column.name}; write accept, keep, skip, "
            f"drop or a class ({some})"
        )
    try:
        value = float(name)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(
            f"{place}, column {cell}: {one_line(name, 40)!r} is no finite number; write accept, keep, skip, drop or a "
            "number"
        )
    return value
