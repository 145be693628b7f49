"""Straight code for the tests of the theory: scikit-learn's ridge, round after round. Nothing here is the package's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

Array = NDArray[np.float64]


def data(seed: int = 0, rows: int = 40, dimension: int = 5, noise: float = 1.0) -> tuple[Array, Array, Array]:
    """Inputs with directions of different size, labels, true coefficients."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, dimension)) @ rng.normal(size=(dimension, dimension))
    beta = rng.normal(size=dimension)
    return X, X @ beta + noise**0.5 * rng.normal(size=rows), beta


def ridge(X: Array, y: Array, lam: float) -> Array:
    return np.asarray(Ridge(alpha=lam, fit_intercept=False, solver="cholesky").fit(X, y).coef_)


def taught(X: Array, y: Array, lam: float, xis: Sequence[float]) -> Array:
    """Coefficients after a teacher and a student for each xi."""
    beta = ridge(X, y, lam)
    for xi in xis:
        beta = ridge(X, xi * (X @ beta) + (1 - xi) * y, lam)
    return beta


def lowest(error: Callable[[float], float], low: float, high: float, rounds: int = 120) -> float:
    """Where a convex function is least, by golden-section search."""
    share = 0.6180339887498949
    a, b = low, high
    for _ in range(rounds):
        left, right = b - share * (b - a), a + share * (b - a)
        if error(left) < error(right):
            b = right
        else:
            a = left
    return (a + b) / 2
