"""A fitted classifier of numbered classes that says their names: what a run folder keeps of a learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from .tables import Floats


def _has(name: str) -> Any:
    return available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), name))


class Named(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier whose classes 0, 1, ... have names.

    Args:
        estimator: the learner; fitted by `fit`, or before by `of`.

    Attributes:
        estimator_: the fitted learner, with numbers for classes.
        classes_: the names, in the order of its probabilities.

    >>> from sklearn.linear_model import LogisticRegression
    >>> model = Named.of(LogisticRegression().fit([[0.0], [1.0], [2.0]], [0, 1, 1]), ("low", "high"))
    >>> model.predict([[2.0], [-9.0]]).tolist(), model.classes_.tolist()
    (['high', 'low'], ['low', 'high'])
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    @classmethod
    def of(cls, fitted: Any, names: Sequence[str]) -> Named:
        """The fitted learner with the names of its classes, by number."""
        self = cls(clone(fitted))
        self.estimator_, self._names = fitted, np.asarray(names)
        self.classes_ = self._names[np.asarray(fitted.classes_, dtype=np.int64)]
        return self

    def fit(self, X: Any, y: Any, **more: Any) -> Named:
        """Train the learner on rows (rows, columns) and the names of their classes (rows,)."""
        names, numbers = np.unique(np.asarray(y), return_inverse=True)
        fitted = clone(self.estimator).fit(X, numbers, **more)
        self.estimator_, self._names, self.classes_ = fitted, names, names
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The name of each row's class (rows,)."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self._names[np.asarray(self.estimator_.predict(X), dtype=np.int64)])

    @_has("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes), in the order of ``classes_``."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.estimator_.predict_proba(X), dtype=np.float64)

    @_has("report")  # type: ignore[untyped-decorator]
    def report(self) -> str:
        """What happened in training, where the learner teaches itself."""
        return str(self.estimator_.report())
