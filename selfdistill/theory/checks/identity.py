"""What an identity is, and how a deviation is measured."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from ..arrays import Array

EXACT = 1e-8

Kind = Literal["algebraic", "Monte Carlo"]


@dataclass(frozen=True)
class Identity:
    """A statement with its source, and a way to measure how far the closed form is from a reference of its own.

    ``measure`` gets a random generator and returns the largest deviation, in ``unit``. Algebraic deviations are
    relative to the reference's largest entry; those of a Monte Carlo reference are relative entry by entry, except
    where ``unit`` says otherwise.
    """

    name: str
    statement: str
    source: str
    measure: Callable[[np.random.Generator], float]
    kind: Kind = "algebraic"
    tolerance: float = EXACT
    unit: str = "relative"

    def outcome(self, seed: int = 0) -> dict[str, Any]:
        """The statement with its deviation and ``ok``; the random numbers depend on seed and name alone."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        deviation = float(self.measure(rng))
        return {
            "name": self.name,
            "statement": self.statement,
            "source": self.source,
            "kind": self.kind,
            "deviation": deviation,
            "tolerance": self.tolerance,
            "unit": self.unit,
            "ok": deviation <= self.tolerance,
        }


def relative_error(value: ArrayLike, reference: ArrayLike) -> float:
    """Largest difference, relative to the largest entry wanted (to 1 where all of these are smaller than 1e-300).

    >>> relative_error([1.0, 2.0], [1.0, 4.0])
    0.5
    """
    a, b = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    scale = float(np.abs(b).max())
    return float(np.abs(a - b).max()) / (scale if scale > 1e-300 else 1.0)


def each_error(value: ArrayLike, reference: ArrayLike) -> float:
    """Largest relative difference, entry by entry.

    >>> each_error([1.0, 2.0], [1.0, 4.0])
    0.5
    """
    a, b = np.asarray(value, np.float64), np.asarray(reference, np.float64)
    return float(np.abs(a / b - 1.0).max())


def broken(*conditions: bool) -> float:
    """0 if all hold, else infinity: a strict inequality has no size by which it may be missed.

    >>> broken(1 < 2), broken(1 < 2, 2 < 1)
    (0.0, inf)
    """
    return 0.0 if all(conditions) else float("inf")


def vertex(low: float, middle: float, high: float) -> float:
    """Where a parabola through (-1, low), (0, middle), (1, high) is least.

    >>> vertex(4.0, 1.0, 0.0)
    1.0
    """
    return (low - high) / (2.0 * (low - 2.0 * middle + high))


def regression(
    rng: np.random.Generator, rows: int = 30, dimension: int = 6, noise: float = 1.0
) -> tuple[Array, Array, Array]:
    """Inputs (n, d) whose directions differ in size, labels (n,) and true coefficients (d,).

    >>> [part.shape for part in regression(np.random.default_rng(0))]
    [(30, 6), (30,), (6,)]
    """
    X = rng.standard_normal((rows, dimension)) * np.linspace(0.5, 2.0, dimension)
    beta = rng.standard_normal(dimension)
    return X, X @ beta + noise**0.5 * rng.standard_normal(rows), beta
