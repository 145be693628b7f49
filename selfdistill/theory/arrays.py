"""Arrays of float64 for the closed forms, and errors where a formula has no meaning."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

Array = NDArray[np.float64]


def array(values: ArrayLike, name: str, dims: int) -> Array:
    """``values`` as float64 with so many axes.

    >>> array([1, 2], "y", 1)
    array([1., 2.])

    Raises:
        DataError: another number of axes, nothing in it, or a value that is not finite.
    """
    result = np.asarray(values, dtype=np.float64)
    if result.ndim != dims or not result.size:
        raise DataError(f"{name} has shape {result.shape}; give {dims} axes with something in them")
    if not np.isfinite(result).all():
        raise DataError(f"{name} has values that are not finite; a closed form needs finite numbers")
    return result


def design(X: ArrayLike, y: ArrayLike | None = None) -> tuple[Array, Array]:
    """The inputs (n, d) and labels (n,), zeros where there are none, of equal length.

    >>> design([[1.0], [2.0]])[1]
    array([0., 0.])

    Raises:
        DataError: shapes that do not belong together.
    """
    inputs = array(X, "X", 2)
    labels = np.zeros(len(inputs)) if y is None else array(y, "y", 1)
    if len(labels) != len(inputs):
        raise DataError(f"X has {len(inputs)} rows and y has {len(labels)}; give a label for each row")
    return inputs, labels


def positive(value: float, name: str) -> float:
    """The same number.

    >>> positive(0.5, "lam")
    0.5

    Raises:
        DataError: it is not above 0, or not finite.
    """
    if not (math.isfinite(value) and value > 0):
        raise DataError(f"{name} is {value}; give a finite number above 0")
    return float(value)


def count(value: int, name: str, least: int = 0) -> int:
    """The same whole number.

    >>> count(3, "rounds")
    3

    Raises:
        DataError: it is below ``least``.
    """
    if value < least:
        raise DataError(f"{name} is {value}; give a whole number from {least}")
    return int(value)


def same_length(**arrays: Any) -> tuple[Array, ...]:
    """Several vectors of one length.

    >>> same_length(s=[1.0, 2.0], a=[0.0, 1.0])
    (array([1., 2.]), array([0., 1.]))

    Raises:
        DataError: they differ in length, or one is no vector of finite numbers.
    """
    vectors = tuple(array(values, name, 1) for name, values in arrays.items())
    if len({len(vector) for vector in vectors}) > 1:
        lengths = ", ".join(f"{name} {len(vector)}" for name, vector in zip(arrays, vectors, strict=True))
        raise DataError(f"vectors of different lengths ({lengths}); give one entry per direction or row to each")
    return vectors
