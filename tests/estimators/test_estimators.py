"""The estimators: soft targets exactly, peers without themselves, audits that roll back, frames, and bad input."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.datasets import load_diabetes, load_digits, load_iris, make_friedman1
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from selfdistill.errors import CheckpointError, DataError
from selfdistill.estimators import (
    NetworkClassifier,
    NetworkRegressor,
    PeerTaughtRegressor,
    SelfDistilledClassifier,
    SelfDistilledRegressor,
    SelfTrainedClassifier,
    load,
    save,
)
from selfdistill.estimators.generations import ClassTargets, RealTargets, fit_soft, train_next
from selfdistill.estimators.pseudo_labels import PseudoLabels
from selfdistill.estimators.tables import TrainingTable, assign_folds, stack
from selfdistill.estimators.wrappers import ClassNames

X, Y = load_diabetes(return_X_y=True)
IRIS, KINDS = load_iris(return_X_y=True)


# soft targets ---------------------------------------------------------------------------------------------------------


def soft(rows: int, classes: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).dirichlet(np.ones(classes), rows)


def test_weighted_rows_learn_the_expected_loss() -> None:
    """Logistic regression on soft targets has the gradient of the soft cross-entropy: zero at its solution."""
    P, C = soft(len(IRIS), 3), 0.7
    model = fit_soft(LogisticRegression(C=C, tol=1e-10, max_iter=10_000), IRIS, P, np.arange(3))
    residual = model.predict_proba(IRIS) - P
    gradient = C * residual.T @ IRIS + model.coef_
    assert np.abs(gradient).max() < 1e-3
    assert np.abs(residual.sum(0)).max() < 1e-3  # the intercepts


def test_naive_bayes_adds_up_the_same_without_copies_of_the_rows() -> None:
    P = soft(len(IRIS), 3)
    model = fit_soft(GaussianNB(), IRIS, P, np.arange(3))
    copies = GaussianNB().fit(np.repeat(IRIS, 3, 0), np.tile(np.arange(3), len(IRIS)), sample_weight=P.ravel())
    assert model.predict_proba(IRIS) == pytest.approx(copies.predict_proba(IRIS), abs=1e-7)


def test_hard_targets_are_the_plain_fit() -> None:
    hard = fit_soft(KNeighborsClassifier(), IRIS, np.eye(3)[KINDS], np.arange(3))
    assert (hard.predict(IRIS) == KNeighborsClassifier().fit(IRIS, KINDS).predict(IRIS)).all()
    with pytest.raises(DataError, match="takes no sample_weight"):
        fit_soft(KNeighborsClassifier(), IRIS, soft(len(IRIS), 3), np.arange(3))


# generations ----------------------------------------------------------------------------------------------------------


def test_a_generation_learns_the_mixture() -> None:
    model = SelfDistilledRegressor(Ridge(0.1), xi=0.7, audit="off").fit(X, Y)
    first = Ridge(0.1).fit(X, Y)
    by_hand = Ridge(0.1).fit(X, 0.7 * first.predict(X) + 0.3 * Y)
    assert model.predict(X) == pytest.approx(by_hand.predict(X))
    assert model.generation_ == 1


def test_repeated_distillation_ends_at_the_fixed_point() -> None:
    """With labels kept, many generations of ridge are ridge with penalty / (1 - xi)."""
    Z = X - X.mean(0)
    model = SelfDistilledRegressor(Ridge(0.1, fit_intercept=False), xi=0.5, generations=60, audit="off").fit(Z, Y)
    assert model.predict(Z) == pytest.approx(Ridge(0.2, fit_intercept=False).fit(Z, Y).predict(Z), abs=1e-8)


class Says(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """Says one value, and remembers what it was taught."""

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def fit(self, X: Any, y: Any) -> Says:
        self.taught_ = np.asarray(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.full(len(X), self.value)


def test_peers_label_for_each_other_and_never_for_themselves() -> None:
    learners = [Says(1.0), Says(2.0), Says(6.0)]
    table = TrainingTable(X[:4], Y[:4], None, X[4:7])
    models = [clone(one).fit(X[:4], Y[:4]) for one in learners]
    made = train_next(RealTargets(), learners, table, models, 0.0, PseudoLabels())
    assert [one.taught_[4:].tolist() for one in made] == [[4.0] * 3, [3.5] * 3, [1.5] * 3]
    assert all((one.taught_[:4] == Y[:4]).all() for one in made)


def test_peers_may_count_the_learner_among_them() -> None:
    """A member that says 1 beside one that says 4, taught by the mean of both or by the other alone."""
    for include_self, wanted in ((True, 2.5), (False, 4.0)):
        model = PeerTaughtRegressor(Says(1.0), peers=[Says(4.0)], include_self=include_self, synthetic=0, audit="off")
        model.fit(X[:4], Y[:4], X_unlabeled=X[4:7])
        assert model.estimator_.taught_[4:].tolist() == [wanted] * 3
        assert ("and itself" in model.report()) == include_self
        assert model.history_[1]["labelled_by"] == ["Says"] * (1 + include_self)


def test_a_harmful_generation_is_rolled_back_and_a_good_one_kept() -> None:
    harmful = SelfDistilledRegressor(
        DecisionTreeRegressor(max_depth=3, random_state=0), peers=[DummyRegressor()], xi=1.0
    )
    harmful.fit(X, Y)
    assert harmful.generation_ == 0
    assert not harmful.history_[1]["decision"]["accepted"]
    assert "rolled back" in harmful.report()
    good = SelfDistilledRegressor(DecisionTreeRegressor(random_state=0), peers=[Ridge(0.1)], xi=1.0).fit(X, Y)
    assert good.generation_ == 1
    assert "the final model is generation 1" in good.report()


def test_the_report_tells_accuracy_as_the_share_that_is_right() -> None:
    model = SelfDistilledClassifier(GaussianNB(), xi=0.5).fit(IRIS, KINDS)
    told = float(model.report().split("accuracy ")[1].split(" ")[0])
    assert told == pytest.approx(cross_val_score(GaussianNB(), IRIS, KINDS, cv=10).mean(), abs=0.02)
    assert told == pytest.approx(1 - model.history_[0]["loss"], abs=1e-3)


def test_the_audit_sees_no_row_twice() -> None:
    fold, distinct = assign_folds(np.repeat(X[:30], 2, 0), np.repeat(Y[:30], 2), 5, 0, classes=False)
    assert (fold[::2] == fold[1::2]).all()
    assert len(np.unique(distinct)) == 30


def test_self_training_takes_labels_back_and_balances_them() -> None:
    pixels, digits = load_digits(return_X_y=True)
    pixels = pixels / 16
    model = SelfTrainedClassifier(LogisticRegression(max_iter=300), generations=4, random_state=0)
    model.fit(pixels[:100], digits[:100], X_unlabeled=pixels[100:900])
    alone = LogisticRegression(max_iter=300).fit(pixels[:100], digits[:100])
    assert model.score(pixels[900:], digits[900:]) > alone.score(pixels[900:], digits[900:])
    assert [row["generation"] for row in model.history_] == list(range(len(model.history_)))
    assert model.history_[1]["temperature"] > 0
    assert model.history_[1]["labelled_by"] == ["LogisticRegression"]


def test_hard_labels_need_no_weights() -> None:
    model = SelfTrainedClassifier(KNeighborsClassifier(), audit="off", generations=2)
    model.fit(IRIS[::3], KINDS[::3], X_unlabeled=IRIS[1::3])
    assert model.score(IRIS[2::3], KINDS[2::3]) > 0.9


def test_two_fits_with_one_seed_are_equal_and_processes_do_not_matter() -> None:
    def fitted(**options: Any) -> Any:
        model = PeerTaughtRegressor(
            DecisionTreeRegressor(), peers=[Ridge()], random_state=3, synthetic=50, audit_folds=2, **options
        )
        return model.fit(X[:60], Y[:60], X_unlabeled=X[60:200]).predict(X[200:])

    assert (fitted() == fitted(n_jobs=2)).all()


def test_intervals_hold_as_many_values_as_they_promise() -> None:
    """Over 40 draws of friedman1; the share on new rows is within three standard errors of what was asked for."""
    shares: dict[float, list[float]] = {0.8: [], 0.95: []}
    for seed in range(40):
        rows, y = make_friedman1(160, noise=1.0, random_state=seed)
        model = SelfDistilledRegressor(Ridge(1.0)).fit(rows[:80], y[:80])
        for coverage, found in shares.items():
            low, high = model.predict_interval(rows[80:], coverage)
            found.append(float(((low <= y[80:]) & (y[80:] <= high)).mean()))
    for coverage, found in shares.items():
        assert abs(np.mean(found) - coverage) < 3 * np.std(found) / np.sqrt(len(found)) + 0.01
    with pytest.raises(ValueError, match=r"coverage 0\.99 is not between 0 and 0\.988"):
        model.predict_interval(rows, 0.99)
    with pytest.raises(ValueError, match="held out"):
        SelfDistilledRegressor(Ridge(), audit="off", xi=0.5).fit(rows, y).predict_interval(rows)


# tables ---------------------------------------------------------------------------------------------------------------


def frame() -> tuple[pd.DataFrame, Any]:
    random = np.random.default_rng(0)
    table = pd.DataFrame({"size": random.normal(size=120), "kind": random.choice(["a", "b", "c"], 120)})
    y = (table["size"] + (table["kind"] == "a") > 0.3).map({True: "yes", False: "no"})
    table.loc[::7, "size"] = np.nan
    return table, y


def columns() -> Any:
    return make_column_transformer(
        (OneHotEncoder(), make_column_selector(dtype_exclude="number")), remainder="passthrough"
    )


def test_a_pipeline_with_missing_values_and_categories_is_searched_over() -> None:
    table, y = frame()
    pipeline = make_pipeline(columns(), HistGradientBoostingClassifier(max_iter=10))
    search = GridSearchCV(
        SelfDistilledClassifier(pipeline, audit_folds=2, random_state=0),
        {"xi": [0.0, 0.5], "generations": [1, 2]},
        cv=2,
    )
    search.fit(table[:100], y[:100], X_unlabeled=table[100:])
    assert set(search.best_params_) == {"xi", "generations"}
    assert set(search.predict(table)) <= {"yes", "no"}
    assert list(search.best_estimator_.feature_names_in_) == ["size", "kind"]


def test_usual_peers_take_frames_with_text_and_gaps() -> None:
    table, _ = frame()
    y = np.where(table["kind"] == "a", 2.0, 0.0) + np.random.default_rng(1).normal(size=120)
    pipeline = make_pipeline(columns(), DecisionTreeRegressor(random_state=0))
    model = PeerTaughtRegressor(pipeline, random_state=0).fit(table[:60], y[:60], X_unlabeled=table[60:])
    assert model.predict(table).shape == (120,)


def test_polars_frames_are_rows_too() -> None:
    polars = pytest.importorskip("polars")
    random = np.random.default_rng(0)
    table = polars.DataFrame({"size": random.normal(size=90), "kind": random.choice(["a", "b"], 90)})
    y = table["size"].to_numpy() + (table["kind"] == "a").to_numpy()
    pipeline = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["kind"]), ("passthrough", ["size"])),
        DecisionTreeRegressor(random_state=0),
    )
    model = PeerTaughtRegressor(pipeline, random_state=0).fit(table[:50], y[:50], X_unlabeled=table[50:])
    assert list(model.feature_names_in_) == ["size", "kind"]
    assert model.score(table[50:], y[50:]) > 0.5
    assert stack([table[:2], table[2:4], table[4:5]]).equals(table[:5])


def test_rows_stack_as_what_they_came_in() -> None:
    assert sparse.issparse(stack([sparse.csr_matrix(X[:2]), sparse.csr_matrix(X[2:3])]))
    assert isinstance(stack([frame()[0][:2], frame()[0][2:3]]), pd.DataFrame)
    assert stack([X[:2], X[2:3]]).shape == (3, 10)


def test_sparse_rows_are_taught() -> None:
    rows = sparse.csr_matrix(np.where(X > 0, X, 0))
    model = SelfDistilledRegressor(Ridge(0.1)).fit(rows[:200], Y[:200], X_unlabeled=rows[200:])
    assert model.predict(rows).shape == (442,)


# files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "estimator",
    [
        SelfDistilledRegressor(Ridge(0.1)),
        SelfDistilledRegressor(),
        PeerTaughtRegressor(DecisionTreeRegressor()),
        NetworkRegressor(steps=5),
    ],
    ids=lambda estimator: str(estimator).split("(")[0],
)
def test_a_saved_estimator_says_the_same(estimator: Any, tmp_path: Path) -> None:
    estimator.fit(X[:100], Y[:100])
    save(estimator, tmp_path / "model.skops")
    again = load(tmp_path / "model.skops")
    assert (again.predict(X) == estimator.predict(X)).all()
    assert pickle.loads(pickle.dumps(estimator)).predict(X) == pytest.approx(estimator.predict(X))  # noqa: S301 - our own


def test_foreign_files_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="would not trust"):
        save(SelfDistilledRegressor(Says(), xi=0.5, audit="off").fit(X, Y), tmp_path / "model.skops")
    with pytest.raises(DataError, match="system, which `load` would not trust"):
        save(FunctionTransformer(partial(os.system)), tmp_path / "bound.skops")  # what is bound is judged too
    (tmp_path / "odd.skops").write_bytes(b"odd")
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        load(tmp_path / "odd.skops")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(tmp_path / "none.skops")


# bad input ------------------------------------------------------------------------------------------------------------


def complaint(estimator: Any, X: Any, y: Any, **options: Any) -> str:
    with pytest.raises(ValueError, match=r".") as found:
        estimator.fit(X, y, **options)
    said = str(found.value)
    assert "\n" not in said
    return said


def test_bad_input_gets_one_line_with_a_remedy() -> None:
    y = Y.copy()
    y[3] = np.nan
    assert "SelfDistilledRegressor" in complaint(NetworkRegressor(steps=1), X, y)
    assert "nothing to learn" in complaint(SelfDistilledRegressor(Ridge()), X, np.ones(len(X)))
    assert "one class only" in complaint(SelfDistilledClassifier(GaussianNB()), IRIS, np.zeros(len(IRIS)))
    assert "3 columns and X has 10" in complaint(SelfDistilledRegressor(Ridge()), X, Y, X_unlabeled=X[:, :3])
    table, kinds = frame()
    renamed = table.rename(columns={"kind": "sort"})
    said = complaint(SelfTrainedClassifier(DecisionTreeClassifier()), table, kinds, X_unlabeled=renamed)
    assert "'kind'" in said
    assert "sample_weight" in complaint(SelfDistilledClassifier(KNeighborsClassifier()), IRIS, KINDS)
    assert "CalibratedClassifierCV" in complaint(SelfDistilledClassifier(LinearSVC()), IRIS, KINDS)
    assert "no lower bound" in complaint(SelfDistilledClassifier(GaussianNB(), xi=1.5), IRIS, KINDS)
    assert "'auto'" in complaint(SelfDistilledRegressor(Ridge(), xi="some"), X, Y)
    assert "generations" in complaint(SelfDistilledRegressor(Ridge(), generations=0), X, Y)
    assert "audit is" in complaint(SelfDistilledRegressor(Ridge(), audit="maybe"), X, Y)
    assert "audit_folds" in complaint(SelfDistilledRegressor(Ridge(), audit_folds=1), X, Y)
    assert "peers" in complaint(SelfDistilledRegressor(Ridge(), peers=[]), X, Y)
    said = complaint(SelfDistilledRegressor(Ridge(), selection=0.5), X[:50], Y[:50], X_unlabeled=X[50:])
    assert "selection" in said


def test_too_few_rows_are_not_trusted() -> None:
    model = SelfDistilledRegressor(Ridge(), xi=0.5).fit(X[:6], Y[:6])
    assert model.generation_ == 0
    assert "too few rows" in model.report()


def test_classes_missing_from_a_model_have_probability_zero() -> None:
    model = DecisionTreeClassifier().fit(IRIS[:100], KINDS[:100])
    said = ClassTargets(np.arange(3)).predict(model, IRIS)
    assert said.shape == (150, 3)
    assert (said[:, 2] == 0).all()


# ---- rows without a label in y ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SelfDistilledClassifier, SelfTrainedClassifier])
@pytest.mark.parametrize(
    ("names", "mark"),
    [
        ((0, 1), -1),
        ((0, 1), np.nan),
        (("no", "yes"), "-1"),
        (("no", "yes"), -1),
        (("no", "yes"), None),
        ((0, 1), pd.NA),
    ],
)
def test_marked_rows_are_unlabelled_rows(kind: Any, names: Any, mark: Any) -> None:
    """The same model as with the rows given apart."""
    rows, labelled = IRIS[50:], np.arange(100) % 3 == 0
    truth = np.array(names)[KINDS[50:] - 1]
    y: Any = truth.astype(object) if isinstance(names[0], str) != isinstance(mark, str) or mark is pd.NA else truth
    y = y.astype(float) if isinstance(mark, float) and not isinstance(names[0], str) else y.copy()
    y[~labelled] = mark
    learner = LogisticRegression()
    model = kind(learner, random_state=0).fit(rows, y)
    apart = kind(learner, random_state=0).fit(rows[labelled], truth[labelled], X_unlabeled=rows[~labelled])
    assert model.classes_.tolist() == list(names)
    assert (model.predict_proba(rows) == apart.predict_proba(rows)).all()
    weights = np.ones(100)
    weights[[0, 3]] = 0
    assert len(kind(learner, random_state=0).fit(rows, y, sample_weight=weights).predict(rows)) == 100


def test_one_argument_decides_whether_a_mark_is_a_class() -> None:
    rows, y = IRIS, KINDS - 1
    assert SelfDistilledClassifier(GaussianNB()).fit(rows, y).classes_.tolist() == [0, 1]
    assert SelfDistilledClassifier(GaussianNB(), unlabelled=None).fit(rows, y).classes_.tolist() == [-1, 0, 1]
    assert SelfDistilledClassifier(GaussianNB(), unlabelled=1).fit(rows, y).classes_.tolist() == [-1, 0]
    two = np.where(KINDS == 0, -1, 1)
    assert SelfDistilledClassifier(GaussianNB()).fit(rows, two).classes_.tolist() == [-1, 1]
    words = np.array(["?", "a", "b"])[KINDS]
    assert SelfDistilledClassifier(GaussianNB(), unlabelled="?").fit(rows, words).classes_.tolist() == ["a", "b"]
    names = ClassNames(SelfTrainedClassifier(GaussianNB())).fit(rows, np.array(["-1", "a", "b"])[KINDS])
    assert names.classes_.tolist() == ["a", "b"]
    assert set(names.predict(rows)) == {"a", "b"}


def test_values_that_are_missing_are_unlabelled_rows() -> None:
    y = Y.copy()
    y[100:] = np.nan
    for kind in (SelfDistilledRegressor, PeerTaughtRegressor):
        model = kind(Ridge(), random_state=0).fit(X[:300], y[:300])
        apart = kind(Ridge(), random_state=0).fit(X[:100], Y[:100], X_unlabeled=X[100:300])
        assert (model.predict(X) == apart.predict(X)).all()
    objects = np.where(np.isnan(y), None, y)
    assert len(SelfDistilledRegressor(Ridge()).fit(X[:300], objects[:300]).predict(X)) == len(X)


def test_labels_that_cannot_be_used_get_one_line() -> None:
    for kind in (SelfDistilledClassifier(GaussianNB()), NetworkClassifier(steps=1)):
        assert "mixes" in complaint(kind, IRIS, np.array([*KINDS[:-1], "x"], dtype=object))
    assert "none of 150 rows has a label" in complaint(SelfTrainedClassifier(GaussianNB()), IRIS, np.full(150, -1))
    gaps = np.where(np.arange(150) == 7, np.nan, KINDS)
    assert "no label in row 7" in complaint(NetworkClassifier(steps=1), IRIS, gaps)
    assert "no label in row 7" in complaint(NetworkClassifier(steps=1), IRIS, gaps.astype(object))
    assert "none of 442 rows has a label" in complaint(SelfDistilledRegressor(Ridge()), X, np.full(442, np.nan))


def test_a_column_of_numbers_with_a_few_texts_is_refused_by_name() -> None:
    """Each number would be a category of its own, and nobody would know."""
    cells = pd.DataFrame({"a": IRIS[:, 0], "b": IRIS[:, 1].astype(object)})
    cells.loc[5, "b"] = "Total"
    forms = {"pandas": cells, "text": cells.astype({"b": str})}
    polars = pytest.importorskip("polars")
    forms["polars"] = polars.DataFrame({"a": IRIS[:, 0], "b": cells["b"].astype(str).to_list()})
    for frame in forms.values():
        for kind in (SelfDistilledClassifier(), SelfTrainedClassifier(), SelfDistilledClassifier(GaussianNB())):
            assert "column 'b' of X has text in row 5 (from 0), 'Total'" in complaint(kind, frame, KINDS)
    named = cells.assign(b=cells["b"].astype(str).astype("category"))
    read = cells.assign(b=pd.to_numeric(cells["b"], errors="coerce"))
    marked = forms["polars"].with_columns(polars.col("b").cast(polars.Categorical))
    for frame in (named, read, marked):
        assert SelfDistilledClassifier(generations=1).fit(frame, KINDS).score(frame, KINDS) > 0.5
    assert "y has 'Total' in row 5 (from 0)" in complaint(SelfDistilledRegressor(Ridge()), IRIS, cells["b"])


def test_an_error_of_a_learner_names_the_columns() -> None:
    frame = pd.DataFrame({"a": IRIS[:, 0], "kind": ["x", "y", None] * 50, "gap": [np.nan, 1.0] * 75})
    told = complaint(SelfDistilledClassifier(GaussianNB()), frame, KINDS)
    assert "columns with text: 'kind'; with empty cells: 'kind', 'gap'; leave them out" in told
    fitted = SelfDistilledClassifier(GaussianNB()).fit(frame[["a"]], KINDS)
    with pytest.raises(ValueError, match="columns with text: 'a'"):
        fitted.predict(pd.DataFrame({"a": ["oops", 1.0]}))
    nested = SelfDistilledClassifier(SelfDistilledClassifier(GaussianNB()), audit="off", xi=0.5, generations=1)
    assert complaint(nested, frame, KINDS).count("columns with text") == 1
    assert "take an estimator that reads them" in complaint(SelfDistilledClassifier(GaussianNB()), ["x"] * 150, KINDS)


@pytest.mark.parametrize("form", [list, pd.Series, lambda texts: np.array(texts, dtype=object), np.array])
def test_texts_go_into_estimators_over_text_pipelines(form: Any) -> None:
    """As scikit-learn takes them: a list, a series or an array of strings."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(["good", "bad", "film", "plot"], 5)) for _ in range(80)]
    y = np.array([text.count("good") > text.count("bad") for text in texts])
    learner = make_pipeline(TfidfVectorizer(), LogisticRegression())
    for estimator in (SelfTrainedClassifier, SelfDistilledClassifier):
        model = estimator(learner, random_state=0).fit(form(texts[:60]), y[:60], X_unlabeled=form(texts[60:]))
        assert model.score(form(texts), y) > 0.8
        assert model.predict_proba(form(texts)).shape == (80, 2)


def test_what_is_no_text_among_texts_is_named() -> None:
    with pytest.raises(ValueError, match=r"row 1 \(from 0\) is None"):
        SelfTrainedClassifier(LogisticRegression()).fit(["a", None] * 9, [0, 1] * 9)
    with pytest.raises(ValueError, match="give an estimator that reads them"):
        SelfTrainedClassifier().fit(["a", "b"] * 9, [0, 1] * 9)
