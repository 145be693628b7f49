"""The trust weight: closed forms against brute force, and a guard that knows when to leave distillation alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.tables import joint_choice
from selfdistill.estimators import mixing_weight
from selfdistill.estimators.tables import RowWeights


def ridge_matrix(X: Any, penalty: float) -> Any:
    """Ridge regression with an intercept, by the normal equations."""
    Z = X - X.mean(0)
    return Z @ np.linalg.solve(Z.T @ Z + penalty * np.eye(X.shape[1]), Z.T) + 1 / len(X)


@pytest.fixture
def data() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    X = random.normal(size=(60, 8))
    return X, X @ random.normal(size=8) + random.normal(size=60)


def test_a_linear_learner_is_known_by_its_matrix(data: tuple[Any, Any]) -> None:
    X, y = data
    found = mixing_weight.smoother(Ridge(3.0), X, y)
    assert found == pytest.approx(ridge_matrix(X, 3.0), abs=1e-10)
    assert mixing_weight.smoother(make_pipeline(StandardScaler(), Ridge()), X, y) is not None
    assert mixing_weight.smoother(KernelRidge(kernel="rbf"), X, y) is not None
    assert mixing_weight.smoother(RandomForestRegressor(5, random_state=0), X, y) is None


def test_held_out_xi_is_the_minimum_of_a_search(data: tuple[Any, Any]) -> None:
    random = np.random.default_rng(1)
    y, teacher, student = random.normal(size=(3, 40))
    grid = np.linspace(-3, 3, 600_001)
    step = student - teacher
    errors = y - teacher
    risks = (errors @ errors) - 2 * grid * (errors @ step) + grid**2 * (step @ step)
    assert mixing_weight.held_out_weight(y, teacher, student).raw == pytest.approx(grid[risks.argmin()], abs=1e-5)


@pytest.mark.parametrize("by", ["gcv", "loo"])
def test_closed_form_is_the_minimum_of_the_criterion(data: tuple[Any, Any], by: str) -> None:
    X, y = data
    H = ridge_matrix(X, 30.0)
    n = len(y)

    def risk(xi: float) -> float:
        total = 0.0
        left = [1 - np.trace(H @ H if k else H) / n for k in (0, 1)]
        for i in range(n):
            loo = [1 - H[i, i], 1 - (H @ H)[i, i]]
            scale = left if by == "gcv" else loo
            first, second = (y - H @ y)[i] / scale[0], (y - H @ H @ y)[i] / scale[1]
            total += ((1 - xi) * first + xi * second) ** 2
        return total

    grid = np.linspace(-10, 10, 2001)
    assert mixing_weight.closed_form_weight(H, y, by).raw == pytest.approx(
        grid[np.argmin([risk(x) for x in grid])], abs=0.006
    )


def test_leave_one_out_of_ridge_is_exact(data: tuple[Any, Any]) -> None:
    X, y = data
    brute = [y[i] - Ridge(2.0).fit(np.delete(X, i, 0), np.delete(y, i)).predict(X[i : i + 1])[0] for i in range(len(y))]
    Z = X - X.mean(0)
    no_intercept = Z @ np.linalg.solve(Z.T @ Z + 2.0 * np.eye(8), Z.T)
    centred = [
        y[i] - Ridge(2.0, fit_intercept=False).fit(np.delete(Z, i, 0), np.delete(y, i)).predict(Z[i : i + 1])[0]
        for i in range(len(y))
    ]
    assert mixing_weight.left_out_residuals(no_intercept, y, "loo") == pytest.approx(centred, abs=1e-9)
    assert np.corrcoef(mixing_weight.left_out_residuals(ridge_matrix(X, 2.0), y, "loo"), brute)[0, 1] > 0.999


def test_a_row_of_weight_two_is_the_row_twice() -> None:
    random = np.random.default_rng(2)
    y, teacher, student = random.normal(size=(3, 30))
    teacher, student = y + 0.3 * teacher, y + 0.2 * student + 0.5
    w = np.ones(30)
    w[:10] = 2.0
    again = np.concatenate([np.arange(30), np.arange(10)])
    weighted = mixing_weight.held_out_weight(y, teacher, student, RowWeights(w, np.arange(30)))
    repeated = mixing_weight.held_out_weight(y[again], teacher[again], student[again], RowWeights(None, again))
    assert weighted == pytest.approx(repeated, rel=1e-9)


def test_steps_reach_the_weights_of_a_direct_solve(data: tuple[Any, Any]) -> None:
    """The xis, run as a chain, give the combination of powers that the programme chose."""
    X, y = data
    H = ridge_matrix(X, 60.0)
    xis = mixing_weight.step_weights(H, y, 3)
    assert len(xis) == 3
    f = H @ y
    for xi in xis:
        f = H @ (xi * f + (1 - xi) * y)
    b = np.array([0.3, -0.2, 0.4])
    chain = H @ y
    for xi in mixing_weight.weights_to_xis(b):
        chain = H @ (xi * chain + (1 - xi) * y)
    powers = [H, H @ H, H @ H @ H, H @ H @ H @ H]
    assert chain == pytest.approx(sum(w * (P @ y) for w, P in zip([1 - b.sum(), *b], powers, strict=True)), abs=1e-10)
    risk = np.mean((y - f) ** 2)
    assert risk < np.mean((y - H @ y) ** 2)  # the penalty is far too large: stepping back must fit better


def test_noise_is_not_distilled() -> None:
    """Teacher and student differ by noise only: the guard answers 0 in nearly all draws, and never far from it."""
    xis = []
    for seed in range(200):
        random = np.random.default_rng(seed)
        y = random.normal(size=80)
        teacher = 0.1 * random.normal(size=80)
        xis.append(mixing_weight.held_out_weight(y, teacher, teacher + 0.1 * random.normal(size=80)).xi)
    assert np.mean(np.array(xis) == 0.0) >= 0.9


def test_on_diabetes_xi_repairs_a_penalty_ten_times_too_large_and_leaves_a_tuned_one_alone() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    random = np.random.default_rng(0)
    repaired, tuned = list[float](), list[float]()
    for _ in range(10):
        order = random.permutation(len(y))
        train, test = order[:200], order[200:350]
        grid = {p: ridge_matrix(X[train], p * 200) for p in np.logspace(-3, 2, 21)}
        best = min(grid, key=lambda p: float(np.mean(mixing_weight.left_out_residuals(grid[p], y[train]) ** 2)))
        for penalty, gains in ((10.0, repaired), (best, tuned)):
            model = Ridge(penalty * 200).fit(X[train], y[train])
            xi = mixing_weight.closed_form_weight(ridge_matrix(X[train], penalty * 200), y[train]).xi
            taught = Ridge(penalty * 200).fit(X[train], xi * model.predict(X[train]) + (1 - xi) * y[train])
            before, after = (np.mean((m.predict(X[test]) - y[test]) ** 2) for m in (model, taught))
            gains.append(float(1 - after / before))
    assert np.mean(repaired) > 0.2
    assert min(tuned) > -0.005


def test_the_joint_choice_stays_where_plain_validation_is() -> None:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)[:200]
    smoothers = {p: ridge_matrix(X, p * 200) for p in np.logspace(-4, 2, 13)}
    best, xi = joint_choice(smoothers, y[:200])
    usual = min(smoothers, key=lambda p: float(np.mean(mixing_weight.left_out_residuals(smoothers[p], y[:200]) ** 2)))
    assert best == usual or xi != 0.0
    assert joint_choice({10.0: smoothers[max(smoothers)] * 0 + ridge_matrix(X, 2000.0)}, y[:200])[1] < 0


def test_least_squares_has_nothing_to_distil(data: tuple[Any, Any]) -> None:
    X, y = data
    H = mixing_weight.smoother(LinearRegression(), X, y)
    assert H is not None
    assert mixing_weight.closed_form_weight(H, y).xi == 0.0  # H H = H: the student says what the teacher said
