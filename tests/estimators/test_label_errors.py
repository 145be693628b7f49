"""LabelErrors: the examination of labels by any estimator of scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.tree import DecisionTreeRegressor

from selfdistill.errors import DataError
from selfdistill.estimators import LabelErrors


def test_classes_are_examined_and_cleaned() -> None:
    random = np.random.default_rng(0)
    X = random.normal(size=(300, 3))
    true = np.where(X[:, 0] > 0, "yes", "no")
    y, wrong = true.copy(), random.permutation(300)[:45]
    y[wrong] = np.where(true[wrong] == "yes", "no", "yes")
    errors = LabelErrors(estimator=LogisticRegression()).fit(X, y)
    assert abs(errors.noise_.rate - 0.15) < 0.04
    assert np.isin(errors.order_[:30], wrong).all()
    rows, labels = errors.clean(X, y)
    assert len(rows) == len(labels) == 300 - errors.likely_.sum()
    relabelled = errors.clean(X, y, "relabel")[1]
    assert (relabelled == true).mean() > (y == true).mean() + 0.1
    assert clone(errors).get_params()["cv"] == 5


def test_values_are_examined() -> None:
    random = np.random.default_rng(0)
    X = random.uniform(size=(400, 1))
    y = np.sin(6 * X[:, 0]) + 0.05 * random.normal(size=400)
    y[:20] += 5
    errors = LabelErrors(estimator=DecisionTreeRegressor(min_samples_leaf=10)).fit(X, y)
    assert set(errors.order_[:20]) == set(range(20))
    assert errors.matrix_ is None


def test_what_cannot_be_examined_is_one_line() -> None:
    X, y = np.eye(4), np.array([0, 0, 0, 1])
    with pytest.raises(DataError, match="'1' has 1 rows"):
        LabelErrors(estimator=LogisticRegression()).fit(X, y)
    with pytest.raises(DataError, match="predict_proba"):
        LabelErrors(estimator=RidgeClassifier()).fit(X, [0, 0, 1, 1])
    with pytest.raises(DataError, match="3 labels for 4 rows"):
        LabelErrors(estimator=LogisticRegression()).fit(X, y[:3])
    with pytest.raises(NotFittedError):
        LabelErrors().clean(X, y)
