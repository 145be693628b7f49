"""scikit-learn's own checks, none of them exempted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks

from selfdistill.estimators import (
    AutoClassifier,
    AutoRegressor,
    NetworkClassifier,
    NetworkRegressor,
    PeerTaughtRegressor,
    SelfDistilledClassifier,
    SelfDistilledRegressor,
    SelfTrainedClassifier,
)

# Boosting is the usual learner: two folds and a given weight spare it 15 of 21 trainings; the others search and fold.
ESTIMATORS = [
    AutoClassifier(LogisticRegression(), learners={}, synthetic=0),
    AutoRegressor(Ridge(), learners={}, synthetic=0, product="single"),
    SelfDistilledClassifier(xi=0.5, audit_folds=2),
    SelfDistilledClassifier(LogisticRegression(), audit_folds=2),
    SelfDistilledClassifier(DecisionTreeClassifier(random_state=0), xi=0.5, generations=3),
    SelfDistilledRegressor(audit_folds=2),
    SelfDistilledRegressor(Ridge(), generations=4),
    SelfDistilledRegressor(DecisionTreeRegressor(random_state=0), peers=[Ridge()]),
    SelfTrainedClassifier(),
    SelfTrainedClassifier(DecisionTreeClassifier(random_state=0), hard=False),
    PeerTaughtRegressor(),
    PeerTaughtRegressor(Ridge()),
    NetworkClassifier(steps=100),
    NetworkRegressor(steps=100),
]


@parametrize_with_checks(ESTIMATORS)  # type: ignore[untyped-decorator]
def test_check_estimator(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)
