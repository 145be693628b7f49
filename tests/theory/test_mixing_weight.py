"""T5, T9 to T14: the weight of the teacher against searches over refitted students."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from selfdistill import theory
from selfdistill.errors import DataError
from tests.theory.straight import data, lowest, ridge, taught

LAMS = (0.5, 10.0, 200.0)


def vertex(error: Callable[[float], float]) -> float:
    """Of a parabola, from its values at -2, 0 and 2."""
    low, middle, high = error(-2.0), error(0.0), error(2.0)
    return (low - high) / (low - 2 * middle + high)


@pytest.mark.parametrize("lam", LAMS)
def test_t05_the_held_out_weight_is_the_best_of_a_grid_of_refitted_students(lam):
    X, y, beta = data(1)
    rng = np.random.default_rng(2)
    X_v = rng.normal(size=(50, 5))
    y_v = X_v @ beta + rng.normal(size=50)

    def error(xi: float) -> float:
        return float(((y_v - X_v @ taught(X, y, lam, [xi])) ** 2).sum())

    found = theory.held_out_weight(y_v, X_v @ ridge(X, y, lam), X_v @ taught(X, y, lam, [1.0]))
    grid = found + np.linspace(-1, 1, 2001) + 0.00025  # the best is not on it, and a quarter of a step off one point
    assert abs(grid[np.argmin([error(xi) for xi in grid])] - found) < 0.0005
    assert found == pytest.approx(vertex(error), rel=1e-8)
    with pytest.raises(DataError, match="distance"):
        theory.held_out_weight(y_v, y_v, y_v)


def expected(s, a, noise: float, lam: float, xi: float) -> float:
    """Expected squared error of fitted coefficients: noise enters linearly, so each row's is taken alone."""
    X = np.linalg.qr(np.random.default_rng(7).normal(size=(11, len(s))))[0] * s
    bias = taught(X, X @ a, lam, [xi]) - a
    return float(bias @ bias) + noise * sum(float((taught(X, e, lam, [xi]) ** 2).sum()) for e in np.eye(11))


S, A = np.array([0.5, 1.0, 2.0, 3.0]), np.array([1.0, -0.7, 0.4, 1.3])


@pytest.mark.parametrize("noise", [0.1, 1.69, 50.0])
def test_t09_the_noise_rule_is_the_argmin(noise):
    for lam in (0.5, 3.0):
        found = theory.noise_weight(S, A, noise, lam)
        assert found == pytest.approx(vertex(partial(expected, S, A, noise, lam)), rel=1e-8)
        searched = lowest(partial(theory.parameter_error, S, A, noise, lam), -20, 20)
        assert found == pytest.approx(searched, abs=1e-5)
        for xi in (-1.0, 0.0, 0.6, 2.0):
            assert theory.parameter_error(S, A, noise, lam, xi) == pytest.approx(
                expected(S, A, noise, lam, xi), rel=1e-8
            )


def test_t10_the_weight_grows_with_the_noise_through_zero_to_above_one():
    lam = 1.5
    turning = theory.turning_noise(S, A, lam)
    best = [vertex(partial(expected, S, A, v, lam)) for v in (0.0, 0.3 * turning, turning, 3 * turning, 1e11)]
    assert all(now < later for now, later in pairwise(best))
    assert best[1] < 0 < best[3]
    assert best[2] == pytest.approx(0, abs=1e-8)
    assert best[-1] == pytest.approx(theory.noise_weight_limit(S, lam), rel=1e-8)
    assert best[-1] > 1
    for value, penalty in ((0.3, 0.2), (2.0, 5.0)):
        limit = theory.noise_weight_limit([value], penalty)
        assert limit == pytest.approx((value**2 + penalty) / penalty, rel=1e-8)


class Risk:
    """A squared risk under some other distribution of inputs than the one trained on."""

    def __init__(self, seed: int) -> None:
        self.X, self.y, self.beta = data(seed)
        root = np.random.default_rng(seed + 100).normal(size=(5, 5))
        self.M = root @ root.T

    def of(self, beta) -> float:
        return float((beta - self.beta) @ self.M @ (beta - self.beta)) + 1.0

    def student(self, lam: float, xi: float) -> float:
        return self.of(taught(self.X, self.y, lam, [xi]))

    def slope(self, lam: float) -> float:
        """By the derivative of the inverse, solved."""
        G = self.X.T @ self.X + lam * np.eye(5)
        beta = np.linalg.solve(G, self.X.T @ self.y)
        return float(-2 * (beta - self.beta) @ self.M @ np.linalg.solve(G, beta))

    def distance(self, lam: float) -> float:
        gap = taught(self.X, self.y, lam, [1.0]) - ridge(self.X, self.y, lam)
        return float(gap @ self.M @ gap)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lam", LAMS)
def test_t11_the_best_weight_is_told_by_the_slope_and_has_its_opposite_sign(seed, lam):
    risk = Risk(seed)
    found = theory.risk_weight(risk.slope(lam), risk.distance(lam), lam)
    assert found == pytest.approx(vertex(lambda xi: risk.student(lam, xi)), rel=1e-7)
    assert found * risk.slope(lam) < 0
    teacher, student = (beta - risk.beta for beta in (ridge(risk.X, risk.y, lam), taught(risk.X, risk.y, lam, [1.0])))
    crossed = float(teacher @ risk.M @ student) + 1.0
    again = theory.weight_from_risks(risk.student(lam, 0.0), risk.student(lam, 1.0), crossed)
    assert again == pytest.approx(found, rel=1e-7)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lam", LAMS)
def test_t12_the_gain_is_that_of_the_best_refitted_student(seed, lam):
    risk = Risk(seed)
    best = vertex(lambda xi: risk.student(lam, xi))
    told = theory.risk_gain(risk.slope(lam), risk.distance(lam), lam)
    assert told == pytest.approx(risk.student(lam, 0.0) - risk.student(lam, best), abs=1e-8 * risk.student(lam, 0.0))
    assert told > 0


def test_t13_at_the_best_penalty_the_teacher_is_ignored():
    """On a design where the risk's minimum over lam is known from a search of the risk itself."""
    n, d, noise = 12, 3, 1.4
    rng = np.random.default_rng(8)
    X, beta = np.sqrt(n) * np.linalg.qr(rng.normal(size=(n, d)))[0], rng.normal(size=d)
    energy = float(beta @ beta)

    def excess(lam: float, xi: float) -> float:
        bias = taught(X, X @ beta, n * lam, [xi]) - beta
        return float(bias @ bias) + noise * sum(float((taught(X, e, n * lam, [xi]) ** 2).sum()) for e in np.eye(n))

    turning = theory.flat_turning(energy, d / n, noise)
    assert turning == pytest.approx(lowest(lambda lam: excess(lam, 0.0), 1e-3, 10.0, 40), abs=1e-6)
    assert vertex(lambda xi: excess(turning, xi)) == pytest.approx(0, abs=1e-8)
    assert theory.risk_weight(0.0, 1.0, turning) == 0
    for lam in (0.3 * turning, 4 * turning):
        found = theory.flat_weight(lam, energy, d / n, noise)
        assert found == pytest.approx(vertex(partial(excess, lam)), rel=1e-8)
        assert theory.flat_risk(lam, energy, d / n, noise) == pytest.approx(excess(lam, 0.0), rel=1e-8)
        assert (found > 0) == (lam < turning)


def test_t14_cross_validation_without_a_refit_finds_the_weight():
    """p = 400, n = 800: medians over data sets, against the best weight for the true coefficients."""
    rng, found, left, wanted = np.random.default_rng(9), [], [], []
    for _ in range(5):
        X, beta = rng.normal(size=(800, 400)), rng.normal(size=400) / 20
        y = X @ beta + 0.3 * rng.normal(size=800)
        G = X.T @ X + 300 * np.eye(400)
        teacher = np.linalg.solve(G, X.T @ y)
        student = np.linalg.solve(G, X.T @ (X @ teacher))
        wanted.append((beta - teacher) @ (student - teacher) / ((student - teacher) @ (student - teacher)))
        found.append(theory.gcv_weight(X, y, 300.0))
        left.append(theory.left_out_weight(X, y, 300.0))
    assert abs(np.median(found) - np.median(wanted)) < 0.3
    assert abs(np.median(left) - np.median(wanted)) < 0.15


def test_t14_left_out_errors_are_those_of_models_that_never_saw_the_row():
    X, y, _ = data(10, rows=14, dimension=4)

    def error(xi: float) -> float:
        kept = [np.arange(14) != i for i in range(14)]
        return sum(float((y[i] - X[i] @ taught(X[k], y[k], 3.0, [xi])) ** 2) for i, k in enumerate(kept))

    assert theory.left_out_weight(X, y, 3.0) == pytest.approx(vertex(error), rel=1e-8)
