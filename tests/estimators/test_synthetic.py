"""Rows that are made up: of whole columns of given rows, the same ones each time, labelled like the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.tree import DecisionTreeRegressor

from selfdistill.estimators import PeerTaughtRegressor, SelfDistilledRegressor
from selfdistill.estimators.self_distillation import ENOUGH_ROWS
from selfdistill.estimators.tables import TrainingTable, crossover_rows

X, Y = load_diabetes(return_X_y=True)


def test_each_value_comes_from_one_of_two_rows_and_its_own_column() -> None:
    given = np.arange(200).reshape(20, 10)  # row 3 is 30 .. 39
    made = crossover_rows(given, 3000, 0)
    assert (made % 10 == np.arange(10)).all()
    parents = [len(set(row // 10)) for row in made]
    assert set(parents) == {1, 2}
    first = made // 10 == (made // 10)[:, :1]
    mixed = np.array(parents) == 2
    assert first[mixed, 1:].mean() == pytest.approx(0.5, abs=0.02)
    assert np.bincount((made // 10).ravel()) / made.size == pytest.approx(np.full(20, 0.05), abs=0.01)


def test_two_columns_keep_half_of_their_covariance() -> None:
    """With a chance of a half they come from one row and vary together, else not at all."""
    random = np.random.default_rng(0)
    a = random.normal(size=5000)
    made = crossover_rows(np.stack([a, a], 1), 40_000, 1)
    assert np.cov(made.T)[0, 1] == pytest.approx(0.5, abs=0.05)
    assert np.cov(made.T)[0, 0] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_keep_their_kinds_and_gaps(library: str) -> None:
    columns = {"n": [1.0, np.nan, 3.0], "text": ["a", None, "b"]}
    if library == "pandas":
        frame: Any = pd.DataFrame({**columns, "kind": pd.Categorical(["x", "y", "x"], categories=["z", "x", "y"])})
        frame.index = [7, 7, 9]
    else:
        polars = pytest.importorskip("polars")
        frame = polars.DataFrame({**columns, "kind": polars.Series(["x", "y", "x"], dtype=polars.Categorical)})
    made = crossover_rows(frame, 50, 0)
    assert type(made) is type(frame)
    assert made.shape == (50, 3)
    assert all(made[name].dtype == frame[name].dtype for name in frame.columns)
    pairs = {(str(n), str(t)) for n, t in zip(made["n"].to_list(), made["text"].to_list(), strict=True)}
    assert len(pairs) == 9
    if library == "pandas":
        pd.concat([frame, made], ignore_index=True)


def test_a_table_makes_the_same_rows_each_time_and_of_its_own_alone() -> None:
    table = TrainingTable(X, Y, None, X[:5] + 100, seed=2, synthetic=30)
    assert table.n_unlabelled == 35
    assert (table.unlabelled == table.unlabelled).all()
    part = table.with_labelled(np.arange(10))
    values = {*X[:10].ravel(), *(X[:5] + 100).ravel()}
    assert set(part.unlabelled.ravel()) <= values  # no row that a fold leaves out has a share in them
    assert part.with_unlabelled(np.array([34, 0])).unlabelled.shape == (2, 10)
    assert TrainingTable(X, Y, None, synthetic=8).unlabelled.shape == (8, 10)


class Seen(Ridge):  # type: ignore[misc]
    """Ridge regression that says how many rows it was given."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.rows_ = len(y)
        return super().fit(X, y, sample_weight)


@pytest.mark.parametrize(("synthetic", "rows"), [(0, 150), (70, 220), ("auto", ENOUGH_ROWS)])
def test_made_up_rows_are_learnt_beside_the_given_ones(synthetic: int | str, rows: int) -> None:
    model = PeerTaughtRegressor(Seen(), peers=[DecisionTreeRegressor(max_depth=2)], synthetic=synthetic, audit="off")
    model.fit(X[:50], Y[:50], X_unlabeled=X[50:150])
    assert model.estimator_.rows_ == rows
    assert ("synthetic" in model.report()) == bool(synthetic)


def test_auto_makes_none_up_without_unlabelled_rows_of_many_or_of_sparse_ones() -> None:
    taught = PeerTaughtRegressor(Seen(), peers=[Ridge()], audit="off")
    assert taught.fit(X, Y).estimator_.rows_ == len(X)
    many = np.vstack([X] * 8)
    assert taught.fit(X, Y, X_unlabeled=many).estimator_.rows_ == 9 * len(X)
    rows = sparse.csr_matrix(X)
    assert taught.fit(rows[:50], Y[:50], X_unlabeled=rows[50:60]).estimator_.rows_ == 60
    with pytest.raises(ValueError, match="sparse"):
        SelfDistilledRegressor(Ridge(), synthetic=5, xi=0.5).fit(rows, Y)
    with pytest.raises(ValueError, match="number of rows from 0 on"):
        SelfDistilledRegressor(Ridge(), synthetic=-1).fit(X, Y)


def test_made_up_rows_need_no_unlabelled_ones_where_they_are_asked_for() -> None:
    model = SelfDistilledRegressor(Seen(0.1), synthetic=300, xi=0.0, audit_folds=2, random_state=0).fit(X, Y)
    assert len(model.history_) == 2
    assert "300 rows (300 of them synthetic)" in model.report()
