"""Columns of pandas and polars frames: numbers as they are, times in seconds, anything else by its text.

Rows of whatever a scikit-learn estimator takes: arrays, sparse matrices, pandas and polars frames.

What is learnt from: rows and targets, taken where they are needed and no sooner.

Targets, checked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import _safe_indexing, check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .resume import digest


def numbers(column: Any) -> NDArray[np.float64] | None:
    """A column of numbers, booleans or times (in seconds) as float64 (rows,), nan where missing; else None."""
    if hasattr(column, "to_physical"):
        return _polars_numbers(column)
    letter = getattr(column.dtype, "kind", "O")
    if letter in "mM":
        whole = column.to_numpy(dtype="timedelta64[ns]" if letter == "m" else "datetime64[ns]")
        return np.where(np.isnat(whole), np.nan, whole.astype(np.int64) / 1e9)
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)) if letter in "iufb" else None


def _polars_numbers(column: Any) -> NDArray[np.float64] | None:
    import polars

    kind = column.dtype.base_type()
    if kind in (polars.Date, polars.Datetime):
        return np.asarray(column.dt.epoch("us").cast(polars.Float64).to_numpy()) / 1e6
    if kind == polars.Duration:
        return np.asarray(column.dt.total_microseconds().cast(polars.Float64).to_numpy()) / 1e6
    if kind == polars.Time:
        return np.asarray(column.cast(polars.Int64).cast(polars.Float64).to_numpy()) / 1e9
    plain = column.dtype.is_numeric() or kind == polars.Boolean
    return np.asarray(column.cast(polars.Float64).to_numpy()) if plain else None


def coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """A column as places (rows,) among its sorted distinct texts, -1 where missing; and those texts.

    >>> import pandas as pd
    >>> codes, texts = coded(pd.Series(["b", None, "a", "b"]))
    >>> codes.tolist(), texts
    ([1, -1, 0, 1], ['a', 'b'])
    """
    if hasattr(column, "to_physical"):
        import polars

        texts = column.cast(polars.String)
        names = texts.unique().drop_nulls().sort()
        found = texts.cast(polars.Enum(names)).to_physical().cast(polars.Int64).fill_null(-1)
        return np.asarray(found.to_numpy()), names.to_list()
    if hasattr(column, "cat"):
        codes, values = np.asarray(column.cat.codes, dtype=np.int64), column.cat.categories
    else:
        codes, values = column.factorize()
    texts = [str(value) for value in values]
    names = sorted(set(texts))
    place = {text: number for number, text in enumerate(names)}
    return np.array([*(place[text] for text in texts), -1], dtype=np.int64)[codes], names


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


@dataclass(frozen=True)
class Table:
    """Rows, targets as numbers, weights, and rows without a target.

    ``whole`` has the rows of the table this one was taken from, and ``places`` where its own ones are (None: all of
    them), so that folds need no copies; ``others`` are those of the rows without a target. ``mark`` is a digest of the
    rows, where trainings are kept; ``seed`` draws from rows that are too many for a learner. ``synthetic`` rows without
    a target are made of all others, where they are needed and always the same.
    """

    whole: Any
    y: NDArray[Any]
    weights: Floats | None
    without: Any = None
    places: NDArray[Any] | None = None
    others: NDArray[Any] | None = None
    mark: str | None = None
    seed: int = 0
    synthetic: int = 0

    @property
    def rows(self) -> Any:
        """The labelled rows; taken anew each time."""
        return self.whole if self.places is None else take(self.whole, self.places)

    @property
    def unlabelled(self) -> Any:
        """The rows without a target, taken anew each time; None where there are none."""
        found = self.without
        if self.synthetic:
            given = [] if found is None else [found]
            made = crossed(stack([self.rows, *given]), self.synthetic, self.seed)
            found = stack([*given, made])
        return found if self.others is None else take(found, self.others)

    def unknown(self) -> int:
        """How many have no target."""
        if self.others is not None:
            return len(self.others)
        return self.synthetic + (0 if self.without is None else count(self.without))

    def at(self, places: NDArray[Any]) -> Table:
        """Some of the labelled rows, and all the others."""
        weights = None if self.weights is None else self.weights[places]
        mark = None if self.mark is None else digest(self.mark, places)
        there = places if self.places is None else self.places[places]
        return replace(self, y=self.y[places], weights=weights, places=there, mark=mark)

    def few(self, most: int | None) -> Table:
        """At most so many rows: of labelled ones as many as there are, up to half if there are others enough.

        Drawn once, in an order that means nothing, so fewer of these are the first ones of either kind.
        """
        known, unknown = self.split(most)
        table = self
        if known < len(self.y):
            classes = self.y if self.y.dtype.kind == "i" else None
            table = table.at(drawn(len(self.y), known, self.seed, classes))
        if unknown < self.unknown():
            table = table.among(drawn(self.unknown(), unknown, self.seed))
        return table

    def among(self, others: Ints) -> Table:
        """All labelled rows, and some of the others."""
        mark = None if self.mark is None else digest(self.mark, "others", others)
        there = others if self.others is None else self.others[others]
        return replace(self, others=there, mark=mark)

    def split(self, most: int | None) -> tuple[int, int]:
        """How many labelled rows and how many others ``few`` has."""
        known, unknown = len(self.y), self.unknown()
        if most is None or known + unknown <= most:
            return known, unknown
        known = min(known, max(most // 2, most - unknown))
        return known, most - known


def _given(y: Any, estimator: Any) -> NDArray[Any]:
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    return np.asarray(column_or_1d(y, warn=True))


def real_targets(y: Any, estimator: Any) -> Floats:
    """Targets (rows,) as real numbers.

    Raises:
        ValueError: a target is missing, infinite, or no number, or they are all the same.
    """
    try:
        found = check_array(_given(y, estimator), ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        if "contains NaN" in str(error):
            raise ValueError("Input y contains NaN; give the rows without a target as X_unlabeled") from None
        raise
    if len(found) > 1 and (found == found[0]).all():
        raise ValueError(f"y is {found[0]:g} in all {len(found)} rows: there is nothing to learn; check the column")
    return np.asarray(found, dtype=np.float64)


def class_targets(y: Any, estimator: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The labels, sorted, and the place of each row's among them.

    Raises:
        ValueError: y has no classes, or one only.
    """
    found = _given(y, estimator)
    check_classification_targets(found)
    labels, places = np.unique(found, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"y has one class only, {str(labels[0])!r}: give rows of another")
    return labels, places.astype(np.int64)
