"""T1 to T4, T6 to T8, T19: repeated ridge against scikit-learn's, fitted round by round."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from selfdistill import theory
from selfdistill.errors import DataError
from tests.theory.straight import data, ridge, taught

LAMS = (0.1, 2.0, 50.0)


def close(found, wanted, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance * float(np.abs(wanted).max()))


@pytest.mark.parametrize("lam", LAMS)
def test_t01_the_power_law_is_ridge_fitted_to_its_own_predictions(lam):
    X, y, _ = data()
    fit = y
    for k in range(6):
        fit = X @ ridge(X, fit, lam)
        close(theory.power_law(X, y, lam, k), fit)
    close(theory.ridge(X, y, lam), ridge(X, y, lam))


def test_t02_pure_self_distillation_ends_at_zero_and_the_rule_fires_when_the_law_says():
    X, y, _ = data()
    lam, fit, norms = 50.0, y, []
    for _ in range(700):
        fit = X @ ridge(X, fit, lam)
        norms.append(float(np.linalg.norm(fit)))
    assert norms[200] < norms[0] / 2
    for share in (0.5, 0.1, 1e-3):
        fired = theory.collapsed_after(norms, share)
        assert fired == theory.rounds_to_collapse(X, y, lam, share)
        assert fired is not None
        assert norms[fired] <= share * norms[0] < norms[fired - 1]
    assert norms[-1] < 1e-3 * norms[0]


def test_t02_the_rule_is_silent_where_labels_stay_in_the_target():
    X, y, _ = data()
    norms = [float(np.linalg.norm(X @ taught(X, y, 50.0, [0.7] * k))) for k in range(40)]
    assert theory.collapsed_after(norms, 0.5) is None
    assert theory.collapsed_after([1.0, float("nan")]) == 1, "what is not a number has collapsed"
    with pytest.raises(DataError, match="first norm"):
        theory.collapsed_after([0.0, 1.0])


@pytest.mark.parametrize("lam", LAMS)
def test_t03_degrees_of_freedom_are_traces_of_powers_and_fall(lam):
    X, _, _ = data()
    H = np.stack([X @ ridge(X, row, lam) for row in np.eye(len(X))], axis=1)
    found = [theory.degrees_of_freedom(X, lam, k) for k in range(8)]
    power = np.eye(len(X))
    for value in found:
        power = power @ H
        assert value == pytest.approx(np.trace(power), rel=1e-8)
    assert all(now > later for now, later in pairwise(found))


@pytest.mark.parametrize("xi", [-0.8, 0.0, 0.5, 0.9])
def test_t04_a_constant_weight_ends_at_ridge_with_a_larger_penalty(xi):
    X, y, _ = data()
    for lam in LAMS:
        close(theory.fixed_point(X, y, lam, xi), ridge(X, y, lam / (1 - xi)))
        rounds = int(np.log(1e-12) / np.log(max(theory.contraction(X, lam, xi), 1e-9))) + 2
        close(theory.fixed_point(X, y, lam, xi), taught(X, y, lam, [xi] * rounds), 1e-7 if xi == 0.9 else 1e-8)
    with pytest.raises(DataError, match="no fixed point"):
        theory.fixed_point(X, y, 1.0, 1.0)
    with pytest.raises(DataError, match="move away"):
        theory.fixed_point(X, y, 1e-3, -50.0)
    with pytest.raises(DataError, match="move away"):
        theory.peers_fixed_point([[0.5]], [[0.5]], [3.0], -2.0)


def test_t06_several_steps_are_a_polynomial_and_its_numbers_tell_the_weights():
    X, y, _ = data()
    rng = np.random.default_rng(1)
    for k in (1, 2, 3, 4):
        xis = rng.uniform(-2, 2, k)
        b = theory.step_weights(xis)
        close(theory.stepped(X, y, 3.0, b), taught(X, y, 3.0, list(xis)))
        close(theory.step_imitation(b), xis)
    with pytest.raises(DataError, match="tail"):
        theory.step_imitation([0.5, -0.5])


@pytest.mark.parametrize("r", [1, 2, 3, 4])
def test_t07_as_many_steps_as_directions_reach_the_best_linear_method(r):
    """The students are fitted, on a design with known singular values; expectation over noise row by row."""
    rng = np.random.default_rng(r)
    s, a, noise, lam = np.linspace(1.0, 3.0, r), rng.normal(size=r), 1.69, 2.0
    X = np.linalg.qr(rng.normal(size=(9, r)))[0] * s
    xis = list(theory.step_imitation(theory.best_steps(s, a, noise, lam, r)))
    bias = X @ (taught(X, X @ a, lam, xis) - a)
    found = bias @ bias + noise * sum(float(((X @ taught(X, row, lam, xis)) ** 2).sum()) for row in np.eye(9))
    oracle = sum(min(v * v * (1 - w) ** 2 * q * q + w * w * noise for w in np.linspace(0, 1, 200_001))
                 for v, q in zip(s, a, strict=True))  # fmt: skip
    assert found == pytest.approx(oracle, rel=1e-6)
    assert theory.least_excess(s, a, noise) == pytest.approx(oracle, rel=1e-8)


def test_t08_equal_singular_values_leave_nothing_beyond_tuned_ridge():
    rng = np.random.default_rng(2)
    s, a, noise = np.full(3, 1.5), rng.normal(size=3), 0.9
    X = np.linalg.qr(rng.normal(size=(5, 3)))[0] * s

    def excess(lam: float, xis: list[float]) -> float:
        bias = X @ (taught(X, X @ a, lam, xis) - a)
        return float(bias @ bias) + noise * sum(float(((X @ taught(X, e, lam, xis)) ** 2).sum()) for e in np.eye(5))

    tuned = excess(theory.equal_values_penalty(1.5, a, noise), [])
    least = min(excess(lam, []) for lam in np.geomspace(0.1, 30, 120))
    assert least * (1 - 1e-3) < tuned <= least + 1e-12
    b = theory.best_steps(s, a, noise, 0.5, 1)
    assert excess(0.5, list(theory.step_imitation(b))) == pytest.approx(tuned, rel=1e-8)
    uneven = np.array([0.5, 1.5, 4.0])
    ridges = [
        theory.fixed_design_excess(uneven, a, noise, uneven**2 / (uneven**2 + x)) for x in np.geomspace(0.01, 100, 999)
    ]
    assert theory.least_excess(uneven, a, noise) < 0.999 * min(ridges), "with different values there is something"


def test_t06_held_out_rows_find_the_weights_that_a_search_finds():
    X, y, beta = data(3)
    rng = np.random.default_rng(4)
    X_v = rng.normal(size=(60, 5))
    y_v = X_v @ beta + rng.normal(size=60)
    pure = np.stack([X_v @ taught(X, y, 20.0, [1.0] * k) for k in range(3)])
    xis = theory.step_imitation(theory.fitted_weights(pure, y_v))

    def error(first: float, second: float) -> float:
        return float(((y_v - X_v @ taught(X, y, 20.0, [first, second])) ** 2).sum())

    best = error(*xis)
    assert best <= min(error(u, v) for u in np.linspace(-3, 3, 25) for v in np.linspace(-3, 3, 25)) + 1e-9
    assert best < error(0.0, 0.0)


def test_t19_equal_peers_are_self_distillation_and_different_ones_are_not():
    X, y, _ = data(5)
    lam, xi, other = 4.0, 0.6, X[:, :2]
    H = [np.stack([Z @ ridge(Z, row, lam) for row in np.eye(len(y))], axis=1) for Z in (X, other)]
    alone = X @ ridge(X, y, lam / (1 - xi))
    close(theory.peers_fixed_point(H[0], H[0], y, xi), alone)
    one, two = np.zeros(len(y)), np.zeros(len(y))
    for _ in range(200):
        one, two = H[0] @ (xi * two + (1 - xi) * y), H[1] @ (xi * one + (1 - xi) * y)
    close(theory.peers_fixed_point(H[0], H[1], y, xi), one)
    assert np.abs(one - alone).max() > 1e-2
