"""Students: one learner that takes over what several know, from their predictions for many rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from ..data.copies import Floats
from .wrappers import innermost, weight_arguments, with_innermost

LEAST_PROBABILITY = 0.01  # below it a logarithm would tell classes apart that nobody confuses
SMALL_TABLE = 10_000  # rows up to which a student's trees are small: more leaves cost time and teach nothing
SMALL_TREES = {"max_leaf_nodes": 15, "learning_rate": 0.15}

#: the regressor that learns the log-probabilities of a classifier of the same kind
REGRESSORS: dict[type, type] = {
    ExtraTreesClassifier: ExtraTreesRegressor,
    HistGradientBoostingClassifier: HistGradientBoostingRegressor,
    KNeighborsClassifier: KNeighborsRegressor,
    RandomForestClassifier: RandomForestRegressor,
}
_OF_CLASSES = ("class_weight", "criterion", "loss", "scoring")  # settings with another meaning for values


@dataclass(eq=False, repr=False)
class LogProbabilityClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of regressors that learn log-probabilities, so that soft targets need no copies of the rows.

    Equation::

        f_c learns log p_c - mean_j log p_j;  p(c | x) = softmax_c f(x);  of two classes one regressor is enough

    Args:
        estimator: the regressor, cloned for each class.

    Attributes:
        estimators_: the fitted regressors. classes_: the labels, sorted.

    Source: Ba and Caruana, Do Deep Nets Really Need to be Deep?, NIPS 2014, section 2.2: regression on logits.

    >>> from sklearn.tree import DecisionTreeRegressor
    >>> X, P = np.array([[0.0], [1.0]]), np.array([[0.75, 0.25], [0.25, 0.75]])
    >>> model = LogProbabilityClassifier(DecisionTreeRegressor()).fit(X, P, classes=["a", "b"])
    >>> model.predict_proba(X).round(6).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """

    takes_probabilities = True
    estimator: Any = None

    def fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> LogProbabilityClassifier:
        """Train on probabilities (rows, classes) of ``classes``, or on labels (rows,)."""
        targets = np.asarray(y)
        if targets.ndim == 1:
            check_classification_targets(targets)
            self.classes_, codes = np.unique(targets, return_inverse=True)
            targets = np.eye(len(self.classes_))[codes]
        else:
            self.classes_ = np.asarray(range(targets.shape[1]) if classes is None else classes)
        logs = np.log(np.clip(targets, LEAST_PROBABILITY, None))
        logs -= logs.mean(axis=1, keepdims=True)
        base = HistGradientBoostingRegressor() if self.estimator is None else self.estimator
        weights = weight_arguments(base, None if sample_weight is None else np.asarray(sample_weight))
        columns = [1] if len(self.classes_) == 2 else range(len(self.classes_))
        self.estimators_ = [clone(base).fit(X, logs[:, column], **weights) for column in columns]
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes), in the order of ``classes_``."""
        check_is_fitted(self, "estimators_")
        logs = np.stack([np.asarray(model.predict(X), dtype=np.float64) for model in self.estimators_], axis=1)
        if len(self.classes_) == 2:
            logs = np.concatenate([-logs, logs], axis=1)
        exponents = np.exp(logs - logs.max(axis=1, keepdims=True))
        return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each row (rows,)."""
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


def student_of(learner: Any, classify: bool, rows: int) -> Any:
    """The learner as a student of soft targets, not fitted: the same kind and number of trees.

    Args:
        learner: what it is when it learns labels.
        classify: whether it learns probabilities. Trees and neighbours then learn their logarithms; another classifier
            gets each row once for every class.
        rows: how many it will learn. With few of them boosting grows trees of 15 leaves, at a higher rate.

    >>> type(student_of(RandomForestClassifier(7), True, 100)).__name__
    'LogProbabilityClassifier'
    """
    own = clone(learner)
    inner = innermost(own)
    kind = REGRESSORS.get(type(inner)) if classify else type(inner)
    if kind is None:
        return own
    parameters = inner.get_params(deep=False)
    if classify:
        usual = kind().get_params(deep=False)
        parameters = {k: v for k, v in parameters.items() if k in usual and k not in _OF_CLASSES}
    if kind is HistGradientBoostingRegressor and rows <= SMALL_TABLE:
        defaults = kind().get_params(deep=False)
        untouched = {k: v for k, v in SMALL_TREES.items() if parameters[k] == defaults[k]}
        parameters |= {**untouched, "min_samples_leaf": defaults["min_samples_leaf"]}
    student = with_innermost(own, kind(**parameters))
    return LogProbabilityClassifier(student) if classify else student
