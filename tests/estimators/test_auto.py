"""auto() for tables: stacks and students against plain references, the guard, label errors, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.optimize import minimize
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.tree import DecisionTreeRegressor

from selfdistill.estimators import AutoClassifier, AutoRegressor, load, save
from selfdistill.estimators.auto import BOTH, CORRECTED, STACK, STUDENT
from selfdistill.estimators.base_learners import ALONE
from selfdistill.estimators.io import file_size
from selfdistill.estimators.stacking import PRIOR_ROWS, Stack, stack_weights
from selfdistill.estimators.students import LogProbabilityClassifier, student_of

X, Y = load_diabetes(return_X_y=True)


def test_weights_minimise_the_penalised_error() -> None:
    """A general optimiser on the simplex finds no better ones."""
    random = np.random.default_rng(0)
    y = random.normal(size=60)
    p = np.stack([y + random.normal(0, s, 60) for s in (0.3, 0.5, 2.0)])
    w, spread = stack_weights(p, y), p.std()

    def loss(v: Any) -> float:
        return float(((v @ p - y) ** 2).sum() + PRIOR_ROWS * spread**2 * ((v - 1 / 3) ** 2).sum())

    best = minimize(
        loss, np.full(3, 1 / 3), bounds=[(0, 1)] * 3, constraints={"type": "eq", "fun": lambda v: v.sum() - 1}
    )
    assert w == pytest.approx(best.x, abs=2e-3)
    assert loss(w) <= best.fun * (1 + 1e-6)
    assert stack_weights(p, y, prior_rows=1e9) == pytest.approx(np.full(3, 1 / 3), abs=1e-6)


def test_a_stack_is_the_weighted_mean_of_bounded_learners() -> None:
    members = [LinearRegression().fit(X, Y), DecisionTreeRegressor(max_depth=2).fit(X, Y)]
    stack = Stack(members, [0.25, 0.75], (100.0, 200.0))
    by_hand = 0.25 * np.clip(members[0].predict(X), 100, 200) + 0.75 * np.clip(members[1].predict(X), 100, 200)
    assert stack.predict(X) == pytest.approx(by_hand)
    iris, kinds = load_iris(return_X_y=True)
    two = LogisticRegression(max_iter=500).fit(iris[kinds > 0], kinds[kinds > 0])  # it has not seen class 0
    of_classes = Stack([two, RandomForestClassifier(5, random_state=0).fit(iris, kinds)], [0.5, 0.5], None, [0, 1, 2])
    assert of_classes.predict_proba(iris).sum(axis=1) == pytest.approx(1.0)
    assert of_classes.predict_proba(iris)[0, 0] == pytest.approx(0.5, abs=0.1)


def test_a_student_learns_log_probabilities() -> None:
    P = np.random.default_rng(0).dirichlet(np.ones(3), size=40)
    rows = np.arange(40.0)[:, None]
    student = LogProbabilityClassifier(DecisionTreeRegressor()).fit(rows, P, classes=["a", "b", "c"])
    clipped = np.clip(P, 0.01, None)
    assert student.predict_proba(rows) == pytest.approx(clipped / clipped.sum(axis=1, keepdims=True))
    small = student_of(HistGradientBoostingRegressor(max_iter=7), False, 100)
    assert (small.max_iter, small.max_leaf_nodes) == (7, 15)
    assert student_of(HistGradientBoostingRegressor(max_leaf_nodes=9), False, 100).max_leaf_nodes == 9, "as asked"
    assert student_of(HistGradientBoostingRegressor(), False, 10**6).max_leaf_nodes == 31


def test_few_labels_of_values(tmp_path: Path) -> None:
    model = AutoRegressor(random_state=0).fit(X[:60], Y[:60], X_unlabeled=X[60:300])
    alone = model.alone_.predict(X[300:])
    predicted = {"alone": alone, "product": model.predict(X[300:]), "student": model.student_.predict(X[300:])}
    errors = {name: np.sqrt(((one - Y[300:]) ** 2).mean()) for name, one in predicted.items()}
    assert errors["product"] < 0.97 * errors["alone"]
    assert errors["student"] < 0.97 * errors["alone"]
    names = [row["name"] for row in model.candidates_]
    assert names[0] == ALONE
    assert names[-3:] == [STACK, STUDENT, BOTH]
    assert "lower than that of the learner alone" in model.report()
    low, high = model.predict_interval(X[300:])
    assert 0.8 < ((low <= Y[300:]) & (Y[300:] <= high)).mean() < 1.0
    before, size = model.predict(X), file_size(model)
    model.forget()
    assert file_size(model) < size
    save(model, tmp_path / "model.skops")
    assert (load(tmp_path / "model.skops").predict(X) == before).all()


def test_enough_rows_audit_the_student() -> None:
    model = AutoRegressor(Ridge(), learners={"tree": DecisionTreeRegressor(max_depth=4)}, random_state=0).fit(X, Y)
    assert all(row["score"] is not None for row in model.candidates_)
    assert model.history_[1]["decision"] is not None


def test_where_nothing_helps_the_learner_alone_is_handed_over() -> None:
    y = X @ np.arange(10.0)
    model = AutoRegressor(LinearRegression(), random_state=0).fit(X[:80], y[:80], X_unlabeled=X[80:200])
    assert model.generation_ == 0
    assert model.report().startswith("nothing helps")
    assert model.predict(X[200:]) == pytest.approx(y[200:])
    tiny = AutoRegressor(Ridge(), random_state=0).fit(X[:6], Y[:6])
    assert tiny.report().startswith("nothing was tried: 6 labelled rows")


def test_the_only_row_of_a_category_does_not_teach_that_a_tenth_of_all_rows_are_extreme() -> None:
    """No fold shows it: the row is in the one that is held out."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame({"size": random.normal(size=900), "kind": pd.Categorical(random.choice(list("abcd"), 900))})
    rows.loc[100:, "kind"] = np.where(random.random(800) < 0.12, "d", rows["kind"][100:])
    rows.loc[rows.index[:80][rows["kind"][:80] == "d"], "kind"] = "a"
    rows.loc[0, "kind"] = "d"
    y = rows["size"].to_numpy() + random.normal(0, 0.2, 900)
    y[0] = 80.0
    model = AutoRegressor(random_state=0).fit(rows[:80], y[:80], X_unlabeled=rows[80:400])
    errors = [np.sqrt(((one.predict(rows[400:]) - y[400:]) ** 2).mean()) for one in (model, model.alone_)]
    assert errors[0] <= 1.2 * errors[1]
    coded = rows.assign(kind=np.where(rows["kind"] == "d", 1.0, 0.0))  # of a number no learner knows that it is rare
    model = AutoRegressor(random_state=0).fit(coded[:80], y[:80], X_unlabeled=coded[80:400])
    errors = [np.sqrt(((one.predict(coded[400:]) - y[400:]) ** 2).mean()) for one in (model, model.alone_)]
    assert errors[0] <= 1.2 * errors[1]
    assert "of the unlabelled rows" in model.report()


def test_a_learner_that_contradicts_the_others_on_unlabelled_rows_is_refused() -> None:
    class Far(LinearRegression):  # type: ignore[misc]
        """It takes rows beyond 0.1 of the first column, where no label is, for extreme ones."""

        def predict(self, X: Any) -> Any:
            return super().predict(X) + 1e4 * (X[:, 0] > 0.1)

    X2 = X.copy()
    X2[:80, 0] = np.minimum(X2[:80, 0], 0.05)
    X2[80:200:2, 0] = 0.2
    more = {"far": Far(), "tree": DecisionTreeRegressor(max_depth=3), "line": LinearRegression()}
    model = AutoRegressor(Ridge(1e-3), learners=more, random_state=0).fit(X2[:80], Y[:80], X_unlabeled=X2[80:200])
    assert "far contradicts the others grossly on 50 % of the unlabelled rows" in model.report()
    assert next(row for row in model.candidates_ if row["name"] == "far")["outcome"] == "refused"


def test_label_errors_are_weighed_less_where_there_are_many() -> None:
    images, kinds = load_digits(return_X_y=True)
    images, random = images / 16.0, np.random.default_rng(0)
    wrong = np.where(random.random(200) < 0.3, (kinds[:200] + random.integers(1, 10, 200)) % 10, kinds[:200])
    more: dict[str, Any] = {"forest": RandomForestClassifier(60)}
    model = AutoClassifier(LogisticRegression(max_iter=200), learners=more, random_state=0, synthetic=0)
    model.fit(images[:200], wrong, X_unlabeled=images[200:600])
    names = [row["name"] for row in model.candidates_]
    assert CORRECTED in names
    scores = [(one.predict(images[600:]) == kinds[600:]).mean() for one in (model, model.alone_)]
    assert scores[0] > scores[1] + 0.05
    clean = AutoClassifier(LogisticRegression(max_iter=200), learners=more, random_state=0, synthetic=0)
    assert CORRECTED not in [row["name"] for row in clean.fit(images[:200], kinds[:200]).candidates_]


def test_equal_rows_are_no_copies_where_most_rows_have_one() -> None:
    """Four kinds of rows: a fold that holds a kind out would judge how well others guess it."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 2, size=(200, 2)).astype(float)
    y = (rows[:, 0] != rows[:, 1]).astype(int)
    model = AutoClassifier(random_state=0).fit(rows, y)
    assert model.candidates_[0]["score"] == 1.0
    assert (model.predict(rows) == y).all()


def test_groups_and_times_are_kept_apart() -> None:
    groups = np.arange(120) // 4
    leaky = np.column_stack([groups, X[:120]])
    by_group = AutoRegressor(random_state=0, product="stack").fit(leaky, 100.0 * groups, groups=groups)
    by_row = AutoRegressor(random_state=0, product="stack").fit(leaky, 100.0 * groups)
    assert by_group.candidates_[1]["score"] > 1.5 * by_row.candidates_[1]["score"], "a forest is not judged out of bag"
    in_time = AutoRegressor(Ridge(), random_state=0).fit(X[:120], Y[:120], time=np.arange(120.0))
    assert in_time.residuals_ is not None
    assert len(in_time.residuals_) == 24


def test_the_trainings_of_the_product_are_those_that_it_came_from() -> None:
    counts = {}
    for product in ("stack", "single"):
        model = AutoRegressor(Ridge(), random_state=0, product=product).fit(X[:60], Y[:60], X_unlabeled=X[60:200])
        assert model.product_ in ("stack", "student")
        counts[product] = model.trainings_ - len(model.teacher_.members)
    assert counts == {"stack": 0, "single": 1}
    assert AutoRegressor(Ridge(), random_state=0).fit(X[:6], Y[:6]).trainings_ == 1


def test_what_cannot_be_tried_is_refused_in_a_line() -> None:
    with pytest.raises(ValueError, match="product is one of best, single, stack"):
        AutoRegressor(product="mean").fit(X, Y)
    with pytest.raises(TypeError, match="dense data is required"):
        AutoRegressor(Ridge()).fit(sparse.csr_matrix(X), Y)
    with pytest.raises(ValueError, match="X has texts; give a table"):
        AutoClassifier(LogisticRegression()).fit(["good", "bad"] * 20, [0, 1] * 20)
    with pytest.raises(ValueError, match="synthetic is a number of rows"):
        AutoRegressor(synthetic=-1).fit(X, Y)
    weights = np.ones(100)
    weights[50:] = 0.0
    model = AutoRegressor(random_state=0).fit(X[:100], Y[:100], sample_weight=weights)
    assert "neighbours" not in [row["name"] for row in model.candidates_], "they take no weights"
