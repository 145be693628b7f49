"""Simulations of the closed forms: round by round, with linear solves and random numbers.

Nothing here uses a closed form. Random numbers come from the generator that is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .arrays import Array


def solved(X: Array, y: Array, lam: float) -> Array:
    """Ridge coefficients (d,) from the normal equations.

    >>> solved(np.ones((2, 1)), np.array([1.0, 3.0]), 2.0)
    array([1.])
    """
    return np.asarray(np.linalg.solve(X.T @ X + lam * np.eye(X.shape[1]), X.T @ y))


def distilled(X: Array, y: Array, lam: float, xis: Sequence[float]) -> list[Array]:
    """Coefficients of the teacher and of each student, which learns from xi x predecessor + (1 - xi) x label.

    >>> [beta.round(3).tolist() for beta in distilled(np.ones((2, 1)), np.array([1.0, 3.0]), 2.0, [1.0])]
    [[1.0], [0.5]]
    """
    betas = [solved(X, y, lam)]
    for xi in xis:
        betas.append(solved(X, xi * X @ betas[-1] + (1 - xi) * y, lam))
    return betas


def self_trained(
    rng: np.random.Generator, rows: int, dimension: int, strength: float, energy: float, noise: float, rounds: int
) -> list[Array]:
    """Coefficients in every round of least-norm self-training on fresh rows; the spike is the first axis.

    Each is (2, d): what came of the signal and what came of the first labels' noise. The model is their sum.

    >>> [beta.shape for beta in self_trained(np.random.default_rng(0), 4, 8, 2.0, 1.0, 1.0, rounds=1)]
    [(2, 8), (2, 8)]
    """
    betas, beta = [], np.zeros((2, dimension))
    beta[0, 0] = energy**0.5
    for t in range(rounds + 1):
        X = rng.standard_normal((rows, dimension))
        X[:, 0] *= strength**0.5
        y = X @ beta.T
        if t == 0:
            y[:, 1] = noise**0.5 * rng.standard_normal(rows)
        beta = np.linalg.solve(X @ X.T, y).T @ X
        betas.append(beta)
    return betas


def spiked_excess(beta: Array, strength: float, energy: float) -> float:
    """(beta - beta*)' Sigma (beta - beta*), the excess risk of coefficients (2, d) from `self_trained`.

    The mean over the noise and its opposite, which are as likely: what mixes signal and noise cancels.

    >>> spiked_excess(np.zeros((2, 3)), 2.0, 1.0)
    2.0
    """
    error = beta.copy()
    error[0, 0] -= energy**0.5
    return float((error**2).sum() + (strength - 1.0) * (error[:, 0] ** 2).sum())


def regenerated(
    rng: np.random.Generator, rows: int, dimension: int, noise: float, generations: int, *, accumulate: bool
) -> Array:
    """Squared distance from the truth of each generation's least-squares model, (generations,).

    Every generation labels fresh standard normal inputs by its predecessor, with noise; ``accumulate`` keeps all data.

    >>> regenerated(np.random.default_rng(0), 4, 2, 0.0, 3, accumulate=True).round(9).tolist()
    [0.0, 0.0, 0.0]
    """
    truth = np.zeros(dimension)
    beta, gram, moment, errors = truth, np.zeros((dimension, dimension)), np.zeros(dimension), []
    for _ in range(generations):
        X = rng.standard_normal((rows, dimension))
        y = X @ beta + noise**0.5 * rng.standard_normal(rows)
        gram, moment = X.T @ X + accumulate * gram, X.T @ y + accumulate * moment
        beta = np.linalg.solve(gram, moment)
        errors.append(float(((beta - truth) ** 2).sum()))
    return np.array(errors)


def mixed_labels(rng: np.random.Generator, weight: float, noise: float, chains: int, generations: int) -> float:
    """Mean square of an estimate of 0 after so many generations that each mix a fresh real draw with one of their own.

    >>> round(mixed_labels(np.random.default_rng(0), 1.0, 0.0, 10, 3), 9)
    0.0
    """
    estimate = np.zeros(chains)
    for _ in range(generations):
        real, fresh = noise**0.5 * rng.standard_normal((2, chains))
        estimate = weight * real + (1.0 - weight) * (estimate + fresh)
    return float((estimate**2).mean())
