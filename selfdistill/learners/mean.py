"""The mean of several learners, as one estimator: an undistilled ensemble to compare with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone

from ..estimators.rows import take


class Mean(BaseEstimator):  # type: ignore[misc]
    """Members fitted on all rows or, with a ``seed``, each on a bootstrap sample of its own; predictions averaged.

    Source: Breiman, Bagging Predictors, Machine Learning 24, 1996.

    >>> from sklearn.linear_model import Ridge
    >>> X, y = np.arange(6.0)[:, None], np.arange(6.0)
    >>> Mean([Ridge(0.0), Ridge(0.0)]).fit(X, y).predict(X).round(6).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, members: list[Any], seed: int | None = None) -> None:
        self.members = members
        self.seed = seed

    def fit(self, X: Any, y: NDArray[Any]) -> Mean:
        random = None if self.seed is None else np.random.RandomState(self.seed)
        self.fitted_ = [self._one(member, X, y, random) for member in self.members]
        if hasattr(self.fitted_[0], "classes_"):
            self.classes_ = np.unique(y)
        return self

    def _one(self, member: Any, X: Any, y: NDArray[Any], random: np.random.RandomState | None) -> Any:
        if random is None:
            return clone(member).fit(X, y)
        while len(np.unique(y[(places := random.randint(len(y), size=len(y)))])) < 2:
            pass  # a sample of one class or value teaches nothing
        return clone(member).fit(take(X, places), y[places])

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The mean of the values predicted, (rows,)."""
        return np.asarray(np.mean([model.predict(X) for model in self.fitted_], axis=0))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The mean of the probabilities, (rows, classes); 0 for a class that a member has not seen."""
        found = np.zeros((len(X), len(self.classes_)))
        for model in self.fitted_:
            found[:, np.searchsorted(self.classes_, model.classes_)] += model.predict_proba(X)
        return found / len(self.fitted_)
