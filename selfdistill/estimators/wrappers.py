"""Estimators around another one: encoded columns of frames, a limit on the rows of a fit, and names of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, TransformerMixin, clone, is_classifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from ..data.copies import Floats, category_codes, numeric_values
from ..errors import DataError
from ..io.files import trim_memory
from .tables import as_rows, class_targets, draw_rows, has_label, name_columns, predict_in_blocks, take, target_column

MAX_CATEGORIES = 254  # of a column; with one for the rest as many as histogram gradient boosting tells apart


MAX_INDICATORS = 63


# arguments of fit -----------------------------------------------------------------------------------------------------


def weight_parameter(estimator: Any) -> str | None:
    """The name under which an estimator's ``fit`` takes weights of rows; None if it takes none."""
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = weight_parameter(last)
        return None if inner is None else f"{name}__{inner}"
    if isinstance(estimator, RowLimit) and weight_parameter(estimator.estimator) is None:
        return None
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


def weight_arguments(estimator: Any, weights: Floats | None) -> dict[str, Floats]:
    """The arguments of ``fit`` for weights of rows (rows,).

    Raises:
        DataError: the estimator takes no weights.
    """
    if weights is None:
        return {}
    name = weight_parameter(estimator)
    if name is None:
        raise DataError(
            f"{type(estimator).__name__} takes no sample_weight, so its rows cannot be weighted; leave sample_weight "
            "out, or take a learner that has it"
        )
    return {name: weights}


def seeded_clone(estimator: Any, random: np.random.RandomState | None) -> Any:
    """A clone with every ``random_state`` drawn from a generator; with None they stay as they are."""
    copy = clone(estimator)
    if random is not None and hasattr(copy, "get_params"):
        names = [n for n in sorted(copy.get_params()) if n == "random_state" or n.endswith("__random_state")]
        copy.set_params(**{name: int(random.randint(2**31 - 1)) for name in names})
    return copy


# columns of frames ----------------------------------------------------------------------------------------------------


class FrameEncoder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A pandas or polars frame as an array (rows, columns) of float64.

    Numbers and booleans stay as they are and times become seconds. Any other value becomes the rank of its text among
    the ``most`` most frequent ones of the column, those of ``least`` rows or more; rarer and unknown texts share the
    next code; where these are of fewer than ``least`` rows, that of the most frequent. Missing values are nan. An array
    stays as it is.

    >>> import pandas as pd
    >>> FrameEncoder().fit_transform(pd.DataFrame({"n": [1, 2, 3], "kind": ["b", None, "b"]})).tolist()
    [[1.0, 0.0], [2.0, nan], [3.0, 0.0]]
    """

    def __init__(self, most: int = MAX_CATEGORIES, least: int = 1) -> None:
        self.most = most
        self.least = least

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> FrameEncoder:
        """Learn the categories of each column."""
        self.columns_ = list(X.columns) if hasattr(X, "columns") else None
        self.categories_: list[list[str] | None] = []  # the texts of each column; None for numbers
        self.rest_: list[int] = []  # the code of all other texts
        for name in self.columns_ or ():
            if numeric_values(X[name]) is not None:
                self.categories_.append(None)
                self.rest_.append(0)
                continue
            codes, texts = category_codes(X[name])
            frequency = np.bincount(codes[codes >= 0], minlength=len(texts))
            order = np.argsort(-frequency, kind="stable")[: self.most]
            self.categories_.append([texts[i] for i in order if frequency[i] >= self.least])
            kept = len(self.categories_[-1] or ())
            others = int(frequency.sum() - frequency[order[:kept]].sum())
            few = self.least > 1 and others < self.least  # too few to be told apart: as the most frequent ones
            self.rest_.append(0 if few else kept)
        return self

    def transform(self, X: Any) -> Any:
        """The array (rows, columns).

        Raises:
            ValueError: a column of ``fit`` is missing, or had numbers there and has none now.
        """
        if self.columns_ is None:
            return X
        encoded = np.empty((X.shape[0], len(self.columns_)))
        for i, (name, categories, rest) in enumerate(zip(self.columns_, self.categories_, self.rest_, strict=True)):
            if name not in X.columns:
                raise ValueError(f"column {name!r} is missing; give the columns that were learnt from")
            column = numeric_values(X[name]) if categories is None else _ranks(X[name], categories, rest)
            if column is None:
                raise ValueError(f"column {name!r} had numbers and has {X[name].dtype}; give numbers")
            encoded[:, i] = column
        return encoded

    def categorical(self) -> NDArray[np.bool_]:
        """Which columns (columns,) hold codes."""
        return np.array([categories is not None for categories in self.categories_], dtype=bool)


def _ranks(column: Any, categories: list[str], rest: int) -> Floats:
    codes, texts = category_codes(column)
    rank = {text: float(number) for number, text in enumerate(categories)}
    return np.array([*(rank.get(text, float(rest)) for text in texts), np.nan])[codes]  # -1: the last, nan


class IndicatorEncoder(FrameEncoder):
    """A frame as a sparse matrix for linear models.

    Numbers are standardised; a missing one becomes the median, and a further column marks it. Any other column becomes
    an indicator for each of its ``most`` most frequent categories, those of ``least`` rows or more, and one for the
    rest.

    >>> import pandas as pd
    >>> IndicatorEncoder().fit_transform(pd.DataFrame({"n": [1, 3], "kind": ["b", "a"]})).toarray().tolist()
    [[-1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, most: int = MAX_INDICATORS, least: int = 1) -> None:
        super().__init__(most, least)

    def fit(self, X: Any, y: Any = None) -> IndicatorEncoder:
        """Learn medians, standard deviations and categories."""
        super().fit(X)
        self.scaler_ = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
        )
        if not self.categorical().all():
            self.scaler_.fit(super().transform(X)[:, ~self.categorical()])
        return self

    def transform(self, X: Any) -> Any:
        """The matrix (rows, numbers, marks of missing ones, and indicators)."""
        codes, categorical = super().transform(X), self.categorical()
        parts = [] if categorical.all() else [sparse.csr_matrix(self.scaler_.transform(codes[:, ~categorical]))]
        for i in np.flatnonzero(categorical):
            present = np.flatnonzero(~np.isnan(codes[:, i]))
            entries = np.ones(len(present)), (present, codes[present, i].astype(np.int64))
            parts.append(sparse.csr_matrix(entries, shape=(len(codes), len(self.categories_[i] or ()) + 1)))
        return sparse.hstack(parts, format="csr")


def _without_empty_columns(X: Any) -> Any:
    """An array whose columns without any value are 0: boosting of histograms finds no bins in them, and never splits a
    constant."""
    if not isinstance(X, np.ndarray) or X.dtype.kind != "f":
        return X
    empty = np.array([np.isnan(X[:, i]).all() for i in range(X.shape[1])], dtype=bool)
    return np.where(empty, 0.0, X) if empty.any() else X


# around another estimator ---------------------------------------------------------------------------------------------


def delegated(name: str) -> Any:
    """A decorator: the method exists where the wrapped estimator has one of this name."""

    def check(self: Wrapper) -> bool:
        getattr(self.estimator_ if hasattr(self, "estimator_") else self._base(), name)
        return True

    return available_if(check)


class Wrapper(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that fits another one, ``estimator_``, and predicts by it."""

    estimator: Any
    estimator_: Any

    def _base(self) -> Any:
        """The estimator to wrap; it is cloned and never fitted itself."""
        return self.estimator

    def _inputs(self, X: Any) -> Any:
        """Rows as the wrapped estimator takes them."""
        return X

    def predict(self, X: Any) -> NDArray[Any]:
        """Predictions for rows (rows, columns)."""
        check_is_fitted(self, "estimator_")
        with name_columns(X):
            return np.asarray(predict_in_blocks(self.estimator_.predict, self._inputs(X)))

    @delegated("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes), in the order of ``classes_``."""
        check_is_fitted(self, "estimator_")
        with name_columns(X):
            return np.asarray(self.estimator_.predict_proba(self._inputs(X)), dtype=np.float64)

    @delegated("decision_function")  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Floats:
        """The wrapped estimator's decision function."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.estimator_.decision_function(self._inputs(X)))


@dataclass(eq=False, repr=False)  # scikit-learn compares and shows estimators in its own way
class RowLimit(Wrapper):
    """An estimator that fits at most ``most_rows`` rows, drawn without replacement: that bounds its time and memory.

    Args:
        estimator: the estimator.
        most_rows: of a fit. Of more rows, this many are drawn: the same ones each time, and at least one of each class.
        codes: encode a frame by `FrameEncoder`, and pass on which columns hold codes if the estimator has
            ``categorical_features``.
        least: rows of a category below which it is one of the rest.

    Attributes:
        estimator_: the fitted estimator. encoder_: the fitted `FrameEncoder`, or None.

    >>> from sklearn.tree import DecisionTreeRegressor
    >>> rows = np.arange(1000.0)[:, None]
    >>> RowLimit(DecisionTreeRegressor(), most_rows=100).fit(rows, rows[:, 0]).estimator_.get_n_leaves()
    np.int64(100)
    """

    estimator: Any
    _: KW_ONLY
    most_rows: int = 200_000
    codes: bool = False
    least: int = 1

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of a classifier, R^2 of a regressor."""
        measure = accuracy_score if is_classifier(self) else r2_score
        return float(measure(y, self.predict(X), sample_weight=sample_weight))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> RowLimit:
        """Train on the rows, or on those drawn of them."""
        y = np.asarray(y)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if X.shape[0] > self.most_rows:
            classes = y if hasattr(self.estimator, "predict_proba") else None
            rows = draw_rows(X.shape[0], self.most_rows, 0, classes)
            X, y, weights = take(X, rows), y[rows], None if weights is None else weights[rows]
        X, learner = as_rows(X), clone(self.estimator)
        self.encoder_ = FrameEncoder(least=self.least).fit(X) if self.codes else None
        if self.encoder_ is not None:
            X = self.encoder_.transform(X)
            trim_memory()  # the frame's columns are many small pieces
            if self.encoder_.categorical().any() and "categorical_features" in learner.get_params():
                learner.set_params(categorical_features=self.encoder_.categorical())
        self.estimator_ = learner.fit(_without_empty_columns(X), y, **weight_arguments(learner, weights))
        return self

    def _inputs(self, X: Any) -> Any:
        return X if self.encoder_ is None else self.encoder_.transform(X)

    @property
    def classes_(self) -> NDArray[Any]:
        """The classes, sorted, of a classifier."""
        return np.asarray(self.estimator_.classes_)

    @property
    def n_features_in_(self) -> int:
        """The number of columns it was fitted on."""
        return int(self.estimator_.n_features_in_)


def row_limit(learner: Any) -> int | None:
    """The most rows that a learner fits; None where there is no limit."""
    return learner.most_rows if isinstance(learner, RowLimit) else None


def innermost(estimator: Any) -> Any:
    """The learner within limits and pipelines."""
    if isinstance(estimator, RowLimit):
        return innermost(estimator.estimator)
    return innermost(estimator[-1]) if isinstance(estimator, Pipeline) else estimator


def with_innermost(estimator: Any, learner: Any) -> Any:
    """An estimator with another learner within its limits and pipelines; changed in place where it has any.

    >>> from sklearn.linear_model import Lasso, Ridge
    >>> innermost(with_innermost(make_pipeline(StandardScaler(), Ridge()), Lasso()))
    Lasso()
    """
    if isinstance(estimator, RowLimit):
        return estimator.set_params(estimator=with_innermost(estimator.estimator, learner))
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        estimator.steps[-1] = (name, with_innermost(last, learner))
        return estimator
    return learner


class ClassNames(ClassifierMixin, Wrapper):  # type: ignore[misc]
    """A classifier that predicts names of classes around one that predicts their numbers 0, 1, ...

    A run folder keeps such a model.

    Args:
        estimator: the classifier; fitted by `fit`, or before by `of`.

    Attributes:
        estimator_: the fitted classifier of numbers.
        classes_: the names, in the order of its probabilities.

    >>> from sklearn.linear_model import LogisticRegression
    >>> model = ClassNames.of(LogisticRegression().fit([[0.0], [1.0], [2.0]], [0, 1, 1]), ("low", "high"))
    >>> model.predict([[2.0], [-9.0]]).tolist(), model.classes_.tolist()
    (['high', 'low'], ['low', 'high'])
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    @classmethod
    def of(cls, fitted: Any, names: Sequence[str]) -> ClassNames:
        """A fitted classifier with the names of its classes, by number."""
        self = cls(clone(fitted))
        self.estimator_, self._names = fitted, np.asarray(names)
        self.classes_ = self._names[np.asarray(fitted.classes_, dtype=np.int64)]
        return self

    def fit(self, X: Any, y: Any, **more: Any) -> ClassNames:
        """Train the classifier on rows (rows, columns) and the names of their classes (rows,)."""
        column, parameters = target_column(y, self), self.estimator.get_params(deep=False)
        marked = "unlabelled" in parameters
        labelled = has_label(column, parameters["unlabelled"], self) if marked else np.ones(len(column), dtype=bool)
        self._names, codes = class_targets(column[labelled], self)
        numbers = np.full(len(column), -1)
        numbers[labelled] = codes
        self.estimator_, self.classes_ = clone(self.estimator).fit(X, numbers, **more), self._names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The name of each row's class (rows,)."""
        return np.asarray(self._names[np.asarray(super().predict(X), dtype=np.int64)])

    @delegated("report")  # type: ignore[untyped-decorator]
    def report(self) -> str:
        """The history of a model that distils itself."""
        return str(self.estimator_.report())


# ensembles ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False)
class MeanEnsemble(BaseEstimator):  # type: ignore[misc]
    """The mean of members fitted on all rows or, with a ``seed``, each on a bootstrap sample of its own.

    An undistilled ensemble to compare with.

    Source: Breiman, Bagging Predictors, Machine Learning 24, 1996.

    >>> from sklearn.linear_model import Ridge
    >>> X, y = np.arange(6.0)[:, None], np.arange(6.0)
    >>> MeanEnsemble([Ridge(0.0), Ridge(0.0)]).fit(X, y).predict(X).round(6).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    members: list[Any]
    seed: int | None = None

    def fit(self, X: Any, y: NDArray[Any]) -> MeanEnsemble:
        """Train every member."""
        random = None if self.seed is None else np.random.RandomState(self.seed)
        self.fitted_ = [self._fit_member(member, X, y, random) for member in self.members]
        if hasattr(self.fitted_[0], "classes_"):
            self.classes_ = np.unique(y)
        return self

    def _fit_member(self, member: Any, X: Any, y: NDArray[Any], random: np.random.RandomState | None) -> Any:
        if random is None:
            return clone(member).fit(X, y)
        while len(np.unique(y[(rows := random.randint(len(y), size=len(y)))])) < 2:
            pass  # a sample of one class or value teaches nothing
        return clone(member).fit(take(X, rows), y[rows])

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The mean of the values predicted, (rows,)."""
        return np.asarray(np.mean([model.predict(X) for model in self.fitted_], axis=0))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The mean of the probabilities, (rows, classes); 0 for a class that a member has not been trained on."""
        total = np.zeros((len(X), len(self.classes_)))
        for model in self.fitted_:
            total[:, np.searchsorted(self.classes_, model.classes_)] += model.predict_proba(X)
        return total / len(self.fitted_)
