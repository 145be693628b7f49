"""Rows of whatever a scikit-learn estimator takes: arrays, sparse matrices, pandas and polars frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import _safe_indexing

from .columns import coded, numbers

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
USUAL_FOLDS = 5
MOST_FOLDED = 20_000  # rows, beyond which so many trainings cost more than they tell
MOST_HELD = 5_000
BLOCK = 50_000  # rows
_ODD = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads what differs in a few bits


def count(X: Any) -> int:
    """Number of rows."""
    return int(X.shape[0])


def take(X: Any, places: NDArray[Any]) -> Any:
    """Rows at some places, as what they came in."""
    return _safe_indexing(X, places)


def stack(parts: Sequence[Any]) -> Any:
    """Rows below each other, as what they came in: all parts have the same columns."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if sparse.issparse(first):
        return sparse.vstack(parts, format="csr")
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    if hasattr(first, "vstack"):  # polars
        return first.vstack(parts[1]) if len(parts) == 2 else stack([first.vstack(parts[1]), *parts[2:]])
    return np.concatenate(parts)


def _column(values: Any) -> NDArray[np.uint64]:
    """Each value as 64 bits, equal where the values are equal."""
    framed = hasattr(values, "to_numpy")
    found: Any = numbers(values) if framed else np.asarray(values)
    if found is None:
        found = coded(values)[0]
    if found.dtype.kind in "biuf":
        return np.asarray((found.astype(np.float64) + 0.0).view(np.uint64))  # + 0.0: there are two zeros
    return np.unique(found.astype(str), return_inverse=True)[1].astype(np.uint64)


def crossed(X: Any, number: int, seed: int) -> Any:
    """So many synthetic rows: each has about half of its columns from one row and the others from another.

    Columns keep their distributions and half of what ties any two of them; kinds and gaps stay what they are.

    Raises:
        ValueError: the rows are sparse.

    >>> crossed(np.array([[1, 1], [2, 2]]), 4, 0).tolist()
    [[1, 2], [2, 2], [2, 2], [2, 2]]
    """
    if sparse.issparse(X):
        raise ValueError("synthetic rows are made of dense columns, and X is sparse; give synthetic=0, or dense rows")
    random, rows = np.random.RandomState(seed), count(X)
    one, other = random.randint(rows, size=(2, number, 1))
    places = np.where(random.random_sample((number, X.shape[1])) < 0.5, one, other)
    if not hasattr(X, "columns"):
        return X[places, np.arange(X.shape[1])]
    columns = {name: take(X[name], places[:, place]) for place, name in enumerate(X.columns)}
    if hasattr(X, "iloc"):
        columns = {name: column.array for name, column in columns.items()}
    return type(X)(columns)


def drawn(rows: int, number: int, seed: int, classes: NDArray[Any] | None = None) -> Ints:
    """Places of ``number`` rows, each at most once, in an order that means nothing; one of every class comes first."""
    order = np.random.RandomState(seed).permutation(rows)
    if classes is not None:
        ahead = np.unique(classes[order], return_index=True)[1]
        order = np.concatenate([order[ahead], np.delete(order, ahead)])
    return np.asarray(order[:number], dtype=np.int64)


def blockwise(call: Callable[[Any], NDArray[Any]], X: Any) -> NDArray[Any]:
    """What a function says of rows, so many at a time: what it makes of them is no larger than the rows."""
    rows = count(X)
    if rows <= BLOCK:
        return call(X)
    parts = [call(take(X, np.arange(begin, min(begin + BLOCK, rows)))) for begin in range(0, rows, BLOCK)]
    return np.concatenate(parts)


def marks(X: Any, seed: int) -> NDArray[np.uint64]:
    """A number for each row, the same for equal rows, and in an order of no meaning."""
    found = np.full(count(X), np.uint64(seed) + _ODD, dtype=np.uint64)
    if sparse.issparse(X):
        chance = np.random.default_rng(seed).random(X.shape[1])
        columns: list[Any] = [np.asarray(X.tocsr() @ chance)]
    elif hasattr(X, "columns"):
        columns = [X[name] for name in X.columns]
    else:
        columns = list(np.asarray(X).T)
    with np.errstate(over="ignore"):
        for column in columns:
            found = (found ^ _column(column)) * _ODD
            found ^= found >> np.uint64(29)
    return found


def parting(asked: int | float | str, rows: int) -> int | float:
    """A number of folds, or a share of the rows to hold out once: ``"auto"`` is 5 folds up to 20,000 rows, and beyond
    that a share of 5,000 rows at most, which a few trainings fewer judge as well.

    Raises:
        ValueError: it is neither.

    >>> parting("auto", 20_000), parting("auto", 1_000_000), parting(0.2, 100)
    (5, 0.005, 0.2)
    """
    if isinstance(asked, str) and asked == "auto":
        return USUAL_FOLDS if rows <= MOST_FOLDED else MOST_HELD / rows
    whole = isinstance(asked, (int, np.integer)) and asked >= 2
    if not whole and not (isinstance(asked, (float, np.floating)) and 0.0 < asked < 1.0):
        raise ValueError(
            f"audit_folds is a whole number from 2 on, a share between 0 and 1, or 'auto', not {asked!r}; 5 is usual"
        )
    return int(asked) if whole else float(asked)


def folds(X: Any, y: NDArray[Any], number: int | float, seed: int, classes: bool) -> tuple[Ints, Ints]:
    """A fold from 0 to ``number`` - 1 for each row, and which distinct row it is.

    Where ``number`` is a share, that share of the distinct rows is fold 0, and all others are -1, in no fold. Equal
    rows with equal targets are one distinct row and share a fold: a copy must not audit its twin, and a row of
    weight 2 is the same as the row twice. Every class is spread over the folds evenly where ``classes`` says so.

    >>> fold, distinct = folds(np.array([[1.0], [2.0], [1.0], [3.0]]), np.zeros(4), 2, 0, classes=False)
    >>> fold[0] == fold[2], distinct[0] == distinct[2], sorted(np.bincount(fold[[0, 1, 3]]).tolist())
    (np.True_, np.True_, [1, 2])
    """
    codes = np.unique(y, return_inverse=True)[1]
    with np.errstate(over="ignore"):
        mark = (marks(X, seed) ^ _column(codes)) * _ODD
    _, first, distinct = np.unique(mark, return_index=True, return_inverse=True)
    kinds = codes[first] if classes else np.zeros(len(first), dtype=np.int64)
    order = np.lexsort((np.arange(len(first)), kinds))
    fold = np.empty(len(first), dtype=np.int64)
    place = np.arange(len(first))
    if isinstance(number, int):
        fold[order] = place % number  # class after class, so that each one is spread
    else:
        held = np.floor((place + 1) * number) > np.floor(place * number)
        held[np.unique(kinds[order], return_index=True)[1]] = False  # of every class there is one to learn from
        fold[order] = np.where(held, 0, -1)
    return fold[distinct], distinct.astype(np.int64)


class Rows(NamedTuple):
    """Weights (rows,), and which distinct row each one is: copies of a row are one observation."""

    weights: Floats | None = None
    distinct: Ints | None = None

    def weigh(self, rows: int) -> Floats:
        """The weight of each row."""
        return np.ones(rows) if self.weights is None else self.weights

    def summed(self, values: Floats) -> Floats:
        """Values (rows,) added up over copies: one for each distinct row."""
        return values if self.distinct is None else np.bincount(self.distinct, values).astype(np.float64)

    def pooled(self, losses: Floats) -> Floats:
        """One loss for each distinct row, scaled by its weight: what a paired test over rows may count as one."""
        weights = self.weigh(len(losses))
        return self.summed(weights * losses) / float(self.summed(weights).mean())


ALIKE = Rows()  # no weights, no copies
