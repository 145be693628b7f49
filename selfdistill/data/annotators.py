"""Labels of several annotators: columns of a table, and the class of each row that they agree on, the consensus.

Equation::

    P(z | votes of row i)  ~  pi_z  prod_a  M^a_{z, v_ia}

pi are the shares of the classes, and M^a the confusion matrix of annotator a: how often the class v is the label where
the class z is true. Both are found by EM, from the shares of the votes on. Whoever contradicts the others counts less.

One label of each class that is right comes to each matrix, so that a class of few labels has no noise without evidence.
Source: Dawid and Skene, Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm, 1979.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..io.expressions import nearest, one_line
from . import column_types
from .column_types import DISTINCT, Column
from .table_files import Table

OPTION = "--annotators"
STEPS, CHANGE = 100, 1e-6  # of EM: the most, and the largest change of a probability at which it ends
DECISIONS = "decisions"  # the annotator who wrote the file of decisions


class AnnotatorLabels(NamedTuple):
    """The labels that annotators gave to rows."""

    names: tuple[str, ...]
    labels: Tensor  # (n, annotators) int64: places of classes, -1 for none
    classes: tuple[str, ...]

    def consensus(self) -> Tensor:
        """The class of each row (n,) int64 that is most probable by the votes; -1 where there are none."""
        labels: NDArray[np.int64] = self.labels.numpy()
        most = confusion_matrices(labels, len(self.classes))[0].argmax(axis=1)
        return torch.from_numpy(np.where((labels >= 0).any(axis=1), most, -1))

    def extended(self, rows: int) -> AnnotatorLabels:
        """The same with so many rows more, without a label."""
        more = torch.full((rows, len(self.names)), -1)
        return self._replace(labels=torch.cat([self.labels, more]))

    def of_rows(self, ids: Tensor | NDArray[np.int64]) -> AnnotatorLabels:
        """The labels of some rows."""
        return self._replace(labels=self.labels[torch.as_tensor(ids)])

    def decided(self, before: Tensor, after: Tensor) -> AnnotatorLabels:
        """The same with the labels (n,) that a file of decisions changed, as those of one annotator more."""
        changed = (after >= 0) & (after != before)
        if not bool(changed.any()):
            return self
        own = torch.where(changed, after, -1)
        return self._replace(names=(*self.names, DECISIONS), labels=torch.cat([self.labels, own[:, None]], 1))

    def columns(self) -> list[Column]:
        """The columns as a report on a table shows them."""
        counts = (self.labels >= 0).sum(0).tolist()
        told = zip(self.names, counts, strict=True)
        return [Column(name, "identifier", f"labels of an annotator, {count:,} rows") for name, count in told]


def read_names(text: str | None, label_noise: float = 0.0) -> tuple[str, ...]:
    """The columns that ``--annotators a,b,c`` names.

    Raises:
        DataError: there is only one, or one is named twice; or ``label_noise`` is to make labels wrong.

    >>> read_names("anna, ben"), read_names(None)
    (('anna', 'ben'), ())
    """
    if text is None:
        return ()
    if label_noise:
        raise DataError(f"label noise is for one label a row, and {OPTION} gives several; leave one of the two out")
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{OPTION} names '{one_line(name, 40)}' twice; name each column once")
    if not all(names) or len(names) < 2:
        raise DataError(
            f"{OPTION} {one_line(text, 60)}: one annotator cannot be compared with others; give two columns or more, "
            "as in a,b,c, or one label by --target"
        )
    return tuple(names)


def take_votes(table: Table, names: Sequence[str]) -> AnnotatorLabels:
    """Take the columns of annotators out of a table.

    Args:
        table: it keeps their cells as they are written; an empty cell is no label.
        names: the columns.

    Raises:
        DataError: there is no such column, all its cells are empty, or they hold values in place of classes.
    """
    for name in names:
        if name not in table.columns:
            close = nearest(name, table.names)
            hint = f"nearest: {close}" if close else f"it has: {', '.join(table.names)}"
            raise DataError(f"{table.path}: no column is called '{one_line(name, 40)}' ({OPTION}); {hint}")
    cells = []
    for name in names:
        place = f"{table.path}: column '{one_line(name, 40)}'"
        cells.append(column_types.cells_of(table.take(name), place))
        if not cells[-1].texts:
            raise DataError(f"{place} is empty in every row; leave this annotator out")
    texts = sorted({text for one in cells for text in one.texts})
    values = column_types.parse_numbers(texts, np.ones(len(texts), dtype=np.int64), table.comma).values
    numbers = not np.isnan(values).any()
    _refuse_values(table, names, cells, values, texts)
    if numbers and len(texts) > DISTINCT:
        raise DataError(
            f"{table.path}: {OPTION} have {len(texts)} different numbers, and annotators give classes; write their "
            "mean into one column, and give it as --target"
        )
    if numbers:
        texts = [texts[i] for i in np.argsort(values, kind="stable")]
    number = {text: i for i, text in enumerate(texts)}
    labels = [np.array([*(number[text] for text in one.texts), -1], dtype=np.int64)[one.codes] for one in cells]
    return AnnotatorLabels(tuple(names), torch.from_numpy(np.stack(labels, axis=1)), tuple(texts))


def _refuse_values(
    table: Table,
    names: Sequence[str],
    cells: Sequence[column_types.Cells],
    values: NDArray[np.float64],
    texts: list[str],
) -> None:
    """Refuse a column of many numbers beside one of words: its classes are unknown to the other annotators."""
    number = dict(zip(texts, ~np.isnan(values), strict=True))
    shares = [sum(number[text] for text in one.texts) / len(one.texts) for one in cells]
    if max(shares) == 1.0 and min(shares) == 0.0:
        first, second = names[shares.index(1.0)], names[shares.index(0.0)]
        raise DataError(
            f"{table.path}: column '{one_line(first, 40)}' has numbers and column '{one_line(second, 40)}' has words, "
            f"so their classes are unknown to each other; give columns of one set of classes as {OPTION}"
        )


def confusion_matrices(labels: NDArray[np.int64], classes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The probabilities of the true classes, and the confusion matrix of each annotator; see the module.

    Args:
        labels: places of classes (rows, annotators), -1 for none.
        classes: their number.

    Returns:
        (rows, classes), uniform where a row has no label; and (annotators, classes, classes), a row for each true
        class.

    >>> probable, matrices = confusion_matrices(np.array([[0, 0, 1], [1, 1, 0], [0, 0, 0], [1, 1, -1]]), 2)
    >>> probable.argmax(axis=1).tolist(), bool(matrices[0, 0, 0] > matrices[2, 0, 0])
    ([0, 1, 0, 1], True)
    """
    rows, annotators = labels.shape
    given = [np.flatnonzero(labels[:, a] >= 0) for a in range(annotators)]
    shares = np.zeros((rows, classes))
    for a, ids in enumerate(given):
        shares[ids, labels[ids, a]] += 1.0
    some = shares.sum(axis=1) > 0
    shares[~some] = 1.0
    probable: NDArray[np.float64] = shares / shares.sum(axis=1, keepdims=True)
    matrices = np.zeros((annotators, classes, classes))
    for _ in range(STEPS):
        prior = probable[some].sum(axis=0) + 1.0
        logs = np.broadcast_to(np.log(prior / prior.sum()), (rows, classes)).copy()
        for a, ids in enumerate(given):
            counts = np.zeros((classes, classes))
            np.add.at(counts, labels[ids, a], probable[ids])
            counts = counts.T + np.eye(classes)
            matrices[a] = counts / counts.sum(axis=1, keepdims=True)
            logs[ids] += np.log(matrices[a] + 1e-12).T[labels[ids, a]]
        logs = np.exp(logs - logs.max(axis=1, keepdims=True))
        before, probable = probable, logs / logs.sum(axis=1, keepdims=True)
        probable[~some] = 1.0 / classes
        if np.abs(probable - before).max() < CHANGE:
            break
    return probable, matrices
