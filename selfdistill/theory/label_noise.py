"""How noise in the labels moves the best weight of the teacher.

Target = xi x teacher + (1 - xi) x label, any real xi; s_j singular values, a_j = v_j'beta, ``noise`` the variance
of the labels' noise, h_j = s_j^2 / (s_j^2 + lam). What counts here is the squared error of the coefficients.
"""

from __future__ import annotations

from numpy.typing import ArrayLike

from .arrays import positive, same_length
from .repeated_ridge import shrinkage

__all__ = ["noise_weight", "noise_weight_limit", "parameter_error", "turning_noise"]


def parameter_error(s: ArrayLike, a: ArrayLike, noise: float, lam: float, xi: float) -> float:
    """Expected squared error of the student's coefficients after one step, s and a (r,).

    Equation::

        E = sum_j (1 - h_j)^2 (1 + xi h_j)^2 a_j^2 + h_j^2 (1 - xi (1 - h_j))^2 noise / s_j^2

    Source: Das & Sanghavi, Understanding self-distillation in the presence of label noise, ICML 2023; derived.

    >>> parameter_error([1.0], [1.0], 1.0, 1.0, 0.0), parameter_error([1.0], [1.0], 1.0, 1.0, 1.0)
    (0.5, 0.625)

    Raises:
        DataError: lengths differ, or lam is not above 0.
    """
    values, signal = same_length(s=s, a=a)
    h = shrinkage(values, lam)
    bias = (1 - h) ** 2 * (1 + xi * h) ** 2 * signal**2
    return float((bias + h**2 * (1 - xi * (1 - h)) ** 2 * noise / values**2).sum())


def noise_weight(s: ArrayLike, a: ArrayLike, noise: float, lam: float) -> float:
    """The xi with the least `parameter_error`: the noise rule.

    Equation::

        xi* = sum_j [h^2 (1 - h) noise / s^2 - (1 - h)^2 h a^2] / sum_j (1 - h)^2 h^2 (a^2 + noise / s^2)

    It grows with the noise, from below 0 (clean labels: trust them more than fully) to above 1.

    Source: Das & Sanghavi, ICML 2023; derived.

    >>> noise_weight([1.0], [1.0], 1.0, 1.0), noise_weight([1.0], [1.0], 0.0, 1.0)
    (0.0, -2.0)

    Raises:
        DataError: lengths differ, lam not above 0, or neither signal nor noise.
    """
    values, signal = same_length(s=s, a=a)
    h = shrinkage(values, lam)
    squared, rough = signal**2, noise / values**2
    up = h**2 * (1 - h) * rough - (1 - h) ** 2 * h * squared
    down = (1 - h) ** 2 * h**2 * (squared + rough)
    return float(up.sum()) / positive(float(down.sum()), "the distance of student and teacher")


def noise_weight_limit(s: ArrayLike, lam: float) -> float:
    """`noise_weight` for labels that are nothing but noise; always above 1.

    Equation::

        sum_j h^2 (1 - h) / s^2 / sum_j (1 - h)^2 h^2 / s^2;   for a single direction (s^2 + lam) / lam

    Source: Das & Sanghavi, ICML 2023 (an optimal weight above 1 at high noise); derived.

    >>> round(noise_weight_limit([2.0], 1.0), 9)
    5.0

    Raises:
        DataError: lam is not above 0.
    """
    (values,) = same_length(s=s)
    return noise_weight(values, 0.0 * values, 1.0, lam)


def turning_noise(s: ArrayLike, a: ArrayLike, lam: float) -> float:
    """The variance of noise at which `noise_weight` changes its sign: sum (1 - h)^2 h a^2 / sum h^2 (1 - h) / s^2.

    Below it the teacher is to be contradicted, above it to be believed.

    Source: Das & Sanghavi, ICML 2023; derived: the numerator of the noise rule at 0.

    >>> turning_noise([1.0], [1.0], 1.0)
    1.0

    Raises:
        DataError: lengths differ, or lam is not above 0.
    """
    values, signal = same_length(s=s, a=a)
    h = shrinkage(values, lam)
    return float(((1 - h) ** 2 * h * signal**2).sum() / (h**2 * (1 - h) / values**2).sum())
