"""Tables for learners: the columns as they were read, with their categories and missing values, and the splits.

A network's table is standardised numbers in float32 (`tabular`); a learner of scikit-learn takes the frame itself. Its
audit leaves folds of the labelled rows out, so no split is kept for it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..io.files import DATA_CARD, FORMAT, trim_memory, write
from . import column_types, sources, splits, tables
from .annotators import AnnotatorLabels
from .column_types import Column
from .copies import CopyReport, notices, row_groups
from .decisions import RowNames, decide
from .split_columns import NO_REQUEST, SplitRequest
from .table_files import SHOWN, Table, is_table, read_table

KINDS = ("number", "category")


@dataclass(frozen=True, eq=False)
class Frame:
    """A table cut into who teaches and who tests, and its target; a sample id is a row's place in the file.

    The table as a whole is not kept: with a million rows it would be there twice.
    """

    name: str
    parts: dict[str, SplitRows]  # labelled, unlabelled, test
    y: NDArray[Any]  # (n,) places of classes, -1 for none; or float64, nan for none
    classes: tuple[str, ...]
    noisy: NDArray[np.bool_]
    fingerprint: str  # SHA-256 over features, target and splits: a run resumes on the same data only
    groups: NDArray[np.int64] | None = None  # (n,): rows of one number share a split and a fold
    copies: CopyReport = CopyReport()
    columns: tuple[Column, ...] = ()  # how each column of the file was read
    title: str = ""  # of the report on them
    time: NDArray[np.float64] | None = None  # (n,): the audit leaves the latest rows out
    row_names: RowNames = RowNames()
    decision_note: str = ""  # what a file of decisions changed
    by_model: tuple[int, ...] = ()  # ids of the rows whose labels a model gave
    test_note: str = ""  # that the test split has few rows
    votes: AnnotatorLabels | None = None  # the labels of several annotators; y is their consensus

    @property
    def task(self) -> str:
        return "classify" if self.classes else "regress"

    @property
    def labelled(self) -> NDArray[np.int64]:
        return self.parts["labelled"].ids

    @property
    def unlabelled(self) -> NDArray[np.int64]:
        return self.parts["unlabelled"].ids

    @property
    def test(self) -> NDArray[np.int64]:
        return self.parts["test"].ids

    @property
    def sample(self) -> Any:
        """The labelled training rows, as a frame that shows the columns of all rows."""
        return self.parts["labelled"].features

    def rows(self, ids: NDArray[np.int64]) -> Any:
        """The features of some rows of one part, as a frame; of all of them without a copy."""
        part = next(part for part in self.parts.values() if not len(ids) or np.isin(ids[0], part.ids))
        if ids is part.ids:
            return part.features
        return part.features.iloc[np.searchsorted(part.ids, ids)]

    def kinds(self) -> dict[str, str]:
        """The kind of each column: number or category."""
        return {n: KINDS[int(self.sample[n].dtype.kind != "f")] for n in self.sample.columns}

    @property
    def note(self) -> str:
        """The report on the columns, and a notice about copies, to print before training."""
        lines = [column_types.report(self.title, self.columns), *notices(self.name, self.copies.describe())]
        return "\n".join([*lines, *filter(None, (self.decision_note, self.test_note))])

    def describe(self) -> dict[str, Any]:
        """The description of the data for a run's record."""
        counts = {name: len(part.ids) for name, part in self.parts.items()}
        return {
            "name": self.name,
            "kind": "table",
            "task": self.task,
            "shape": [self.sample.shape[1]],
            "classes": list(self.classes),
            "rows": {**counts, "audit": 0},
            "noise": int(self.noisy[self.labelled].sum()) / max(len(self.labelled), 1),
            "flips": False,
            "augment": "none",
            "fingerprint": self.fingerprint,
            column_types.RECORD: [column.to_json() for column in self.columns],
            **({"annotators": list(self.votes.names)} if self.votes else {}),
            **self.copies.describe(),
        }


class SplitRows(NamedTuple):
    """Rows of one split: their ids, ascending, and their features (a pandas frame: numbers as float64, all else as
    categories)."""

    ids: NDArray[np.int64]
    features: Any


def _fingerprint(features: Any, *values: Any) -> str:
    from pandas.util import hash_pandas_object

    digest = hashlib.sha256(repr(list(features.columns)).encode())
    for name in features.columns:  # a column at a time: no copy of the whole
        digest.update(hash_pandas_object(features[name], index=False).to_numpy().tobytes())
    for part in values:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


def _cut(features: dict[str, Any], splits_: dict[str, NDArray[np.int64]]) -> dict[str, SplitRows]:
    """Each split's rows, column by column, so that the whole goes as the parts come."""
    import pandas as pd

    parts: dict[str, dict[str, Any]] = {name: {} for name in splits_}
    for column in list(features):  # not out of a frame, where taking a column costs as much as all the others
        values = features.pop(column)
        for name, ids in splits_.items():
            parts[name][column] = values.take(ids).reset_index(drop=True)
    trim_memory()
    return {name: SplitRows(ids, pd.DataFrame(parts[name], copy=False)) for name, ids in splits_.items()}


def load(
    source: str,
    *,
    target: str | None = None,
    unlabelled: str | None = None,
    labels: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    columns: Mapping[str, column_types.Kind] | None = None,
    request: SplitRequest = NO_REQUEST,
    decisions: str | None = None,
    raw_csv: bool = False,
    whole: bool = False,
) -> Frame:
    """A table by name or path for learners; arguments as of `data.load`. A ``whole`` table keeps no test split.

    Raises:
        DataError: the table or what was asked of it cannot be used; the message says why.

    >>> frame = load("diabetes", labels=60)
    >>> len(frame.labelled), len(frame.unlabelled), len(frame.test)
    (60, 294, 88)
    """
    further = Path(unlabelled) if unlabelled is not None else None
    raw = sources.read_source(
        source, target=target, unlabelled=further, image_size=None, compact=True, types=columns, request=request
    )
    if raw.features is None:
        raise DataError(f"{source} are images, and learners of scikit-learn take tables; give another --model")
    column, groups = splits.LabelColumn(raw.name, raw.y, raw.classes), row_groups(raw.features, raw.groups, raw.time)
    held_out = raw.audit if isinstance(raw.audit, Tensor) else None
    parts = splits.make_splits(
        column,
        test=_test_part(raw, whole),
        audit=0 if held_out is None else held_out,
        labels=labels,
        label_noise=label_noise,
        seed=seed,
        groups=groups,
    )
    parts, note, by_model = decide(parts, column, raw.row_names, decisions, raw_csv)
    copies = splits.report_copies(column, groups, parts)
    if held_out is not None:  # the audit leaves them out, and the final model learns from all labels
        parts = parts._replace(labelled=torch.cat([parts.labelled, parts.audit]).sort().values)
    y = _targets(raw, parts)
    ids = {name: getattr(parts, name).numpy() for name in ("labelled", "unlabelled", "test")}
    votes = raw.votes and raw.votes.decided(raw.y, parts.y)
    mark = _fingerprint(raw.features, repr(raw.classes), y, *ids.values(), *([votes.labels.numpy()] if votes else []))
    features = dict(raw.features.items())
    raw = replace(raw, features=None)  # or the whole would stay as its parts are made
    return Frame(
        raw.name,
        _cut(features, ids),
        y,
        raw.classes,
        parts.noisy.numpy(),
        mark,
        None if groups is None or held_out is not None else groups.groups.numpy(),
        copies,
        raw.columns,
        raw.title,
        _moments(raw.time, held_out, len(column.y)),
        raw.row_names,
        note,
        tuple(by_model.tolist()),
        splits.notice_of_test(raw.name, raw.test, parts.test),
        votes,
    )


def _test_part(raw: sources.RawData, whole: bool) -> splits.Part:
    """The test split, or none of a whole table.

    Raises:
        DataError: it is given, and none is to be kept.
    """
    if whole and isinstance(raw.test, Tensor):
        raise DataError(
            f"{raw.name}: its test rows are given by a file or its column 'split'; leave --test cross-fit out"
        )
    return 0 if whole else raw.test


def _targets(raw: sources.RawData, parts: splits.Splits) -> NDArray[Any]:
    """The target of each row (rows,).

    Raises:
        DataError: it is the same value in all rows that teach.
    """
    y: NDArray[Any] = parts.y.numpy() if raw.classes else parts.y.double().numpy()
    if not raw.classes and len(np.unique(y[parts.labelled.numpy()])) == 1:
        raise DataError(
            f"{raw.name}: the target is {y[int(parts.labelled[0])]:g} in all rows that teach; there is "
            "nothing to learn, choose another column"
        )
    return y


def _moments(time: Any, held_out: Tensor | None, rows: int) -> NDArray[np.float64] | None:
    """The time of each row (rows,) for the audit, which leaves the latest out: those of a given validation split."""
    if held_out is None:
        return None if time is None else np.asarray(time, dtype=np.float64)
    moments = np.zeros(rows)
    moments[held_out.numpy()] = 1.0
    return moments


def write_card(frame: Frame, folder: Path, **entries: Any) -> None:
    """Write what prepares other rows the same way."""
    card = {
        "format": FORMAT,
        **frame.describe(),
        "columns": list(frame.sample.columns),
        "kinds": frame.kinds(),
        **entries,
    }
    write(folder / DATA_CARD, json.dumps(card, indent=2) + "\n")


def rows_for(source: str, card: dict[str, Any]) -> Any:
    """The rows of a table that a finished learner shall answer, with the columns it was trained on.

    Raises:
        DataError: no such table, or a column is missing or of another kind.
    """
    if source in sources.TABLES:
        frame = load(source)
        return frame.rows(frame.test)
    if not is_table(source, named=True):
        raise DataError(f"{source}: the model was trained on a table; give one ({SHOWN})")
    literal = tables.literal_names(saved_columns(card, source))
    return table_rows(read_table(sources.existing(source), (), literal), card)


def saved_columns(card: dict[str, Any], name: str) -> list[column_types.Column]:
    """The columns that a finished learner reads; ``name`` is what messages call the rows."""
    return column_types.from_json(card.get(column_types.RECORD), f"the card of the model of {name}")


def table_rows(table: Table, card: dict[str, Any]) -> Any:
    """The rows of a table that was read, with the columns that a finished learner was trained on.

    Raises:
        DataError: a column is missing or of another kind.
    """
    return tables.prepare(table, saved_columns(card, str(table.path)), compact=True)
