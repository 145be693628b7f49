"""Cleaned data: a copy of a table or of a folder of images with some labels dropped, changed or set aside.

The originals are never changed, and nothing is written over: the copy is a new file or folder. ``drop`` leaves a row
out, ``relabel`` gives it the suggested label, and ``set-aside`` takes its label away: of a table the target cell is
empty, and an image goes to ``unlabelled/CLASS``, so that `run` still learns from it, without the label.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ..errors import DataError
from ..io.display import plural
from ..io.expressions import one_line
from ..io.files import write
from .decisions import ACCEPT, CLASS, DROP, KEEP, SKIP, LabelDecision

RELABEL, SET_ASIDE = "relabel", "set-aside"
ACTIONS = (DROP, RELABEL, SET_ASIDE)
UNLABELLED = "unlabelled"
SEPARATORS = ",;\t|"


class Change(NamedTuple):
    """The new label of a row; None where it has none any more: ``row`` leaves the data too."""

    given: str
    label: str | None
    row: bool = True  # whether it stays


def changes(decisions: Mapping[str, LabelDecision], action: str) -> dict[str, Change]:
    """The changes that decisions ask for, by the name of the row.

    Args:
        decisions: The decisions by the name of the row; an open one is none.
        action: What becomes of a label that is dropped: ``drop`` or ``set-aside``; with ``relabel`` it is dropped.

    >>> changes({"3": LabelDecision("3", "cat", "dog", "accept")}, "drop")
    {'3': Change(given='cat', label='dog', row=True)}
    """
    made = {}
    for name, decision in decisions.items():
        if decision.decision in ("", KEEP, SKIP):
            continue
        if decision.decision == DROP:
            made[name] = Change(decision.given, None, action == SET_ASIDE)
            continue
        label = decision.suggested if decision.decision == ACCEPT else decision.decision.removeprefix(CLASS)
        made[name] = Change(decision.given, label)
    return made


def proposals(rows: Mapping[str, tuple[str, str]], action: str) -> dict[str, Change]:
    """The changes of likely errors, by the name of the row: from the given and the suggested label of each.

    >>> proposals({"3": ("cat", "dog")}, "relabel")
    {'3': Change(given='cat', label='dog', row=True)}
    """
    return {
        name: Change(given, suggested if action == RELABEL else None, action != DROP)
        for name, (given, suggested) in rows.items()
    }


def check_target(source: str, out: Path) -> None:
    """Refuse a copy that cannot be written, before anything is trained.

    Raises:
        DataError: the place exists, lies in the data, or cannot be made; or the data are no file and no folder.
    """
    path = Path(source)
    if not path.exists():
        raise DataError(f"{source} is no file or folder, so there is nothing to copy; --write is for data of your own")
    if os.path.lexists(out):
        raise DataError(f"{out} exists already and is not written over; give another --write")
    if not out.resolve().parent.is_dir():
        raise DataError(f"{out} cannot be written (its folder does not exist); give another --write")
    if path.is_dir() and out.resolve().is_relative_to(path.resolve()):
        raise DataError(f"{out} lies in {source}, which must stay as it is; give a --write outside of it")
    if path.is_file() and path.suffix.lower() not in (".csv", ".tsv"):
        raise DataError(
            f"{source}: a copy can be written of a CSV or TSV file, or of a folder of images; save it as CSV"
        )


def write_cleaned(source: str, target: str | None, made: Mapping[str, Change], out: Path) -> str:
    """Write the copy, all of it or nothing.

    Args:
        source: The table or the folder.
        target: The column of labels of a table.
        made: The changes, by the name of the row.
        out: The new file or folder.

    Returns:
        What was done, in words.

    Raises:
        DataError: the copy cannot be written, or the data have changed since they were examined.
    """
    check_target(source, out)
    missing = (
        _write_folder(Path(source), made, out) if Path(source).is_dir() else _write_table(source, target, made, out)
    )
    dropped = sum(not change.row for change in made.values())
    aside = sum(change.row and change.label is None for change in made.values())
    counts = f"{plural(dropped, 'row')} dropped, {aside} set aside, {len(made) - dropped - aside} relabelled"
    rest = f"; {plural(missing, 'row')} of other files or archives kept as they are" if missing else ""
    return f"{out}: {counts}{rest}"


def _write_table(source: str, target: str | None, made: Mapping[str, Change], out: Path) -> int:
    try:
        text = Path(source).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: cannot be read as UTF-8 ({one_line(error, 80)}); save it as CSV again") from None
    head = text.partition("\n")[0]
    separator = max(SEPARATORS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    names = next(reader, [])
    if target not in names:
        raise DataError(f"{source}: there is no column {target!r} any more; examine the data again")
    column, rows, number, changed = names.index(target), [names], 0, 0
    for cells in reader:
        if not cells:
            continue
        number += 1
        change = made.get(str(number))
        if change is not None:
            changed += 1
            _check_cell(f"{source}, row {number}, column {target}", cells[column], change.given)
            if not change.row:
                continue
            cells[column] = change.label or ""
        rows.append(cells)
    with io.StringIO(newline="") as buffer:
        csv.writer(buffer, delimiter=separator, lineterminator="\n").writerows(rows)
        write(out, buffer.getvalue(), "--write")
    return len(made) - changed


def _check_cell(place: str, cell: str, given: str) -> None:
    """A row that was examined has its label still; numbers may be written in several ways."""
    if not given or cell.strip() == given.strip():
        return
    try:
        if abs(float(cell) - float(given)) <= 1e-5 * max(1.0, abs(float(given))):
            return
    except ValueError:
        pass
    raise DataError(
        f"{place}: {one_line(cell, 40)!r}, and the examined label is {one_line(given, 40)!r}; the file has changed, "
        "examine it again"
    )


def _write_folder(source: Path, made: Mapping[str, Change], out: Path) -> int:
    """Copy a folder into a hidden one beside the target, and rename it when it is whole."""
    places = {_place(source, name): change for name, change in made.items()}
    missing = [place for place in places if place is None or not (source / place).is_file()]
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        for path in sorted(source.rglob("*")):
            if not path.is_file():
                continue
            place = path.relative_to(source)
            moved = _moved(place, places[place]) if place in places else place
            if moved is not None:
                copy = unfinished / moved
                copy.parent.mkdir(parents=True, exist_ok=True)
                if copy.exists():
                    copy = copy.with_name(f"{place.parent.name}-{copy.name}")
                shutil.copy2(path, copy)
        unfinished.rename(out)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise DataError(f"{out} cannot be written ({error.strerror}); give another --write") from error
    return len(missing)


def _place(source: Path, name: str) -> Path | None:
    """The place of a row's file below the folder; None where it lies outside."""
    for path in (Path(name), source / name):
        if path.resolve().is_relative_to(source.resolve()) and path.exists():
            return path.resolve().relative_to(source.resolve())
    return None


def _moved(place: Path, change: Change) -> Path | None:
    """Where a file with a change goes; None where it is left out.

    >>> _moved(Path("train/cat/1.png"), Change("cat", "dog")).as_posix()
    'train/dog/1.png'
    """
    if not change.row:
        return None
    parts = list(place.parts)
    level = next((i for i, part in enumerate(parts[:-1]) if part == change.given), None)
    if level is None:
        raise DataError(f"{place}: no folder above it is called {change.given!r}, its label; examine the data again")
    if change.label is None:
        return Path(UNLABELLED, *parts[level:])
    parts[level] = change.label
    return Path(*parts)
