"""Label errors of any classifier or regressor of scikit-learn, by predictions for rows that it did not learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import cross_val_predict

from ..data.decisions import DROP
from ..errors import DataError
from ..evaluation.cleaning import RELABEL
from ..evaluation.label_noise import LabelNoise, find_label_errors
from .tables import take

FEWEST = 2  # rows of a class, so that one may be left out


@dataclass(eq=False, repr=False, kw_only=True)
class LabelErrors(BaseEstimator):  # type: ignore[misc]
    """Likely label errors: each row is examined by the estimator trained without its fold.

    Args:
        estimator: A classifier with ``predict_proba``, or a regressor; `AutoClassifier` by default.
        cv: The number of folds, or a splitter of scikit-learn.
        n_jobs: Trainings at a time.
        random_state: Seed of the bootstrap samples.

    Attributes:
        scores_: (rows,) the probability that each label is wrong. likely_: a mask of the likely errors. suggested_: the
            most probable labels, or the predicted values. noise_: the noise rate with its interval. matrix_: the noise
            matrix, true classes by given ones; None for values. pred_probs_: the predictions out of fold. classes_: the
            classes, sorted; None for values. order_: the rows, the highest score first.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> y[:5] = 2
    >>> errors = LabelErrors(estimator=LogisticRegression(max_iter=500)).fit(X, y)
    >>> sorted(errors.order_[:5].tolist()), errors.suggested_[:5].tolist()
    ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0])
    >>> len(errors.clean(X, y)[1]) == 150 - int(errors.likely_.sum())
    True
    """

    estimator: Any = None
    cv: Any = 5
    n_jobs: int | None = None
    random_state: int = 0

    def fit(self, X: Any, y: Any) -> LabelErrors:
        """Examine labels.

        Args:
            X: The rows.
            y: Their labels: classes or values.

        Raises:
            DataError: there are no two rows of a class, or the estimator gives no probabilities.
        """
        learner, labels = self._learner(), np.asarray(y)
        classify = is_classifier(learner)
        if len(labels) != (X.shape[0] if hasattr(X, "shape") else len(X)):
            raise DataError(f"y has {len(labels)} labels for {X.shape[0]} rows; give one for each")
        if not classify:
            self.classes_, self.pred_probs_ = (
                None,
                cross_val_predict(learner, X, labels, cv=self.cv, n_jobs=self.n_jobs),
            )
            return self._keep(find_label_errors(labels.astype(np.float64), self.pred_probs_, self.random_state))
        if not hasattr(learner, "predict_proba"):
            raise DataError(f"{type(learner).__name__} gives no probabilities; take an estimator with predict_proba")
        self.classes_, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < FEWEST or counts.min() < FEWEST:
            rare = self.classes_[counts.argmin()]
            raise DataError(
                f"y has {len(self.classes_)} classes, and {str(rare)!r} has {counts.min()} rows; examining labels "
                "needs two classes of two rows or more"
            )
        cv = min(self.cv, int(counts.min())) if isinstance(self.cv, int) else self.cv
        self.pred_probs_ = cross_val_predict(learner, X, codes, cv=cv, n_jobs=self.n_jobs, method="predict_proba")
        noise = find_label_errors(codes, self.pred_probs_, self.random_state)
        return self._keep(noise)

    def _learner(self) -> Any:
        from .auto import AutoClassifier

        return AutoClassifier(random_state=self.random_state) if self.estimator is None else clone(self.estimator)

    def _keep(self, noise: LabelNoise) -> LabelErrors:
        self.scores_, self.likely_, self.order_ = noise.scores, noise.likely, noise.order
        self.noise_, self.matrix_ = noise.noise, noise.matrix
        self.suggested_ = noise.suggested if self.classes_ is None else self.classes_[noise.suggested]
        return self

    def clean(self, X: Any, y: Any, action: str = DROP) -> tuple[Any, NDArray[Any]]:
        """The rows without likely errors, or with the suggested label in their place.

        Args:
            X: The rows that were examined.
            y: Their labels.
            action: ``drop`` or ``relabel``.

        Returns:
            The rows and the labels.

        Raises:
            DataError: there is no such action, or the rows are others.
            NotFittedError: before ``fit``.
        """
        if not hasattr(self, "likely_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        labels = np.asarray(y)
        if action not in (DROP, RELABEL):
            raise DataError(f"there is no action {action!r}; give {DROP} or {RELABEL}")
        if len(labels) != len(self.likely_):
            raise DataError(f"y has {len(labels)} labels, and {len(self.likely_)} were examined; give the same rows")
        if action == RELABEL:
            return X, np.where(self.likely_, self.suggested_, labels)
        kept = np.flatnonzero(~self.likely_)
        return take(X, kept), labels[kept]
