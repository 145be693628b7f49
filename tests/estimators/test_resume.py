"""Kept trainings: read back only where they are the very same, told one by one, the product unchanged."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.tree import DecisionTreeRegressor

from selfdistill.errors import DataError
from selfdistill.estimators import PeerTaughtRegressor, SelfDistilledClassifier, SelfDistilledRegressor, keeping
from selfdistill.estimators.resume import digest

X, Y = load_diabetes(return_X_y=True)
X, Y = X[:120], Y[:120]
U = load_diabetes(return_X_y=True)[0][120:160]
FITS: list[int] = []


class Counted(DecisionTreeRegressor):  # type: ignore[misc]
    """A tree that counts its fits and becomes one of scikit-learn's, which can be kept."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        FITS.append(len(y))
        return DecisionTreeRegressor(max_depth=self.max_depth, random_state=self.random_state).fit(X, y, sample_weight)


def peers(**options: Any) -> Any:
    return PeerTaughtRegressor(
        Counted(random_state=0), peers=[Counted(max_depth=2), Ridge()], random_state=1, audit_folds=2, **options
    )


def told(estimator: Any, folder: Path | None, *given: Any, **more: Any) -> tuple[Any, list[tuple[int, int, str]]]:
    lines: list[tuple[int, int, str]] = []
    with keeping(folder, lambda *line: lines.append(line)):
        model = clone(estimator).fit(*given, **more)
    return model, lines


def test_every_training_is_told_in_its_order() -> None:
    model, lines = told(peers(), None, X, Y, X_unlabeled=U)
    assert model.generation_ == 1
    assert [done for done, _, _ in lines] == list(range(1, 13))
    assert {planned for _, planned, _ in lines} == {12}  # 2 folds and all rows, each 3 members and then 1
    assert lines[1][2] == "generation 0, fold 1 of 2, peer 1"
    assert lines[-1][2] == "generation 1 on all rows"


def test_a_chain_that_the_audit_ends_plans_less() -> None:
    worse = SelfDistilledRegressor(Ridge(0.1), peers=[DecisionTreeRegressor(max_depth=1)], xi=1.0, generations=4)
    model, lines = told(worse, None, X, Y)
    assert len(model.history_) < 4
    assert lines[0][1] > lines[-1][1] == lines[-1][0]


@pytest.mark.parametrize(
    "estimator",
    [
        SelfDistilledRegressor(HistGradientBoostingRegressor(max_iter=5), generations=3, audit_folds=2, random_state=0),
        SelfDistilledRegressor(DecisionTreeRegressor(max_depth=3), peers=2, audit_folds=2, random_state=0),
        PeerTaughtRegressor(Ridge(), peers=[DecisionTreeRegressor()], audit_folds=2, random_state=0),
    ],
    ids=str,
)
def test_kept_told_or_neither_the_product_is_the_same(estimator: Any, tmp_path: Path) -> None:
    plain = clone(estimator).fit(X, Y, X_unlabeled=U).predict(U)
    first, lines = told(estimator, tmp_path, X, Y, X_unlabeled=U)
    again, more = told(estimator, tmp_path, X, Y, X_unlabeled=U)
    assert (first.predict(U) == plain).all()
    assert (again.predict(U) == plain).all()
    assert lines == more
    assert again.history_ == first.history_


def test_classifiers_are_kept_too(tmp_path: Path) -> None:
    rows, kinds = load_iris(return_X_y=True)
    estimator = SelfDistilledClassifier(LogisticRegression(max_iter=500), audit_folds=2)
    plain = clone(estimator).fit(rows, kinds).predict_proba(rows)
    for _ in range(2):
        assert (told(estimator, tmp_path, rows, kinds)[0].predict_proba(rows) == plain).all()
    kept = len(list(tmp_path.iterdir()))
    told(estimator, tmp_path, rows, np.array(["a", "b", "c"])[kinds])  # the same numbers, other labels
    assert len(list(tmp_path.iterdir())) == 2 * kept


def test_an_interrupted_fit_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    plain = peers().fit(X, Y, X_unlabeled=U).predict(U)

    def interrupt(done: int, planned: int, what: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), keeping(tmp_path, interrupt):
        peers().fit(X, Y, X_unlabeled=U)
    assert len(list(tmp_path.iterdir())) == 7
    FITS.clear()
    model, lines = told(peers(), tmp_path, X, Y, X_unlabeled=U)
    assert (model.predict(U) == plain).all()
    assert len(lines) == 12
    assert len(FITS) == 9 - 5  # of the twelve nine are trees, and five of those were kept


def test_processes_keep_and_tell_the_same(tmp_path: Path) -> None:
    estimator = PeerTaughtRegressor(DecisionTreeRegressor(), peers=[Ridge()], random_state=0, audit_folds=2)
    alone, one = told(estimator, tmp_path / "one", X, Y, X_unlabeled=U)
    beside, two = told(clone(estimator).set_params(n_jobs=2), tmp_path / "two", X, Y, X_unlabeled=U)
    assert (alone.predict(U) == beside.predict(U)).all()
    assert one == two
    assert {f.name for f in (tmp_path / "one").iterdir()} == {f.name for f in (tmp_path / "two").iterdir()}


CHANGES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "a target": lambda m, y, u: (m, np.where(np.arange(len(y)) == 5, y + 1, y), u, None),
    "a weight": lambda m, y, u: (m, y, u, np.where(np.arange(len(y)) == 5, 2.0, 1.0)),
    "a setting": lambda m, y, u: (m.set_params(estimator__max_depth=4), y, u, None),
    "a seed": lambda m, y, u: (m.set_params(random_state=8), y, u, None),
    "an unlabelled row": lambda m, y, u: (m, y, np.vstack([u[:-1], u[:1]]), None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_trained_again(change: str, tmp_path: Path) -> None:
    estimator = PeerTaughtRegressor(Counted(), peers=[Counted(max_depth=2)], random_state=7, audit_folds=2)
    told(estimator, tmp_path, X, Y, X_unlabeled=U)
    estimator, y, u, weights = CHANGES[change](estimator, Y, U)
    FITS.clear()
    kept, lines = told(estimator, tmp_path, X, y, sample_weight=weights, X_unlabeled=u)
    if change != "an unlabelled row":  # the first generation knows nothing of those
        assert len(FITS) >= len(lines) / 2
    assert (kept.predict(X) == clone(estimator).fit(X, y, weights, u).predict(X)).all()


def test_damaged_and_foreign_files_are_trained_again(tmp_path: Path) -> None:
    plain = peers().fit(X, Y, X_unlabeled=U).predict(U)
    told(peers(), tmp_path, X, Y, X_unlabeled=U)
    files = sorted(tmp_path.iterdir())
    files[0].write_bytes(b"odd")
    files[1].write_bytes(pickle.dumps(Ridge()))
    files[2].write_bytes(files[3].read_bytes())  # another training's
    files[4].write_bytes(files[4].read_bytes()[:200])
    FITS.clear()
    model, _ = told(peers(), tmp_path, X, Y, X_unlabeled=U)
    assert (model.predict(U) == plain).all()
    assert sorted(tmp_path.iterdir()) == files
    FITS.clear()
    told(peers(), tmp_path, X, Y, X_unlabeled=U)
    assert not FITS  # they are mended


class Own(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """A learner that skops does not know, with a function that nothing can keep."""

    def __init__(self, of: Callable[[Any], float] = lambda y: float(np.mean(y))) -> None:
        self.of = of

    def fit(self, X: Any, y: Any) -> Own:
        self.said_ = self.of(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.said_)


def test_learners_of_ones_own_are_told_but_not_kept(tmp_path: Path) -> None:
    estimator = PeerTaughtRegressor(Own(), peers=[Own(np.median)], audit_folds=2)
    _, lines = told(estimator, tmp_path, X, Y, X_unlabeled=U)
    assert len(lines) == lines[-1][1]
    assert not list(tmp_path.iterdir())


def test_a_learner_of_ours_is_one_training(tmp_path: Path) -> None:
    outer = SelfDistilledRegressor(SelfDistilledRegressor(Ridge(), xi=0.5, audit="off"), xi=0.5, audit="off")
    _, lines = told(outer, tmp_path, X, Y)
    assert len(lines) == len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_said_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be made a folder"), keeping(tmp_path / "file" / "in"):
        pass


def test_a_digest_is_of_all_that_a_table_holds() -> None:
    base = {"n": [1.0, np.nan, 3.0], "t": ["a", "b", None], "c": pd.Categorical(["x", "y", "x"])}
    frame = pd.DataFrame(base)
    others = [
        pd.DataFrame({**base, "n": [1.0, 2.0, 3.0]}),
        pd.DataFrame({**base, "n": np.array([1, 2, 3])}),
        pd.DataFrame({**base, "t": ["a", "b", "None"]}),
        pd.DataFrame({**base, "c": pd.Categorical(["x", "y", "x"], categories=["y", "x"])}),
        frame.rename(columns={"n": "m"}),
        frame[["t", "n", "c"]],
        frame[::-1],
        frame[:2],
    ]
    assert digest(frame) == digest(frame.copy())
    assert len({digest(one) for one in [frame, *others]}) == 9
    assert digest(sparse.csr_matrix(X)) != digest(sparse.csr_matrix(X * 2))
    assert digest(X) == digest(np.asfortranarray(X)) != digest(X.astype(np.float32))


def test_polars_frames_have_digests_too() -> None:
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"n": [1.0, None], "t": ["a", None]})
    assert digest(frame) == digest(frame.clone())
    assert digest(frame) != digest(polars.DataFrame({"n": [1.0, float("nan")], "t": ["a", None]}))
