"""What estimators learn from: rows (arrays, sparse matrices, pandas and polars frames), their weights and targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils import _safe_indexing, check_array, column_or_1d
from sklearn.utils._missing import is_pandas_na, is_scalar_nan
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples

from ..data.column_types import Cells, stray_cell
from ..data.copies import (
    MULTIPLIER,
    Floats,
    Ints,
    category_codes,
    column_bits,
    connect,
    is_category,
    numbered,
    numeric_values,
    row_hashes,
)
from ..io.expressions import one_line
from .resume import digest

DEFAULT_FOLDS = 5


MAX_FOLDED_ROWS = 20_000  # beyond these, several trainings cost more than they tell


MAX_HELD_OUT_ROWS = 5_000


BLOCK = 50_000  # rows


# rows -----------------------------------------------------------------------------------------------------------------


def text_rows(X: Any) -> NDArray[Any] | None:
    """Texts in a list, a series or an array (rows,) as an array of strings; None where the rows are no texts.

    Raises:
        ValueError: some of them are texts and others are not.

    >>> text_rows(["good", "bad"]).tolist(), text_rows([[1.0]])
    (['good', 'bad'], None)
    """
    rows = X if isinstance(X, (list, tuple)) else X.to_numpy() if hasattr(X, "to_numpy") else X
    if isinstance(rows, np.ndarray) and (rows.ndim != 1 or rows.dtype.kind not in "OUT"):
        return None
    if not isinstance(rows, (list, tuple, np.ndarray)) or not any(isinstance(row, str) for row in rows):
        return None
    odd = next((i for i, row in enumerate(rows) if not isinstance(row, str)), None)
    if odd is not None:
        raise ValueError(f"X has texts, but row {odd} (from 0) is {rows[odd]!r}; give a text, '' for an empty one")
    texts = np.empty(len(rows), dtype=object)
    texts[:] = list(rows)
    return texts


def refuse_stray_cells(X: Any) -> None:
    """Refuse a column of texts in a frame (rows, columns) where nearly all are numbers: each would be a category.

    Raises:
        ValueError: there is one; the message names the column and the cell.
    """
    for name in X.columns:
        if numeric_values(X[name]) is not None or is_category(X[name]):
            continue
        row = stray_cell(Cells(*category_codes(X[name])))
        if row is not None:
            raise ValueError(
                f"column {name!r} of X has text in row {row - 1} (from 0), {X[name].to_list()[row - 1]!r}, and numbers "
                f"in nearly all others; make it numeric, as by pandas.to_numeric(X[{name!r}], errors='coerce'), or "
                "categorical, as by astype('category')"
            )


class ColumnError(ValueError):
    """An error of a learner to which `name_columns` has added the columns."""


@contextmanager
def name_columns(X: Any) -> Iterator[None]:
    """Add to an error of a learner which columns of a frame have text or empty cells, since few learners say so.

    Raises:
        ColumnError: the learner raised a ValueError or a TypeError.

    >>> import pandas as pd
    >>> try:
    ...     with name_columns(pd.DataFrame({"a": ["x"], "b": [None]})):
    ...         raise ValueError("not a float")
    ... except ColumnError as error:
    ...     print(error)
    not a float; columns with text: 'a'; with empty cells: 'b'; leave them out, or take a learner for them
    """
    try:
        yield
    except ColumnError:  # of a learner in a learner: it is told once
        raise
    except (ValueError, TypeError) as error:
        if not (told := _unlearnable(as_rows(X))):
            raise
        raise ColumnError(f"{one_line(error)}; {told}") from error


def _unlearnable(X: Any) -> str:
    """What few learners take in rows, and the remedy, in words; empty where there is none."""
    if not hasattr(X, "columns"):
        remedy = "take an estimator that reads them, such as make_pipeline(TfidfVectorizer(), LogisticRegression())"
        return "" if text_rows(X) is None else f"the rows are texts: {remedy}"
    values = {name: numeric_values(X[name]) for name in X.columns}
    filled = {name: category_codes(X[name])[0] >= 0 for name, v in values.items() if v is None}
    empty = [n for n, v in values.items() if not (filled[n].all() if v is None else np.isfinite(v).all())]
    text = [name for name, cells in filled.items() if cells.any()]
    told = [f"{what}: {_listed(names)}" for what, names in (("text", text), ("empty cells", empty)) if names]
    return f"columns with {'; with '.join(told)}; leave them out, or take a learner for them" if told else ""


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


@dataclass(frozen=True)
class RowSelection:
    """Rows of a table by their index (rows,), copied only when they are needed, or some that are drawn of them."""

    table: Any
    index: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""
        return (len(self.index), *self.table.shape[1:])


def as_rows(X: Any) -> Any:
    """The rows themselves, in their own container."""
    return _safe_indexing(X.table, X.index) if isinstance(X, RowSelection) else X


def take(X: Any, rows: NDArray[Any]) -> Any:
    """Rows by their indices, in the container of ``X``."""
    return replace(X, index=X.index[rows]) if isinstance(X, RowSelection) else _safe_indexing(X, rows)


def stack(parts: Sequence[Any]) -> Any:
    """Rows below each other, in their own container: all parts have the same columns."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if sparse.issparse(first):
        return sparse.vstack(parts, format="csr")
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    if hasattr(first, "vstack"):  # polars
        return stack([first.vstack(parts[1]), *parts[2:]])
    return np.concatenate(parts)


def crossover_rows(X: Any, number: int, seed: int) -> Any:
    """Synthetic rows: each has about half of its columns from one row and the others from another.

    Columns keep their distributions and half of the dependence between any two of them, their categories and their
    missing values.

    Raises:
        ValueError: the rows are sparse.

    >>> crossover_rows(np.array([[1, 1], [2, 2]]), 4, 0).tolist()
    [[1, 2], [2, 2], [2, 2], [2, 2]]
    """
    if sparse.issparse(X):
        raise ValueError("synthetic rows are made of dense columns, and X is sparse; give synthetic=0, or dense rows")
    if not hasattr(X, "columns") and np.ndim(X) == 1:
        raise ValueError("synthetic rows are made of columns, and X has texts; give synthetic=0")
    random = np.random.RandomState(seed)
    first, second = random.randint(X.shape[0], size=(2, number, 1))
    rows = np.where(random.random_sample((number, X.shape[1])) < 0.5, first, second)
    if not hasattr(X, "columns"):
        return X[rows, np.arange(X.shape[1])]
    columns = {name: take(X[name], rows[:, i]) for i, name in enumerate(X.columns)}
    if hasattr(X, "iloc"):
        columns = {name: column.array for name, column in columns.items()}
    return type(X)(columns)


def draw_rows(rows: int, number: int, seed: int, classes: NDArray[Any] | None = None) -> Ints:
    """Indices of ``number`` rows, each at most once, in a random order; one of every class comes first."""
    order = np.random.RandomState(seed).permutation(rows)
    if classes is not None:
        first = np.unique(classes[order], return_index=True)[1]
        order = np.concatenate([order[first], np.delete(order, first)])
    return np.asarray(order[:number], dtype=np.int64)


def predict_in_blocks(predict: Callable[[Any], NDArray[Any]], X: Any) -> NDArray[Any]:
    """The predictions of a function for blocks of rows: so copies that it makes of them stay small."""
    rows = _num_samples(X)
    if rows <= BLOCK:
        return predict(X)
    parts = [predict(take(X, np.arange(begin, min(begin + BLOCK, rows)))) for begin in range(0, rows, BLOCK)]
    return np.concatenate(parts)


def resolve_folds(audit_folds: int | float | str, rows: int) -> int | float:
    """A number of folds, or a share of the rows to hold out once.

    ``"auto"`` is 5 folds up to 20,000 rows. Beyond that it is a share of 5,000 rows, which a single split judges as
    well in fewer trainings.

    Raises:
        ValueError: it is neither.

    >>> resolve_folds("auto", 20_000), resolve_folds("auto", 1_000_000), resolve_folds(0.2, 100)
    (5, 0.005, 0.2)
    """
    if isinstance(audit_folds, str) and audit_folds == "auto":
        return DEFAULT_FOLDS if rows <= MAX_FOLDED_ROWS else MAX_HELD_OUT_ROWS / rows
    if isinstance(audit_folds, (int, np.integer)) and audit_folds >= 2:
        return int(audit_folds)
    if isinstance(audit_folds, (float, np.floating)) and 0.0 < audit_folds < 1.0:
        return float(audit_folds)
    raise ValueError(
        f"audit_folds is a whole number from 2 on, a share between 0 and 1, or 'auto', not {audit_folds!r}; 5 is usual"
    )


LEFT_OUT = -2  # the fold of a row that is neither held out nor learnt from while rows are


def assign_folds(
    X: Any, y: NDArray[Any], number: int | float, seed: int, classes: bool, groups: Any = None, time: Any = None
) -> tuple[Ints, Ints]:
    """The fold of each row (rows,), from 0 to ``number`` - 1, and the index of its distinct row (rows,).

    Where ``number`` is a share, that share of the distinct rows is fold 0, and all others are -1, in no fold. Equal
    rows with equal targets are one distinct row: a row of weight 2 is the same as the row twice. Equal rows, whatever
    their targets, and rows of one of the ``groups`` (rows,) share a fold: a copy must not audit its twin. With
    ``classes`` the folds are stratified. With the ``time`` of each row (rows,) the latest ones are fold 0, as many as
    of one of the folds, and the others are in none; of a group that began before, the later rows are `LEFT_OUT`.

    >>> X = np.array([[1.0], [2.0], [1.0], [3.0]])
    >>> fold, distinct = assign_folds(X, np.zeros(4), 2, 0, classes=False)
    >>> fold[0] == fold[2], distinct[0] == distinct[2], sorted(np.bincount(fold[[0, 1, 3]]).tolist())
    (np.True_, np.True_, [1, 2])
    """
    codes, rows = np.unique(y, return_inverse=True)[1], row_hashes(X, seed)
    with np.errstate(over="ignore"):
        hashes = (rows ^ column_bits(codes)) * MULTIPLIER
    _, first, distinct = np.unique(hashes, return_index=True, return_inverse=True)
    together = connect(numbered(rows), groups)
    if time is not None:
        share = number if isinstance(number, float) else 1.0 / number
        return _hold_out_latest(np.asarray(time, dtype=np.float64), share, together), distinct.astype(np.int64)
    unit = numbered(together[first])
    _, unit_first, sizes = np.unique(unit, return_index=True, return_counts=True)
    strata = codes[first][unit_first] if classes else np.zeros(len(sizes), dtype=np.int64)
    order, place = np.lexsort((-sizes, strata)), np.arange(len(sizes))
    fold = np.empty(len(sizes), dtype=np.int64)
    if isinstance(number, int):
        fold[order] = place % number  # one class after the other, so that each one is spread evenly
    else:
        held_out = np.floor((place + 1) * number) > np.floor(place * number)
        held_out[np.unique(strata[order], return_index=True)[1]] = False  # one row of each class is left to learn from
        fold[order] = np.where(held_out, 0, -1)
    return fold[unit][distinct], distinct.astype(np.int64)


def _hold_out_latest(time: Floats, share: float, together: Ints) -> Ints:
    """Fold 0 for about a share of the rows, the latest ones of groups that begin then; -1 and `LEFT_OUT` for others."""
    moments, sizes = np.unique(time, return_counts=True)
    later = sizes[::-1].cumsum()[::-1][1:]  # rows from each moment on, but the first
    if not len(later):
        return np.full(len(time), -1, dtype=np.int64)
    late = time >= moments[1:][np.abs(later - share * len(time)).argmin()]
    begun = np.isin(together, together[~late])
    return np.where(late, np.where(begun, LEFT_OUT, 0), -1).astype(np.int64)


def teaching_rows(fold: Ints) -> list[Ints]:
    """The places of the rows that teach while each fold is held out, by the fold of each row (rows,).

    >>> [rows.tolist() for rows in teaching_rows(np.array([0, 1, -1, LEFT_OUT]))]
    [[1, 2], [0, 2]]
    """
    return [np.flatnonzero((fold != k) & (fold != LEFT_OUT)) for k in range(int(fold.max()) + 1)]


class RowWeights(NamedTuple):
    """Weights (rows,), and the index of each row's distinct row (rows,): copies of a row are one observation."""

    weights: Floats | None = None
    distinct: Ints | None = None

    def of(self, rows: int) -> Floats:
        """The weight of each row (rows,)."""
        return np.ones(rows) if self.weights is None else self.weights

    def sum_copies(self, values: Floats) -> Floats:
        """Values (rows,) added up over copies: one for each distinct row."""
        return values if self.distinct is None else np.bincount(self.distinct, values).astype(np.float64)

    def distinct_losses(self, losses: Floats) -> Floats:
        """One loss for each distinct row, scaled by its weight: the units of a paired test over rows."""
        weights = self.of(len(losses))
        return self.sum_copies(weights * losses) / float(self.sum_copies(weights).mean())


EQUAL_WEIGHTS = RowWeights()  # and no copies


# tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingTable:
    """Labelled rows with their targets and weights, and unlabelled rows.

    ``X`` and ``X_unlabelled`` hold the rows of the whole table; ``labelled_index`` and ``unlabelled_index`` select
    those of this one (None: all), so that folds need no copies. ``mark`` is a digest of the rows, where trainings are
    kept in files; ``seed`` draws rows where a learner is limited to some. ``synthetic`` is a number of unlabelled rows
    that are made of all others when they are asked for, always the same ones. ``groups`` and ``time`` of the labelled
    rows of the whole table decide the folds.
    """

    X: Any
    y: NDArray[Any]
    weights: Floats | None
    X_unlabelled: Any = None
    labelled_index: NDArray[Any] | None = None
    unlabelled_index: NDArray[Any] | None = None
    mark: str | None = None
    seed: int = 0
    synthetic: int = 0
    groups: Any = None
    time: Any = None

    @property
    def labelled(self) -> Any:
        """The labelled rows, taken anew each time."""
        return self.X if self.labelled_index is None else take(self.X, self.labelled_index)

    @property
    def selection(self) -> Any:
        """The labelled rows without a copy of them."""
        return self.X if self.labelled_index is None else RowSelection(self.X, self.labelled_index)

    @property
    def unlabelled(self) -> Any:
        """The unlabelled rows, taken anew each time; None where there are none."""
        rows = self.X_unlabelled
        if self.synthetic:
            given = [] if rows is None else [rows]
            rows = stack([*given, crossover_rows(stack([self.labelled, *given]), self.synthetic, self.seed)])
        return rows if self.unlabelled_index is None else take(rows, self.unlabelled_index)

    @property
    def n_unlabelled(self) -> int:
        """The number of unlabelled rows, synthetic ones included."""
        if self.unlabelled_index is not None:
            return len(self.unlabelled_index)
        return self.synthetic + (0 if self.X_unlabelled is None else self.X_unlabelled.shape[0])

    def with_labelled(self, index: NDArray[Any]) -> TrainingTable:
        """Some of the labelled rows, and all unlabelled ones."""
        weights = None if self.weights is None else self.weights[index]
        mark = None if self.mark is None else digest(self.mark, index)
        own = index if self.labelled_index is None else self.labelled_index[index]
        return replace(self, y=self.y[index], weights=weights, labelled_index=own, mark=mark)

    def with_unlabelled(self, index: Ints) -> TrainingTable:
        """All labelled rows, and some of the unlabelled ones."""
        mark = None if self.mark is None else digest(self.mark, "others", index)
        own = index if self.unlabelled_index is None else self.unlabelled_index[index]
        return replace(self, unlabelled_index=own, mark=mark)

    def limited(self, most: int | None) -> TrainingTable:
        """At most ``most`` rows, as `limited_counts` divides them.

        They are drawn once in a random order, so a lower limit gives the first ones of either kind.
        """
        labelled, unlabelled = self.limited_counts(most)
        table = self
        if labelled < len(self.y):
            classes = self.y if self.y.dtype.kind == "i" else None
            table = table.with_labelled(draw_rows(len(self.y), labelled, self.seed, classes))
        if unlabelled < self.n_unlabelled:
            table = table.with_unlabelled(draw_rows(self.n_unlabelled, unlabelled, self.seed))
        return table

    def limited_counts(self, most: int | None) -> tuple[int, int]:
        """The numbers of labelled and unlabelled rows under a limit: up to half of it labelled, more if it has room."""
        labelled, unlabelled = len(self.y), self.n_unlabelled
        if most is None or labelled + unlabelled <= most:
            return labelled, unlabelled
        labelled = min(labelled, max(most // 2, most - unlabelled))
        return labelled, most - labelled


# targets --------------------------------------------------------------------------------------------------------------


def target_column(y: Any, estimator: Any) -> NDArray[Any]:
    """The targets as an array (rows,).

    Raises:
        ValueError: there are none, or they have more columns.
    """
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    return np.asarray(column_or_1d(y, warn=True))


def has_target(y: Any, estimator: Any) -> NDArray[np.bool_]:
    """A mask of the targets (rows,) that are there: not None, nan or another mark of pandas for a missing value.

    >>> has_target([1.0, float("nan"), None], None).tolist()
    [True, False, False]
    """
    column = target_column(y, estimator)
    if column.dtype.kind in "fc":
        return np.asarray(~np.isnan(column))
    if column.dtype.kind != "O":
        return np.ones(len(column), dtype=bool)
    return np.array([not (v is None or is_scalar_nan(v) or is_pandas_na(v)) for v in column], dtype=bool)


def has_label(y: Any, mark: Any, estimator: Any) -> NDArray[np.bool_]:
    """A mask of the labels (rows,) that are there: not missing, and not ``mark``, among strings its text.

    Beside 1 alone -1 is a class and no mark: two classes are often called -1 and 1.

    >>> has_label(["no", "-1", None, "yes"], -1, None).tolist(), has_label([-1, 1], -1, None).tolist()
    ([True, False, False, True], [True, True])
    """
    column, labelled = target_column(y, estimator), has_target(y, estimator)
    if mark is None:
        return labelled
    if column.dtype.kind in "OUT":
        text = str(mark)
        marked = np.array(
            [ok and v == (text if isinstance(v, str) else mark) for ok, v in zip(labelled, column, strict=False)]
        )
    else:
        marked = np.isin(column, np.array([mark])) if isinstance(mark, (int, float, np.number)) else ~labelled
    others = np.unique(column[labelled & ~marked]) if column.dtype.kind in "iuf" else ()
    return labelled if mark == -1 and list(others) == [1] else labelled & ~marked


def real_targets(y: Any, estimator: Any) -> Floats:
    """Targets (rows,) as real numbers.

    Raises:
        ValueError: a target is missing, infinite, or no number, or they are all the same.
    """
    try:
        values = check_array(target_column(y, estimator), ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        if "contains NaN" in str(error):
            raise ValueError(
                "Input y contains NaN; leave out the rows without a target, or take SelfDistilledRegressor, which "
                "learns from unlabelled rows"
            ) from None
        raise _text_in_target(y, error) from None
    if len(values) > 1 and (values == values[0]).all():
        raise ValueError(f"y is {values[0]:g} in all {len(values)} rows: there is nothing to learn; check the column")
    return np.asarray(values, dtype=np.float64)


def _text_in_target(y: Any, error: ValueError) -> ValueError:
    """The error for targets that are no numbers: it names the first one."""
    for row, value in enumerate(target_column(y, None)):
        try:
            float(value)
        except (TypeError, ValueError):
            return ValueError(f"y has {value!r} in row {row} (from 0), which is no number; correct it, or give None")
    return error


def _one_type(column: NDArray[Any]) -> NDArray[Any]:
    """Labels of Python objects (rows,) in an array of their type.

    Raises:
        ValueError: they are of several types, which have no order.
    """
    first = {"text" if isinstance(v, str) else type(v).__name__: i for i, v in reversed(list(enumerate(column)))}
    numbers = all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in column)
    if len(first) > 1 and not numbers:
        (one, i), (other, k) = sorted(first.items(), key=lambda item: item[1])[:2]
        raise ValueError(f"y mixes {one} (row {i}, from 0) and {other} (row {k}); give labels of one type")
    return column if "text" in first else np.array(column.tolist())


def class_targets(y: Any, estimator: Any) -> tuple[NDArray[Any], Ints]:
    """The labels, sorted, and the index of each row's label among them (rows,).

    Raises:
        ValueError: y has no classes, or one only.
    """
    column = target_column(y, estimator)
    missing = np.flatnonzero(~has_target(column, estimator))
    if len(missing):
        raise ValueError(
            f"y has no label in row {missing[0]} (from 0): {column[missing[0]]!r}; leave such rows out, or take "
            "SelfTrainedClassifier, which learns from unlabelled rows"
        )
    if column.dtype.kind == "O":
        column = _one_type(column)
    check_classification_targets(column)
    labels, codes = np.unique(column, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"y has one class only, {str(labels[0])!r}: give rows of another")
    return labels, codes.astype(np.int64)
