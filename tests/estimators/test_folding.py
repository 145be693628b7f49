"""Rows left out: by folds or once by a share, copies together, classes spread, and everything that uses them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from selfdistill.estimators import (
    PeerTaughtRegressor,
    SelfDistilledClassifier,
    SelfDistilledRegressor,
    SelfTrainedClassifier,
    keeping,
)
from selfdistill.estimators.tables import LEFT_OUT, assign_folds, resolve_folds

X, Y = load_diabetes(return_X_y=True)
IRIS, KINDS = load_iris(return_X_y=True)


def trainings(model: Any, *given: Any, **more: Any) -> int:
    lines: list[int] = []
    with keeping(None, lambda done, planned, what: lines.append(done)):
        model.fit(*given, **more)
    return lines[-1]


def test_a_share_leaves_out_as_many_distinct_rows_and_their_copies() -> None:
    rows, y = np.repeat(X[:100], 3, 0), np.repeat(Y[:100], 3)
    fold, distinct = assign_folds(rows, y, 0.13, 0, classes=False)
    assert set(fold) == {-1, 0}
    assert len(np.unique(distinct[fold == 0])) == 13
    assert (fold == 0).sum() == 39


def test_a_share_is_taken_of_every_class_and_never_all_of_one() -> None:
    kinds = np.array([0] * 200 + [1] * 100 + [2])
    fold, _ = assign_folds(np.arange(301.0)[:, None], kinds, 0.9, 0, classes=True)
    assert [int((fold[kinds == c] == 0).sum()) for c in range(3)] == pytest.approx([180, 90, 0], abs=1)
    assert fold[-1] == -1


def test_another_seed_leaves_out_others() -> None:
    one, other = (assign_folds(X, Y, 0.2, seed, classes=False)[0] for seed in (0, 1))
    assert (one == 0).sum() == (other == 0).sum() == int(0.2 * len(X))
    assert 0 < ((one == 0) & (other == 0)).sum() < 50


def test_one_place_decides_what_auto_means() -> None:
    assert [resolve_folds("auto", rows) for rows in (10, 20_000, 50_000)] == [5, 5, 0.1]
    refused: list[Any] = [1, 0.0, 1.0, True, "5", None, -0.2, float("nan")]
    for odd in refused:
        with pytest.raises(ValueError, match="a share between 0 and 1"):
            SelfDistilledRegressor(Ridge(), audit_folds=odd).fit(X, Y)


def test_the_rows_left_out_are_judged_by_models_that_have_not_learnt_them() -> None:
    model = SelfDistilledRegressor(DecisionTreeRegressor(max_depth=3, random_state=0), xi=0.5, audit_folds=0.25)
    assert trainings(model, X, Y) == 2 * 2
    held = assign_folds(X, Y, 0.25, 0, classes=False)[0] == 0
    first = clone(model.estimator).fit(X[~held], Y[~held])
    second = clone(model.estimator).fit(X[~held], 0.5 * first.predict(X[~held]) + 0.5 * Y[~held])
    by_hand = [float(np.mean((one.predict(X[held]) - Y[held]) ** 2)) for one in (first, second)]
    assert [row["loss"] for row in model.history_] == pytest.approx(by_hand)
    product = (first, second)[model.generation_]
    assert model.residuals_ == pytest.approx(Y[held] - product.predict(X[held]))
    low, high = model.predict_interval(X[:5], 0.8)
    rank = int(np.ceil(0.8 * (held.sum() + 1)))
    assert (high - low) / 2 == pytest.approx(np.sort(np.abs(model.residuals_))[rank - 1])


def test_xi_is_chosen_on_the_rows_left_out() -> None:
    learner = DecisionTreeRegressor(min_samples_leaf=3, random_state=0)
    model = SelfDistilledRegressor(learner, peers=[Ridge(0.1)], audit_folds=0.3).fit(X, Y)
    held = assign_folds(X, Y, 0.3, 0, classes=False)[0] == 0
    teacher = Ridge(0.1).fit(X[~held], Y[~held]).predict(X[~held])
    ends = [clone(learner).fit(X[~held], t).predict(X[held]) for t in (Y[~held], teacher)]
    step = ends[1] - ends[0]
    raw = step @ (Y[held] - ends[0]) / (step @ step)
    assert 0.3 < model.xi_[0] <= raw  # shrunk toward 0


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_a_weight_of_two_is_the_row_twice(share: float) -> None:
    twice = np.arange(len(X)) % 4 == 0
    weighed = SelfDistilledRegressor(Ridge(0.5), audit_folds=share, peers=[Ridge(5.0)])
    copied = clone(weighed).fit(np.vstack([X, X[twice]]), np.concatenate([Y, Y[twice]]))
    weighed.fit(X, Y, sample_weight=1.0 + twice)
    assert weighed.xi_ == pytest.approx(copied.xi_, rel=1e-6)
    assert weighed.predict(X) == pytest.approx(copied.predict(X))
    assert weighed.history_[1]["loss"] == pytest.approx(copied.history_[1]["loss"])


def test_classes_tempering_and_peers_take_a_share() -> None:
    soft = SelfDistilledClassifier(HistGradientBoostingClassifier(max_iter=5), audit_folds=0.3, random_state=0)
    assert trainings(soft, IRIS, KINDS) == 4 + 2 - (soft.generation_ == 0)
    assert 0.8 < 1 - soft.history_[0]["loss"] <= 1
    taught = SelfTrainedClassifier(LogisticRegression(max_iter=500), audit_folds=0.5, generations=3, random_state=0)
    taught.fit(IRIS[::3], KINDS[::3], X_unlabeled=IRIS[1::3])
    assert taught.score(IRIS[2::3], KINDS[2::3]) > 0.9
    assert taught.history_[1]["temperature"] > 0
    among = PeerTaughtRegressor(Ridge(), peers=[DecisionTreeRegressor(max_depth=3)], audit_folds=0.2)
    assert trainings(among, X[:200], Y[:200], X_unlabeled=X[200:]) == 2 * (2 + 1) - 2 * (among.generation_ == 0)


def test_too_few_rows_to_leave_out_are_said() -> None:
    model = SelfDistilledRegressor(Ridge(), xi=0.5, audit_folds=0.01).fit(X[:100], Y[:100])
    assert model.generation_ == 0
    assert "too few rows" in model.report()


# ---- rows that belong together ---------------------------------------------------------------------------------------


def test_equal_rows_with_different_targets_share_a_fold() -> None:
    rows, y = np.repeat(X[:60], 2, 0), np.tile([0, 1], 60)
    fold, distinct = assign_folds(rows, y, 5, 0, classes=True)
    assert (fold[::2] == fold[1::2]).all()
    assert distinct.max() + 1 == 120
    assert np.bincount(fold).tolist() == [24] * 5


def test_rows_of_a_group_share_a_fold_and_other_folds_stay_what_they_were() -> None:
    owner = np.arange(len(X)) // 7
    fold, _ = assign_folds(X, Y, 5, 0, classes=False, groups=owner)
    assert all(len(np.unique(fold[owner == o])) == 1 for o in np.unique(owner))
    assert np.bincount(fold).min() > 0.8 * len(X) / 5
    alone = assign_folds(X, Y, 5, 0, classes=False, groups=np.arange(len(X)))[0]
    assert (alone == assign_folds(X, Y, 5, 0, classes=False)[0]).all()


def test_with_a_time_the_latest_rows_are_held_out() -> None:
    time, owner = np.arange(len(X)), np.where(np.arange(len(X)) % 50 == 0, 0, np.arange(len(X)))
    fold, _ = assign_folds(X, Y, 5, 0, classes=False, groups=owner, time=time)
    assert time[fold == -1].max() < time[fold == 0].min()
    assert (fold == 0).sum() == pytest.approx(len(X) / 5, abs=3)
    assert (time[fold == LEFT_OUT] % 50 == 0).all()
    model = SelfDistilledRegressor(Ridge(), xi=0.5).fit(X, Y, time=time, groups=owner)
    assert model.residuals_ is not None
    assert len(model.residuals_) == (fold == 0).sum()


def test_copies_with_labels_by_chance_are_not_predicted_by_the_audit() -> None:
    random = np.random.default_rng(0)
    rows, labels = np.repeat(random.normal(size=(60, 4)), 4, 0), np.repeat(random.integers(0, 2, 60), 4)
    noisy = np.where(random.random(240) < 0.1, 1 - labels, labels)
    tree = DecisionTreeClassifier(random_state=0)
    model = SelfDistilledClassifier(tree, xi=0.0, audit="strict").fit(rows, noisy)
    assert model.history_[0]["loss"] > 0.35
    owner = np.repeat(np.arange(60), 4)
    jittered = rows + random.normal(scale=1e-3, size=rows.shape)
    assert SelfDistilledClassifier(tree, xi=0.0).fit(jittered, labels, groups=owner).history_[0]["loss"] > 0.35
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SelfDistilledClassifier(tree).fit(rows, labels, groups=owner[:9])
