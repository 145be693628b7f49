"""Learners for frames of any size: what is no number becomes a code, and what is too much is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, MetaEstimatorMixin, TransformerMixin, clone, is_classifier
from sklearn.impute import SimpleImputer
from sklearn.metrics import accuracy_score, r2_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .tables import Floats, coded, count, drawn, numbers, take
from .weights import weighted

MOST_KINDS = 254  # of a column; with one for the rest as many as histogram gradient boosting tells apart


MOST_INDICATORS = 63


class Codes(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A pandas or polars frame as an array (rows, columns) of float64, column by column.

    Numbers and booleans stay, times become seconds, and anything else is the place of its text among the ``most``
    most frequent ones; rarer and unknown ones share the next place. What is missing is nan. An array stays as it is.

    >>> import pandas as pd
    >>> Codes().fit_transform(pd.DataFrame({"n": [1, 2, 3], "kind": ["b", None, "b"]})).tolist()
    [[1.0, 0.0], [2.0, nan], [3.0, 0.0]]
    """

    def __init__(self, most: int = MOST_KINDS) -> None:
        self.most = most

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> Codes:
        """Learn what kinds there are."""
        self.columns_ = list(X.columns) if hasattr(X, "columns") else None
        self.kinds_: list[list[str] | None] = []  # the texts of each column; None for numbers
        for name in self.columns_ or ():
            if numbers(X[name]) is not None:
                self.kinds_.append(None)
                continue
            codes, texts = coded(X[name])
            often = np.bincount(codes[codes >= 0], minlength=len(texts))
            self.kinds_.append([texts[i] for i in np.argsort(-often, kind="stable")[: self.most]])
        return self

    def transform(self, X: Any) -> Any:
        """The array (rows, columns).

        Raises:
            ValueError: a column that was there is missing, or had numbers and has none.
        """
        if self.columns_ is None:
            return X
        found = np.empty((count(X), len(self.columns_)))
        for place, (name, kinds) in enumerate(zip(self.columns_, self.kinds_, strict=True)):
            if name not in X.columns:
                raise ValueError(f"column {name!r} is missing; give the columns that were learnt from")
            column = numbers(X[name]) if kinds is None else _places(X[name], kinds)
            if column is None:
                raise ValueError(f"column {name!r} had numbers and has {X[name].dtype}; give numbers")
            found[:, place] = column
        return found

    def nominal(self) -> NDArray[np.bool_]:
        """Which columns (columns,) hold codes."""
        return np.array([kinds is not None for kinds in self.kinds_], dtype=bool)


def _places(column: Any, kinds: list[str]) -> Floats:
    codes, texts = coded(column)
    place = {text: float(number) for number, text in enumerate(kinds)}
    known = np.array([*(place.get(text, float(len(kinds))) for text in texts), np.nan])
    return np.asarray(known[codes])  # code -1, missing, is the last


class Indicators(Codes):
    """What a linear model needs of a frame, sparse: numbers in units of their spread, missing ones replaced by the
    median and told by a column, and for every other column one for each of its ``most`` most frequent kinds and one for
    the rest.

    >>> import pandas as pd
    >>> Indicators().fit_transform(pd.DataFrame({"n": [1, 3], "kind": ["b", "a"]})).toarray().tolist()
    [[-1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    def __init__(self, most: int = MOST_INDICATORS) -> None:
        super().__init__(most)

    def fit(self, X: Any, y: Any = None) -> Indicators:
        """Learn medians, spreads and kinds."""
        super().fit(X)
        self.scaler_ = make_pipeline(
            SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True), StandardScaler()
        )
        if not self.nominal().all():
            self.scaler_.fit(super().transform(X)[:, ~self.nominal()])
        return self

    def transform(self, X: Any) -> Any:
        """The matrix (rows, numbers, gaps and kinds)."""
        codes, nominal = super().transform(X), self.nominal()
        parts = [] if nominal.all() else [sparse.csr_matrix(self.scaler_.transform(codes[:, ~nominal]))]
        for place in np.flatnonzero(nominal):
            there = np.flatnonzero(~np.isnan(codes[:, place]))
            at = there, codes[there, place].astype(np.int64)
            wide = len(self.kinds_[place] or ()) + 1
            parts.append(sparse.csr_matrix((np.ones(len(there)), at), shape=(len(codes), wide)))
        return sparse.hstack(parts, format="csr")


def _has(name: str) -> Any:
    def check(self: Bounded) -> bool:
        getattr(getattr(self, "estimator_", self.estimator), name)
        return True

    return available_if(check)


class Bounded(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """A learner that fits at most so many rows, drawn without replacement, and so takes as long and as much memory.

    Args:
        estimator: the learner.
        most_rows: of a fit; of more rows, so many are drawn, the same ones each time, and every class once at least.
        codes: give the learner `Codes` of a frame, and tell it which columns those are if it has
            ``categorical_features``.

    Attributes:
        estimator_: the fitted learner. codes_: the fitted `Codes`.

    >>> from sklearn.tree import DecisionTreeRegressor
    >>> rows = np.arange(1000.0)[:, None]
    >>> Bounded(DecisionTreeRegressor(), most_rows=100).fit(rows, rows[:, 0]).estimator_.get_n_leaves()
    np.int64(100)
    """

    def __init__(self, estimator: Any, *, most_rows: int = 200_000, codes: bool = False) -> None:
        self.estimator = estimator
        self.most_rows = most_rows
        self.codes = codes

    def __sklearn_tags__(self) -> Any:
        return get_tags(self.estimator)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Accuracy of a classifier, R^2 of a regressor."""
        measure = accuracy_score if is_classifier(self) else r2_score
        return float(measure(y, self.predict(X), sample_weight=sample_weight))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Bounded:
        """Train on the rows, or on those drawn of them."""
        y = np.asarray(y)
        weights = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if count(X) > self.most_rows:
            classes = y if hasattr(self.estimator, "predict_proba") else None
            places = drawn(count(X), self.most_rows, 0, classes)
            X, y, weights = take(X, places), y[places], None if weights is None else weights[places]
        learner = clone(self.estimator)
        self.codes_ = Codes().fit(X) if self.codes else None
        if self.codes_ is not None:
            X = self.codes_.transform(X)
            if self.codes_.nominal().any() and "categorical_features" in learner.get_params():
                learner.set_params(categorical_features=self.codes_.nominal())
        self.estimator_ = learner.fit(X, y, **weighted(learner, weights))
        return self

    def _shown(self, X: Any) -> Any:
        check_is_fitted(self, "estimator_")
        return X if self.codes_ is None else self.codes_.transform(X)

    @property
    def classes_(self) -> NDArray[Any]:
        """The classes, sorted, of a classifier."""
        return np.asarray(self.estimator_.classes_)

    @property
    def n_features_in_(self) -> int:
        """How many columns it has learnt from."""
        return int(self.estimator_.n_features_in_)

    def predict(self, X: Any) -> NDArray[Any]:
        """What the learner says of rows (rows, columns)."""
        return np.asarray(self.estimator_.predict(self._shown(X)))

    @_has("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes)."""
        return np.asarray(self.estimator_.predict_proba(self._shown(X)))

    @_has("decision_function")  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Floats:
        """The learner's own decision function."""
        return np.asarray(self.estimator_.decision_function(self._shown(X)))


def bound(learner: Any) -> int | None:
    """How many rows a learner fits at most; None where there is no bound."""
    return learner.most_rows if isinstance(learner, Bounded) else None


def core(estimator: Any) -> Any:
    """The learner within bounds and pipelines."""
    if isinstance(estimator, Bounded):
        return core(estimator.estimator)
    return core(estimator[-1]) if isinstance(estimator, Pipeline) else estimator
