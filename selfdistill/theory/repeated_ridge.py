"""Ridge regression that teaches itself: power law, degrees of freedom, collapse, fixed point.

Target = xi x teacher + (1 - xi) x label. ``lam`` is the penalty on the squared coefficients beside the *sum* of squared
errors: beta = (X'X + lam I)^-1 X'y (scikit-learn's ``alpha``, without intercept). X = U S V' and
h_j = s_j^2 / (s_j^2 + lam).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import Array, array, count, design, positive


def spectrum(X: ArrayLike) -> tuple[Array, Array, Array]:
    """U (n, r), singular values (r,) in falling order and V (d, r) of X (n, d), without directions of value 0.

    >>> spectrum([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])[1]
    array([4., 3.])

    Raises:
        DataError: X is no finite matrix, or is all zero.
    """
    inputs, _ = design(X)
    u, s, vt = np.linalg.svd(inputs, full_matrices=False)
    mask = s > s[0] * max(inputs.shape) * np.finfo(np.float64).eps
    if not mask.any():
        raise DataError("X is all zero; give inputs that vary")
    return u[:, mask], s[mask], vt[mask].T


def shrinkage(s: ArrayLike, lam: float) -> Array:
    """h_j = s_j^2 / (s_j^2 + lam): what ridge keeps of each direction; shape of ``s``.

    Source: Hoerl & Kennard, Ridge regression, 1970.

    >>> shrinkage([1.0, 2.0], 4.0)
    array([0.2, 0.5])

    Raises:
        DataError: lam is not above 0.
    """
    squares = array(s, "s", 1) ** 2
    return squares / (squares + positive(lam, "lam"))


def ridge(X: ArrayLike, y: ArrayLike, lam: float) -> Array:
    """Coefficients (d,) = V diag(s / (s^2 + lam)) U'y.

    Source: Hoerl & Kennard, Ridge regression, 1970.

    >>> ridge([[1.0], [1.0]], [1.0, 3.0], 2.0)
    array([1.])

    Raises:
        DataError: shapes that do not belong together, or lam not above 0.
    """
    inputs, labels = design(X, y)
    u, s, v = spectrum(inputs)
    return v @ (s / (s**2 + positive(lam, "lam")) * (u.T @ labels))


def smoother(X: ArrayLike, lam: float) -> Array:
    """H (n, n) = X (X'X + lam I)^-1 X' = U diag(h) U', which turns labels into fitted values.

    >>> smoother([[1.0], [1.0]], 2.0)
    array([[0.25, 0.25],
           [0.25, 0.25]])

    Raises:
        DataError: X is no finite matrix, or lam is not above 0.
    """
    u, s, _ = spectrum(X)
    return (u * shrinkage(s, lam)) @ u.T


def power_law(X: ArrayLike, y: ArrayLike, lam: float, rounds: int) -> Array:
    """Fitted values (n,) after so many rounds of pure self-distillation (xi = 1); round 0 is the teacher.

    Equation::

        f_k = U diag(h_j^(k + 1)) U'y

    so two directions drift apart as (h_i / h_j)^(k + 1), and the limit is the zero function. The penalty is the same in
    every round; the cited paper fixes the training error instead, so its factors change from round to round.

    Source: Mobahi, Farajtabar & Bartlett, Self-distillation amplifies regularization in Hilbert space, NeurIPS 2020.

    >>> power_law([[1.0], [1.0]], [1.0, 3.0], 2.0, rounds=2)
    array([0.25, 0.25])

    Raises:
        DataError: shapes that do not belong together, lam not above 0, rounds below 0.
    """
    inputs, labels = design(X, y)
    u, s, _ = spectrum(inputs)
    return u @ (shrinkage(s, lam) ** (count(rounds, "rounds") + 1) * (u.T @ labels))


def degrees_of_freedom(X: ArrayLike, lam: float, rounds: int = 0) -> float:
    """trace H^(k + 1) = sum_j h_j^(k + 1) after k pure rounds: how many directions are left, in directions.

    It falls strictly with every round.

    Source: Hastie, Tibshirani & Friedman, The Elements of Statistical Learning, 2009, (3.50), for k = 0; the power law.

    >>> degrees_of_freedom([[1.0, 0.0], [0.0, 1.0]], 1.0), degrees_of_freedom([[1.0, 0.0], [0.0, 1.0]], 1.0, rounds=1)
    (1.0, 0.5)

    Raises:
        DataError: X is no finite matrix, lam not above 0, rounds below 0.
    """
    _, s, _ = spectrum(X)
    return float((shrinkage(s, lam) ** (count(rounds, "rounds") + 1)).sum())


def collapsed_after(norms: Sequence[float], share: float = 0.01) -> int | None:
    """First round at which predictions have shrunk to ``share`` of the first ones; None if none has.

    ``norms`` holds one norm of the (centred) predictions for each generation, the first teacher's first. What is not a
    number has collapsed too.

    Source: the limit of the power law, Mobahi, Farajtabar & Bartlett, NeurIPS 2020.

    >>> collapsed_after([8.0, 4.0, 2.0, 1.0], share=0.25), collapsed_after([8.0, 8.0, 8.0])
    (2, None)

    Raises:
        DataError: no norm, a first one that is not above 0, or a share outside (0, 1).
    """
    if not len(norms):
        raise DataError("no norm was given; give one for each generation")
    initial = positive(norms[0], "the first norm")
    if not 0 < share < 1:
        raise DataError(f"share is {share}; give a share between 0 and 1")
    return next((k for k, norm in enumerate(norms) if not norm > share * initial), None)


def rounds_to_collapse(X: ArrayLike, y: ArrayLike, lam: float, share: float = 0.01) -> int:
    """The round at which `collapsed_after` must fire in pure self-distillation, from the power law alone.

    Equation::

        the least k with sum_j h_j^(2k + 2) (u_j'y)^2 <= share^2 sum_j h_j^2 (u_j'y)^2

    which is at most log(share) / log(max h), and is found by halving that range.

    Source: the power law, Mobahi, Farajtabar & Bartlett, NeurIPS 2020.

    >>> rounds_to_collapse([[1.0], [1.0]], [1.0, 3.0], 2.0, share=0.3)
    2

    Raises:
        DataError: shapes that do not belong together, lam not above 0, a share outside (0, 1), or y that X says
            nothing about.
    """
    inputs, labels = design(X, y)
    u, s, _ = spectrum(inputs)
    h, energy = shrinkage(s, lam), (u.T @ labels) ** 2
    if not 0 < share < 1:
        raise DataError(f"share is {share}; give a share between 0 and 1")
    start = positive(float(h**2 @ energy), "the squared norm of the teacher's predictions")
    low, high = 0, math.ceil(math.log(share) / math.log(h.max()))
    while low < high:
        middle = (low + high) // 2
        if h ** (2 * middle + 2) @ energy <= share**2 * start:
            high = middle
        else:
            low = middle + 1
    return low


def contraction(X: ArrayLike, lam: float, xi: float) -> float:
    """|xi| max_j h_j: the factor by which each round comes closer to `fixed_point`; it is reached where this is < 1.

    Source: Borup & Andersen, Even your teacher needs guidance, NeurIPS 2021 (their alpha is 1 - xi).

    >>> round(contraction([[1.0], [1.0]], 2.0, 0.5), 9)
    0.25

    Raises:
        DataError: X is no finite matrix, or lam is not above 0.
    """
    _, s, _ = spectrum(X)
    return abs(xi) * float(shrinkage(s, lam).max())


def fixed_point(X: ArrayLike, y: ArrayLike, lam: float, xi: float) -> Array:
    """Coefficients (d,) that endless self-distillation at a constant xi ends at: plain ridge with lam / (1 - xi).

    So it can never beat a plain ridge whose penalty was searched for.

    Equation::

        f = H (xi f + (1 - xi) y)  =>  f = (I - xi H)^-1 (1 - xi) H y = H_{lam / (1 - xi)} y

    Source: Borup & Andersen, Even your teacher needs guidance, NeurIPS 2021 (their alpha is 1 - xi).

    >>> fixed_point([[1.0], [1.0]], [1.0, 3.0], 1.0, 0.5)
    array([1.])

    Raises:
        DataError: shapes that do not belong together, lam not above 0, xi not below 1, or rounds that do not contract.
    """
    if not xi < 1:
        raise DataError(f"xi is {xi}; without any label in the target (xi from 1 on) there is no fixed point but zero")
    factor = contraction(X, lam, xi)
    if not factor < 1:
        raise DataError(
            f"xi is {xi}, and each round multiplies the distance from the fixed point by {factor:.3g}: the rounds move "
            "away from it; take an xi nearer to 0, or a larger lam"
        )
    return ridge(X, y, positive(lam, "lam") / (1.0 - xi))
