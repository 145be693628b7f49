"""The splits that a person chooses for a table: columns of groups, of times or of splits, and files for test and
validation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import one_line
from . import column_types
from .column_types import Column
from .prompt_files import SPLITS
from .table_files import Table, pandas, read_table

COLUMN = "split"  # a column of this name with these words alone names the split of each row


class SplitRequest(NamedTuple):
    """The columns that group and order the rows, name their tasks and hold the labels of annotators, and the files of a
    test and a validation split."""

    groups: str | None = None
    time: str | None = None
    test: Path | None = None
    validation: Path | None = None
    tasks: str | None = None
    annotators: tuple[str, ...] = ()

    def refuse(self, source: str, kind: str) -> None:
        """Refuse what data of another kind do not have.

        Raises:
            DataError: something was asked for.
        """
        for name, value in self._asdict().items():
            if value not in (None, ()):
                raise DataError(f"{source}: {kind}; leave {name} out")


NO_REQUEST = SplitRequest()


class Tasks(NamedTuple):
    """The task of each row, and the names of the tasks in their order."""

    numbers: Tensor  # (n,) int64, -1 for a row of no task
    names: tuple[str, ...]


class SplitColumns(NamedTuple):
    """What the columns and files say of rows: those of the table, then of its test, validation and unlabelled files."""

    columns: tuple[Column, ...] = ()  # the columns that are no features, for the report
    groups: Any = None  # (n,) codes
    time: Any = None  # (n,) float64
    test: Tensor | None = None  # row ids
    audit: Tensor | None = None
    tasks: Tasks | None = None


def read_further(request: SplitRequest, main: Table, target: str | None) -> list[Table]:
    """The tables of the test and the validation file, with cells as they are written.

    Raises:
        DataError: one cannot be read, or has no target in a row or at all.
    """
    written = request.annotators if target is None else (target,)
    tables = [read_table(path, written, main.names) for path in (request.test, request.validation) if path]
    for table in tables:
        if target is not None and target not in table.columns:
            raise DataError(f"{table.path}: no column is called '{target}', which is the target; add it")
        cells = None if target is None else table.columns[target]().replace("", None).isna()
        if cells is not None and cells.any():
            row = int(cells.argmax()) + 1
            raise DataError(f"{table.path}: row {row} (the first is 1) has no '{target}'; label it, or leave it out")
        for name in request.annotators:
            if name not in table.columns:
                raise DataError(f"{table.path}: no column is called '{name}', which is of an annotator; add it")
    return tables


def append_column(main: Table, further: Sequence[Table], name: str) -> None:
    """Let a column of a table go on with those of further ones."""
    if further and name in main.columns:
        series = [table.take(name) for table in (main, *further)]
        main.columns[name] = partial(pandas().concat, series, ignore_index=True)


def take_split_columns(
    request: SplitRequest, main: Table, further: Sequence[Table], unlabelled: Table | None, features: Sequence[str]
) -> SplitColumns:
    """The splits of the rows; the columns that decide them are taken out of the table.

    Args:
        request: what was asked for.
        main: the table.
        further: those of `read_further`.
        unlabelled: rows without a label, the last ones.
        features: columns that must not be taken: the target, texts, and those whose type was chosen.

    Raises:
        DataError: a column is missing, or has an empty cell or no time; a split is given twice.
    """
    sizes = [table.rows for table in (main, *further, *([unlabelled] if unlabelled else []))]
    begin = np.cumsum([0, *sizes])
    parts: dict[str, Tensor] = {}
    for number, name in enumerate(
        [n for n in ("test", "audit") if (request.test, request.validation)[n == "audit"]], 1
    ):
        parts[name] = torch.arange(int(begin[number]), int(begin[number + 1]))
    columns, rest = list[Column](), [*further, *([unlabelled] if unlabelled else [])]
    named = {} if COLUMN in (*features, request.groups, request.time, request.tasks) else _named_splits(main)
    if named:
        for name in set(named) & set(parts):
            raise DataError(
                f"{main.path}: its column '{COLUMN}' names {name} rows, and a file of them is given too; leave one out"
            )
        parts |= named
        main.take(COLUMN)
        counts = ", ".join(f"{len(ids)} {'validation' if n == 'audit' else n}" for n, ids in named.items())
        columns.append(Column(COLUMN, "identifier", f"names the split of each row: {counts}"))
    groups = None if request.groups is None else group_codes(request.groups, main, rest, features)
    time = None if request.time is None else row_times(request.time, main, rest, features)
    tasks = None if request.tasks is None else row_tasks(request, main, further, unlabelled, features)
    for column, why in (
        (request.groups, "groups the rows for the splits"),
        (request.time, "orders the rows for the splits"),
        (request.tasks, "names the task of each row"),
    ):
        if column is not None:
            columns.append(Column(column, "identifier", why))
    return SplitColumns(tuple(columns), groups, time, parts.get("test"), parts.get("audit"), tasks)


def _named_splits(table: Table) -> dict[str, Tensor]:
    """The test and validation rows by a column of such words; empty where there is none."""
    if COLUMN not in table.columns:
        return {}
    cells = column_types.cells_of(table.columns[COLUMN](), f"{table.path}: column '{COLUMN}'")
    words = [SPLITS.get(text.lower(), "") for text in cells.texts]
    if not all(words) or not {"test", "audit"} & set(words):
        return {}
    names = np.array([*words, "train"])[cells.codes]
    return {name: torch.from_numpy(np.flatnonzero(names == name)) for name in ("test", "audit") if name in words}


def _take(name: str, option: str, table: Table, features: Sequence[str]) -> Any:
    if name in features:
        raise DataError(
            f"{table.path}: column '{name}' is used otherwise and cannot be --{option}; leave it out of "
            "--column and --target, or give another one"
        )
    if name not in table.columns:
        raise DataError(f"{table.path}: no column is called '{name}' (--{option}); it has: {', '.join(table.names)}")
    return table.take(name)


def _missing(place: str, option: str, empty: Any) -> None:
    if empty.any():
        raise DataError(f"{place}, row {int(empty.argmax()) + 1} (the first is 1): empty, and --{option} needs a value")


def group_codes(name: str, main: Table, rest: Sequence[Table], features: Sequence[str]) -> Any:
    """The group of each row as a code; rows of further tables without such a column are alone."""
    place, column = f"{main.path}: column '{name}'", _take(name, "groups", main, features)
    _missing(place, "groups", column_types.cells_of(column, place).codes < 0)
    series = [column.astype(str)]
    for table in rest:
        known = name in table.columns
        series.append(table.take(name) if known else pandas().Series([None] * table.rows, dtype=object))
    codes = column_types.cells_of(pandas().concat(series, ignore_index=True), place).codes
    alone = codes < 0
    codes[alone] = codes.max() + 1 + np.arange(int(alone.sum()))
    return codes


def row_times(name: str, main: Table, rest: Sequence[Table], features: Sequence[str]) -> Any:
    """The time of each row; rows of further tables without such a column come before all others."""
    spec, first = _ordered(name, "time", main, features)
    values = [first]
    for table in rest:
        if name not in table.columns:
            values.append(np.full(table.rows, -np.inf))
            continue
        further = f"{table.path}: column '{name}'"
        values.append(column_types.convert(spec, table.take(name), further)[name])
        _missing(further, "time", np.isnan(values[-1]))
    return np.concatenate(values)


def row_tasks(
    request: SplitRequest, main: Table, further: Sequence[Table], unlabelled: Table | None, features: Sequence[str]
) -> Tasks:
    """The task of each row by a column: numbers and dates by value, other names in the order of the table.

    Raises:
        DataError: the column orders or groups rows too, or a table has no such column or an empty cell in it.
    """
    name = str(request.tasks)
    if name in (request.groups, request.time):
        raise DataError(f"{main.path}: column '{name}' names the tasks and splits the rows too; leave one of them out")
    columns = [_take(name, "tasks", table, features) for table in (main, *further)]
    for table, column in zip((main, *further), columns, strict=True):
        place = f"{table.path}: column '{name}'"
        _missing(place, "tasks", column_types.cells_of(column, place).codes < 0)
    place = f"{main.path}: column '{name}'"
    column = pandas().concat(columns, ignore_index=True)
    cells = column_types.cells_of(column, place)
    order = np.arange(len(cells.texts))
    with contextlib.suppress(DataError):  # words among numbers are names of tasks like others
        spec = column_types.infer(name, column, place, main.comma)
        if spec.type in ("numeric", "date"):
            values = column_types.convert(spec, column, place)[name]
            order = np.argsort([values[cells.first(int(code)) - 1] for code in order], kind="stable")
    number_of = np.empty(len(order), dtype=np.int64)
    number_of[order] = np.arange(len(order))
    numbers = torch.from_numpy(number_of[cells.codes])
    rest = torch.full((unlabelled.rows if unlabelled is not None else 0,), -1)
    return Tasks(torch.cat([numbers, rest]), tuple(cells.texts[i] for i in order))


def _ordered(name: str, option: str, table: Table, features: Sequence[str] = ()) -> tuple[Column, Any]:
    """The type of a column of numbers or dates, and its values; none is missing."""
    place, column = f"{table.path}: column '{name}'", _take(name, option, table, features)
    spec = column_types.infer(name, column, place, table.comma)
    if spec.type not in ("numeric", "date"):
        raise DataError(f"{place} is {spec.type}, and --{option} takes numbers or dates ({one_line(spec.why, 60)})")
    values = column_types.convert(spec, column, place)[name]
    _missing(place, option, np.isnan(values))
    return spec, values


def row_order(name: str, table: Table) -> tuple[Any, list[str]]:
    """The value of each row in a column that orders them, (n,), and its cells; the table keeps the column.

    Raises:
        DataError: there is no such column, it is neither of numbers nor of dates, or a cell is empty.
    """
    columns = dict(table.columns)
    _, values = _ordered(name, "order", Table(table.path, dict(columns), table.rows, comma=table.comma))
    return values, [str(cell) for cell in columns[name]()]
