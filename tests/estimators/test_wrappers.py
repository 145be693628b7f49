"""Learners for frames of any size: codes of kinds, bounds of rows, and chains that copy no more than they learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from selfdistill.data.copies import category_codes, numeric_values, row_hashes
from selfdistill.estimators import (
    PeerTaughtRegressor,
    SelfDistilledClassifier,
    SelfDistilledRegressor,
    keeping,
    load,
    save,
    usual_learner,
    usual_peers,
)
from selfdistill.estimators.generations import (
    ClassTargets,
    RealTargets,
    fit_soft,
    threshold_sample,
    train_first,
    train_next,
)
from selfdistill.estimators.pseudo_labels import PseudoLabels
from selfdistill.estimators.tables import (
    BLOCK,
    TrainingTable,
    draw_rows,
    predict_in_blocks,
)
from selfdistill.estimators.wrappers import ClassNames, FrameEncoder, IndicatorEncoder, RowLimit

IRIS, KINDS = load_iris(return_X_y=True)
DAYS = pd.to_datetime(["2024-01-01", None, "2024-01-02"])


def mixed(library: str, rows: int = 90) -> tuple[Any, Any]:
    """Numbers with gaps, a flag, a text with gaps, a category, a time; and values that need all kinds of them."""
    random = np.random.default_rng(0)
    size, kind = random.normal(size=rows), random.choice(["a", "b", "c"], rows)
    text = [None if i % 9 == 0 else f"t{i % 4}" for i in range(rows)]
    at = np.datetime64("2024-01-01", "us") + random.integers(0, 10**9, rows).astype("timedelta64[ms]")
    y = size + 3.0 * (kind == "b") + np.where(np.arange(rows) % 4 == 2, 2.0, 0.0)
    columns = {"size": np.where(np.arange(rows) % 7 == 0, np.nan, size), "flag": size > 0, "text": text, "at": at}
    if library == "pandas":
        return pd.DataFrame({**columns, "kind": pd.Categorical(kind)}), y
    polars = pytest.importorskip("polars")
    return polars.DataFrame({**columns, "kind": polars.Series(kind, dtype=polars.Categorical)}), y


# columns --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "wanted"),
    [
        (pd.Series([1, 2, 3]), [1, 2, 3]),
        (pd.Series([1, None, 3], dtype="Int64"), [1, np.nan, 3]),
        (pd.Series([True, False]), [1, 0]),
        (pd.Series(DAYS), [1_704_067_200, np.nan, 1_704_153_600]),
        (pd.Series(DAYS).dt.tz_localize("UTC"), [1_704_067_200, np.nan, 1_704_153_600]),
        (pd.Series(DAYS) - pd.Timestamp("2024-01-01"), [0, np.nan, 86_400]),
    ],
)
def test_numbers_and_times_of_pandas(column: Any, wanted: list[float]) -> None:
    assert numeric_values(column) == pytest.approx(np.array(wanted, dtype=float), nan_ok=True)


def test_numbers_and_times_of_polars() -> None:
    polars = pytest.importorskip("polars")
    days = polars.Series(DAYS.to_pydatetime().tolist()[::2])
    for column, wanted in [
        (polars.Series([1, None]), [1, np.nan]),
        (polars.Series([True, False]), [1, 0]),
        (days, [1_704_067_200, 1_704_153_600]),
        (days.dt.date(), [1_704_067_200, 1_704_153_600]),
        (days - days[0], [0, 86_400]),
        (days.dt.time(), [0, 0]),
    ]:
        assert numeric_values(column) == pytest.approx(np.array(wanted, dtype=float), nan_ok=True)
    assert numeric_values(polars.Series(["a"])) is None


def test_texts_have_the_same_codes_in_every_library() -> None:
    polars = pytest.importorskip("polars")
    texts = ["b", None, "a", "c", "b"]
    for column in (
        pd.Series(texts), pd.Series(texts, dtype=object), pd.Series(texts, dtype="category"), polars.Series(texts),
        polars.Series(texts, dtype=polars.Categorical),
    ):  # fmt: skip
        codes, names = category_codes(column)
        assert (codes.tolist(), names) == ([1, -1, 0, 2, 1], ["a", "b", "c"])
    assert category_codes(pd.Series([1, "1", 2], dtype=object))[0].tolist() == [0, 0, 1]  # texts are what counts


def test_rare_and_unknown_kinds_share_a_code_and_gaps_are_gaps() -> None:
    frame = pd.DataFrame({"kind": ["a"] * 3 + ["b"] * 2 + ["c", "d", None]})
    codes = FrameEncoder(most=2).fit(frame)
    assert codes.transform(frame)[:, 0] == pytest.approx([0, 0, 0, 1, 1, 2, 2, np.nan], nan_ok=True)
    assert codes.transform(pd.DataFrame({"kind": ["new"]})).tolist() == [[2.0]]
    with pytest.raises(ValueError, match="'kind' is missing"):
        codes.transform(pd.DataFrame({"sort": ["a"]}))
    with pytest.raises(ValueError, match="had numbers"):
        FrameEncoder().fit(pd.DataFrame({"n": [1.0]})).transform(pd.DataFrame({"n": ["a"]}))


def test_boosting_tells_more_than_255_kinds_apart_as_far_as_it_can() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"kind": [f"k{i}" for i in np.minimum(random.geometric(0.01, 4000), 900)]})
    y = (frame["kind"].str[1:].astype(int) % 2).to_numpy(float)
    with pytest.raises(ValueError, match="cardinality"):
        HistGradientBoostingRegressor(categorical_features="from_dtype").fit(frame.astype("category"), y)
    assert usual_learner(False, frame).fit(frame, y).score(frame, y) > 0.6


def test_indicators_are_those_of_scikit_learn() -> None:
    frame, _ = mixed("pandas")
    found = IndicatorEncoder().fit(frame).transform(frame[["text"]].join(frame.drop(columns="text")))
    wanted = OneHotEncoder(sparse_output=False).fit_transform(frame[["kind"]])
    dense = found.toarray()
    order = np.argsort([-(frame["kind"] == kind).sum() for kind in "abc"], kind="stable")
    assert (dense[:, -4:-1] == wanted[:, order]).all()
    assert not dense[:, -1].any()
    numbers_of = dense[:, :3]
    assert numbers_of.mean(0) == pytest.approx(np.zeros(3), abs=1e-9)
    assert numbers_of.std(0) == pytest.approx(np.ones(3))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_the_defaults_take_raw_frames(library: str, tmp_path: Path) -> None:
    frame, y = mixed(library)
    model = PeerTaughtRegressor(random_state=0, audit_folds=2, audit="off").fit(
        frame[:60], y[:60], X_unlabeled=frame[60:]
    )
    assert model.score(frame, y) > 0.2
    assert model.history_[1]["labelled_by"] == ["ExtraTreesRegressor", "RidgeCV"]
    save(model, tmp_path / "model.skops")
    assert (load(tmp_path / "model.skops").predict(frame) == model.predict(frame)).all()
    with keeping(tmp_path / "kept"):
        clone(model).fit(frame[:60], y[:60], X_unlabeled=frame[60:])
    assert len(list((tmp_path / "kept").iterdir())) == 4  # every member can be kept
    beside = SelfDistilledClassifier(peers=usual_peers(True, classify=True), xi=0.5, audit="off", random_state=0)
    said = beside.fit(frame, np.where(y > 1.5, "many", "few")).predict_proba(frame)
    assert said.sum(1) == pytest.approx(np.ones(90))
    assert beside.score(frame, np.where(y > 1.5, "many", "few")) > 0.8


def test_usual_learners_are_of_the_kind_that_was_asked_for() -> None:
    for frame in (True, False):
        for classify, y in ((True, KINDS), (False, KINDS * 1.0)):
            rows = pd.DataFrame(IRIS, columns=list("abcd")) if frame else IRIS
            for learner in (usual_learner(classify, rows), *usual_peers(rows, classify)):
                assert learner.fit(rows, y).score(rows, y) > 0.8
                assert hasattr(learner, "predict_proba") == classify


# bounds ---------------------------------------------------------------------------------------------------------------


def test_no_more_rows_are_fitted_than_the_bound_and_every_class_is_among_them() -> None:
    rows = np.arange(500.0)[:, None]
    kinds = np.where(np.arange(500) == 77, "rare", "usual")
    model = RowLimit(DecisionTreeClassifier(), most_rows=20).fit(rows, kinds, np.full(500, 2.0))
    assert model.estimator_.tree_.n_node_samples[0] == 20
    assert set(model.classes_) == {"rare", "usual"}
    assert model.estimator_.tree_.weighted_n_node_samples[0] == 40
    assert RowLimit(DecisionTreeRegressor(), most_rows=500).fit(rows, rows[:, 0]).score(rows, rows[:, 0]) == 1.0
    places = draw_rows(500, 20, 0)
    assert len(set(places.tolist())) == 20
    assert (places[:10] == draw_rows(500, 10, 0)).all()


def test_a_table_gives_its_labelled_rows_first() -> None:
    table = TrainingTable(np.arange(10.0)[:, None], np.arange(10.0), None, np.arange(10.0, 110.0)[:, None], seed=3)
    assert table.limited_counts(None) == (10, 100)
    assert table.limited_counts(50) == (10, 40)
    assert table.limited_counts(8) == (4, 4)
    assert TrainingTable(table.X, table.y, None).limited_counts(4) == (4, 0)
    few = table.limited(8)
    assert (few.labelled[:, 0] == few.y).all()
    assert len(np.unique(few.unlabelled)) == 4
    assert few.unlabelled.min() >= 10
    again = few.with_labelled(np.array([1, 0])).with_unlabelled(np.array([3]))
    assert again.labelled[:, 0].tolist() == [few.y[1], few.y[0]]
    assert again.unlabelled.tolist() == [few.unlabelled[3].tolist()]


class Remembers(Ridge):  # type: ignore[misc]
    """Ridge regression that keeps what it was given."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        self.given_ = X, y
        return super().fit(X, y, sample_weight)


def test_members_learn_their_own_bound_of_the_same_rows_with_the_labels_of_the_others() -> None:
    random = np.random.default_rng(0)
    X, U = random.normal(size=(40, 2)), random.normal(size=(60, 2))
    y = X @ [1.0, 2.0]
    learners = [
        RowLimit(Remembers(), most_rows=50),
        RowLimit(Remembers(5.0), most_rows=30),
        RowLimit(Remembers(9.0), most_rows=10),
    ]
    table = TrainingTable(X, y, np.full(40, 2.0), U)
    models = train_first(RealTargets(), learners, table, [None] * 3)
    assert [len(model.estimator_.given_[1]) for model in models] == [40, 30, 10]
    made = train_next(RealTargets(), learners, table, models, 0.5, PseudoLabels())
    for number, (one, known) in enumerate(zip(made, (25, 15, 5), strict=True)):
        rows, targets = one.estimator_.given_
        others = [model for place, model in enumerate(models) if place != number]
        said = np.mean([model.predict(rows) for model in others], axis=0)
        label = rows[:known] @ [1.0, 2.0]
        assert targets[:known] == pytest.approx(0.5 * said[:known] + 0.5 * label)
        assert targets[known:] == pytest.approx(said[known:])
        assert {tuple(row) for row in rows[:known]} <= {tuple(row) for row in X}
        assert {tuple(row) for row in rows[known:]} <= {tuple(row) for row in U}


def test_folds_take_the_rows_they_name_without_a_copy_of_the_table() -> None:
    model = SelfDistilledRegressor(RowLimit(Ridge(), most_rows=50), xi=0.5, audit_folds=2, random_state=0)
    random = np.random.default_rng(0)
    X = random.normal(size=(400, 3))
    assert model.fit(X, X @ [1.0, 2.0, 3.0]).score(X, X @ [1.0, 2.0, 3.0]) > 0.9


def test_thinned_targets_are_right_on_average() -> None:
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.linspace(0.05, 0.5, 20), 400).ravel()
    places, weights = threshold_sample(shares, 800)
    assert len(places) == pytest.approx(800, abs=1)
    found = np.zeros(len(shares))
    found[places] = weights
    assert found.sum() == pytest.approx(shares.sum(), abs=1)
    assert (found[shares > 0.9] == shares[shares > 0.9]).all()
    parts = found.reshape(400, 20).sum(0), shares.reshape(400, 20).sum(0)
    assert np.corrcoef(*parts)[0, 1] > 0.8


def test_soft_targets_of_bounded_learners_are_thinned() -> None:
    P = np.random.default_rng(0).dirichlet(np.ones(3) * 0.3, len(IRIS))
    exact = fit_soft(LogisticRegression(max_iter=1000), IRIS, P, np.arange(3))
    near = fit_soft(RowLimit(LogisticRegression(max_iter=1000), most_rows=250), IRIS, P, np.arange(3))
    assert np.abs(near.predict_proba(IRIS) - exact.predict_proba(IRIS)).mean() < 0.1
    whole = fit_soft(RowLimit(LogisticRegression(max_iter=1000), most_rows=450), IRIS, P, np.arange(3))
    assert whole.predict_proba(IRIS) == pytest.approx(exact.predict_proba(IRIS))


def test_blocks_say_what_the_whole_says() -> None:
    rows = np.random.default_rng(0).normal(size=(2 * BLOCK + 7, 1))
    sizes = []

    def call(X: Any) -> Any:
        sizes.append(len(X))
        return X[:, 0] * 2

    assert (predict_in_blocks(call, rows) == rows[:, 0] * 2).all()
    assert sizes == [BLOCK, BLOCK, 7]
    said = ClassTargets(np.arange(3)).predict(DecisionTreeClassifier().fit(IRIS, KINDS), IRIS)
    assert (said.argmax(1) == KINDS).all()


def test_equal_rows_of_frames_have_equal_marks() -> None:
    for library in ("pandas", "polars"):
        frame, _ = mixed(library)
        places = np.repeat(np.arange(90), 2)
        twice = frame.iloc[places] if library == "pandas" else frame[places]
        found = row_hashes(twice, 0)
        assert (found[::2] == found[1::2]).all()
        assert len(np.unique(found)) == 90


def test_clones_of_the_defaults_are_equal() -> None:
    assert str(clone(usual_learner(True, True))) == str(usual_learner(True, True))


# names of classes ----------------------------------------------------------------------------------------------------


def test_names_follow_the_numbers_also_where_a_class_is_missing() -> None:
    """Numbers 2 and 0 were learnt, "b" has no row; the order is the learner's."""
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    fitted = DecisionTreeClassifier(random_state=0).fit(x, [2, 2, 0, 0])
    model = ClassNames.of(fitted, ("z", "b", "a"))
    assert model.classes_.tolist() == ["z", "a"]
    assert model.predict(x).tolist() == ["a", "a", "z", "z"]
    assert model.predict_proba(x).argmax(1).tolist() == [1, 1, 0, 0]
    assert model.score(x, ["a", "a", "z", "a"]) == 0.75


def test_it_is_fitted_as_the_learner_itself_on_names() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = np.where(x[:, 0] > 0, "up", "down")
    wanted, found = LogisticRegression().fit(x, y), ClassNames(LogisticRegression()).fit(x, y)
    assert found.predict(x).tolist() == wanted.predict(x).tolist()
    assert np.allclose(found.predict_proba(x), wanted.predict_proba(x))
