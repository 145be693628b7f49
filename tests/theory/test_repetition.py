"""T15 to T18: what repetition does, against straight simulations with numpy's pinv and lstsq."""

from __future__ import annotations

import numpy as np
import pytest

from selfdistill import theory
from selfdistill.errors import DataError
from tests.theory.straight import Array

STRENGTH, NOISE, ROUNDS = 20.0, 4.0, 6


@pytest.fixture(scope="module")
def simulated():
    """Excess risk and held-out error of each round, (runs, rounds + 1), n = 300 of d = 600."""
    rng, n, d = np.random.default_rng(3), 300, 600
    scale = np.ones(d)
    scale[0] = STRENGTH**0.5
    truth = np.eye(d)[0]
    risks, errors = [], []
    for _ in range(40):
        X_v = rng.normal(size=(1500, d)) * scale
        y_v = X_v @ truth + NOISE**0.5 * rng.normal(size=1500)
        beta, risk, error = np.stack([truth, 0 * truth]), [], []  # what comes of signal and of noise
        for t in range(ROUNDS + 1):
            X = rng.normal(size=(n, d)) * scale
            labels = [X @ part for part in beta] if t else [X @ truth, NOISE**0.5 * rng.normal(size=n)]
            lower = np.linalg.cholesky(X @ X.T)
            beta = np.stack([X.T @ np.linalg.solve(lower.T, np.linalg.solve(lower, y)) for y in labels])
            # the mean over the noise and its opposite, which are as likely: half of the luck of the draw
            risk.append(float(np.mean([(((beta[0] + s * beta[1] - truth) * scale) ** 2).sum() for s in (1, -1)])))
            error.append(float(((y_v - X_v @ beta.sum(0)) ** 2).mean()))
        risks.append(risk)
        errors.append(error)
    return np.array(risks), np.array(errors)


def test_t15_the_risk_is_forgetting_and_noise_with_the_same_best_round(simulated):
    found = simulated[0].mean(axis=0)
    told = theory.spike_risks(ROUNDS, STRENGTH, 1.0, 1.0, NOISE)
    np.testing.assert_allclose(told, found, rtol=0.08)
    assert theory.stopping_time(STRENGTH, 1.0, 1.0, NOISE) == found.argmin() == 3


def test_t15_the_sum_solves_the_recursion_and_without_a_spike_there_is_no_u():
    for s, tau, noise in ((20.0, 1.0, 4.0), (3.0, 3.0, 1.0), (0.5, 2.0, 0.0)):  # (3, 3) has rho^2 = q
        left = noise / tau * (1 + tau)
        for t in range(15):
            left = left / (1 + tau) + tau * 2.0 * s ** (2 * t + 1) / (s + tau) ** (2 * t + 2)
            assert theory.spike_noise(t, s, 2.0, tau, noise) == pytest.approx(left, rel=1e-8)
            forgotten = 2.0 * s * (1 - (s / (s + tau)) ** (t + 1)) ** 2
            assert theory.spike_forgetting(t, s, 2.0, tau) == pytest.approx(forgotten, rel=1e-8)
    for noise in (0.0, 0.3, 5.0):
        moves = np.diff(theory.spike_risks(12, 1.0, 1.0, 0.7, noise))
        assert (moves > 0).all() or (moves < 0).all()


def test_t16_held_out_errors_stop_within_a_round_of_the_best(simulated):
    risks, errors = simulated
    best = int(risks.mean(axis=0).argmin())
    stops = [theory.first_rise(list(error)) for error in errors]
    assert abs(theory.first_rise(list(errors.mean(axis=0))) - best) <= 1
    assert np.mean([abs(stop - best) <= 1 for stop in stops]) >= 0.8


@pytest.fixture(scope="module")
def generations():
    """Mean squared error of seven generations, replacing and accumulating, T = 60 rows of d = 10, noise 2."""
    rng, total = np.random.default_rng(5), {False: np.zeros(7), True: np.zeros(7)}
    for keep, errors in total.items():
        for _ in range(1500):
            beta: Array = np.zeros(10)
            inputs, labels = np.empty((0, 10)), np.empty(0)
            for n in range(7):
                X = rng.normal(size=(60, 10))
                y = X @ beta + 2.0**0.5 * rng.normal(size=60)
                kept = keep * len(labels)
                inputs, labels = np.vstack([inputs[:kept], X]), np.append(labels[:kept], y)
                beta = np.asarray(np.linalg.solve(inputs.T @ inputs, inputs.T @ labels))
                errors[n] += float(beta @ beta) / 1500
    return total


def test_t17_replacing_grows_by_one_generations_error_each_time(generations):
    once = 2.0 * 10 / 49
    assert np.polyfit(range(1, 8), generations[False] / once, 1)[0] == pytest.approx(1.0, abs=0.05)
    told = [theory.replaced_error(n, 60, 10, 2.0) for n in range(1, 8)]
    np.testing.assert_allclose(told, generations[False], rtol=0.05)


def test_t17_accumulating_stays_below_its_bound(generations):
    told = [theory.accumulated_error(n, 60, 10, 2.0) for n in range(1, 8)]
    np.testing.assert_allclose(told, generations[True], rtol=0.05)
    bounds = [theory.accumulated_bound(n, 60, 10, 2.0) for n in range(1, 8)]
    assert all(error <= bound * (1 + 1e-12) for error, bound in zip(told, bounds, strict=True))
    assert (generations[True] < 1.05 * np.array(bounds)).all()
    for n in (1, 10, 1000):
        assert theory.accumulated_bound(n, 60, 10, 2.0) < theory.accumulated_bound(None, 60, 10, 2.0)
    assert theory.accumulated_bound(100_000, 60, 10, 2.0) == pytest.approx(np.pi**2 / 6 * 20 / 49, rel=1e-4)
    with pytest.raises(DataError, match="rows"):
        theory.accumulated_error(1, 11, 10, 1.0)


def test_t18_the_best_weight_of_real_labels_is_the_golden_ratio():
    def settled(w: float) -> float:
        v = 1.0
        for _ in range(200):
            v = w * w + (1 - w) * (1 - w) * (v + 1)
        return v

    grid = np.linspace(0.5, 0.7, 2001)
    found = [settled(w) for w in grid]
    assert grid[int(np.argmin(found))] == pytest.approx(theory.GOLDEN, abs=1e-4)
    assert settled(theory.GOLDEN) == pytest.approx(theory.GOLDEN, rel=1e-8)
    golden = theory.GOLDEN
    assert 1 / golden == pytest.approx(1 + golden, rel=1e-12)
    for w in (0.2, 0.618, 1.0, 1.5):
        assert theory.mixing_variance(w, 3.0) == pytest.approx(3.0 * settled(w), rel=1e-8)
    with pytest.raises(DataError, match="without bound"):
        theory.mixing_variance(2.0)
