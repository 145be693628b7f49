"""Several steps of self-distillation, each with a weight of its own: what they are together, and the best of them.

Target of step i = xi_i x predecessor + (1 - xi_i) x label, any real xi_i. k steps are a polynomial of degree k in the
smoother, so they are told by k numbers b, and the risk is quadratic in these. Fixed design: X = U S V', s_j the
singular values, a_j = v_j'beta the signal in each direction, ``noise`` the variance of the labels' noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import Array, array, count, design, positive, same_length
from .repeated_ridge import shrinkage, spectrum


def step_weights(xis: ArrayLike) -> Array:
    """b (k,) of the k-step student, from xi_1 ... xi_k (k,).

    Equation::

        b_i = (1 - xi_(k - i)) prod_(l = k - i + 1 .. k) xi_l,   xi_0 = 0

    b_i is the share of ``H^(i + 1) y`` in the student's fit; the share of ``H y`` is 1 - sum_i b_i.

    Source: Pareek, Du & Oh, Understanding the gains from repeated self-distillation, NeurIPS 2024.

    >>> step_weights([0.5, 0.25])
    array([0.125, 0.125])

    Raises:
        DataError: xis is no vector of finite numbers.
    """
    weights = array(xis, "xis", 1)
    tails = np.cumprod(weights[::-1])  # prod of the last i weights
    previous = np.append(weights[::-1][1:], 0.0)
    return np.asarray((1.0 - previous) * tails)


def step_imitation(b: ArrayLike) -> Array:
    """xi_1 ... xi_k (k,) that give these b (k,): the inverse of `step_weights`.

    Equation::

        xi_(k - i + 1) = S_i / S_(i - 1),   S_i = sum_(j >= i) b_j,   S_0 = 1

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> step_imitation([0.125, 0.125])
    array([0.5 , 0.25])

    Raises:
        DataError: a tail of b sums to 0 and the steps before it are not told by b.
    """
    weights = array(b, "b", 1)
    tails = np.append(1.0, np.cumsum(weights[::-1])[::-1])
    if (tails[:-1] == 0).any():
        raise DataError("a tail of b sums to 0: all first weights give it, or none; leave out last entries of 0")
    return np.asarray((tails[1:] / tails[:-1])[::-1])


def step_shrinkage(s: ArrayLike, lam: float, b: ArrayLike) -> Array:
    """The shrinkage of the k-step student in each direction: h ((1 - sum b) + sum_i b_i h^i), shape of ``s``.

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> step_shrinkage([1.0], 1.0, [0.5])
    array([0.375])

    Raises:
        DataError: lam is not above 0.
    """
    h, weights = shrinkage(s, lam), array(b, "b", 1)
    return np.asarray(h * np.polynomial.polynomial.polyval(h, np.append(1.0 - weights.sum(), weights)))


def stepped(X: ArrayLike, y: ArrayLike, lam: float, b: ArrayLike) -> Array:
    """Coefficients (d,) of the k-step student.

    Equation::

        beta = [(1 - sum_i b_i) I + sum_i b_i ((X'X + lam I)^-1 X'X)^i] (X'X + lam I)^-1 X'y

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> stepped([[1.0]], [2.0], 1.0, [0.5])
    array([0.75])

    Raises:
        DataError: shapes that do not belong together, or lam not above 0.
    """
    inputs, labels = design(X, y)
    u, s, v = spectrum(inputs)
    return v @ (step_shrinkage(s, lam, b) / s * (u.T @ labels))


def fitted_weights(predictions: ArrayLike, labels: ArrayLike) -> Array:
    """b (k,) with the least squared error on held-out rows, from the k + 1 pure rounds there, (k + 1, n).

    Row i of ``predictions`` is what i pure rounds (xi = 1) predict. One least squares, no search. Where rounds hardly
    differ the system is nearly singular and the solution of least norm is taken.

    Source: Pareek, Du & Oh, NeurIPS 2024 (their recipe for real data).

    >>> fitted_weights([[2.0, 0.0], [0.0, 2.0]], [1.0, 1.0])
    array([0.5])

    Raises:
        DataError: fewer than two rounds, or rows that do not fit the labels.
    """
    rounds, y = array(predictions, "predictions", 2), array(labels, "labels", 1)
    if len(rounds) < 2 or rounds.shape[1] != len(y):
        raise DataError(f"predictions have shape {rounds.shape}; give two rounds or more for each of {len(y)} labels")
    return np.asarray(np.linalg.lstsq((rounds[1:] - rounds[0]).T, y - rounds[0], rcond=None)[0])


def fixed_design_excess(s: ArrayLike, a: ArrayLike, noise: float, shrink: ArrayLike) -> float:
    """Expected excess of a linear method that keeps so much of each direction: sum of squared errors, fixed design.

    Equation::

        sum_j s_j^2 ((1 - w_j)^2 a_j^2 + w_j^2 noise / s_j^2)

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> fixed_design_excess([1.0, 1.0], [1.0, 1.0], 1.0, [1.0, 0.0])
    2.0

    Raises:
        DataError: lengths differ.
    """
    values, signal, w = same_length(s=s, a=a, kept=shrink)
    return float((values**2 * (1 - w) ** 2 * signal**2 + w**2 * noise).sum())


def best_kept(s: ArrayLike, a: ArrayLike, noise: float) -> Array:
    """The shrinkage of the best linear method in each direction (the oracle): a^2 / (a^2 + noise / s^2), shape of
    ``s``.

    Source: Pareek, Du & Oh, NeurIPS 2024; the filter is Wiener's.

    >>> best_kept([1.0, 2.0], [1.0, 1.0], 1.0)
    array([0.5, 0.8])

    Raises:
        DataError: lengths differ, or noise is not above 0.
    """
    values, signal = same_length(s=s, a=a)
    return signal**2 / (signal**2 + positive(noise, "noise") / values**2)


def least_excess(s: ArrayLike, a: ArrayLike, noise: float) -> float:
    """Excess of that oracle: sum_j noise a_j^2 / (a_j^2 + noise / s_j^2).

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> least_excess([1.0, 2.0], [1.0, 1.0], 1.0)
    1.3

    Raises:
        DataError: lengths differ, or noise is not above 0.
    """
    return float(noise * best_kept(s, a, noise).sum())


def best_steps(s: ArrayLike, a: ArrayLike, noise: float, lam: float, steps: int) -> Array:
    """b (k,) of the k-step student with the least expected excess, for a design with these singular values.

    With r different singular values, k = r steps reach `least_excess` exactly; the system is a Vandermonde one in h, so
    more than three or four steps say little in double precision. Where values coincide, tuned ridge is as good.

    Equation::

        min_b sum_j (s_j^2 a_j^2 + noise) (w_j(b) - w_j*)^2,   w* = `best_kept`

    Source: Pareek, Du & Oh, NeurIPS 2024.

    >>> s, a = [1.0, 2.0], [1.0, 1.0]
    >>> b = best_steps(s, a, 1.0, 1.0, 2)
    >>> round(fixed_design_excess(s, a, 1.0, step_shrinkage(s, 1.0, b)), 6)
    1.3

    Raises:
        DataError: lengths differ, lam or noise not above 0, or no step.
    """
    values, signal = same_length(s=s, a=a)
    h, k = shrinkage(values, lam), count(steps, "steps", 1)
    scale = np.sqrt(values**2 * signal**2 + positive(noise, "noise"))
    columns = np.stack([h * (h**i - 1.0) for i in range(1, k + 1)], axis=1)
    target = best_kept(values, signal, noise) - h
    return np.asarray(np.linalg.lstsq(scale[:, None] * columns, scale * target, rcond=None)[0])


def equal_values_penalty(s: float, a: ArrayLike, noise: float) -> float:
    """The lam of plain ridge that no number of steps can beat where all r singular values are ``s``: r noise / |a|^2.

    Source: Pareek, Du & Oh, NeurIPS 2024 (different singular values are necessary); derived: one factor w is kept
    of all directions whatever the steps, and ridge takes every w in (0, 1).

    >>> equal_values_penalty(2.0, [1.0, 1.0], 3.0)
    3.0

    Raises:
        DataError: there is no signal, or s is not above 0.
    """
    signal = array(a, "a", 1)
    positive(s, "s")
    return len(signal) * noise / positive(float(signal @ signal), "the energy of the signal")
