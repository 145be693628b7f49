"""Repetition: why self-training helps and then hurts, when to stop, and what replacing, accumulating and mixing cost.

In this file the student sees the teacher alone (xi = 1), or so much of the real labels as a function says. Risks are
excess risks: squared error against the noiseless truth, in squared units of the label. Nothing here is shared with the
engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ..errors import DataError
from .arrays import Array, count, positive

#: The weight of fresh real labels at which mixing them with the predecessor's has the least variance: 0.618...
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def spike_forgetting(rounds: int, strength: float, energy: float, overhang: float) -> float:
    """The part of the signal that is forgotten after so many rounds; it grows with every round.

    Least-norm regression on d inputs with n < d rows; Sigma = I + (strength - 1) uu', beta = sqrt(energy) u, and
    ``overhang`` tau = d / n - 1. Each student sees fresh unlabelled rows, labelled by its predecessor. d, n large.

    Equation::

        B_t = energy strength (1 - rho^(t + 1))^2,   rho = strength / (strength + tau)

    Source: Wu, Yang & Sun, Why self-training helps and hurts, arXiv 2602.14029, 2026 (single spike).

    >>> spike_forgetting(0, 1.0, 1.0, 1.0), spike_forgetting(1, 1.0, 1.0, 1.0)
    (0.25, 0.5625)

    Raises:
        DataError: rounds below 0, or another argument not above 0.
    """
    _spike(rounds, strength, energy, overhang)
    return energy * strength * (1.0 - (strength / (strength + overhang)) ** (rounds + 1)) ** 2


def spike_noise(rounds: int, strength: float, energy: float, overhang: float, noise: float) -> float:
    """The noise that is left after so many rounds, with ``noise`` the variance of the first labels' noise.

    Equation::

        V_t = q V_(t - 1) + tau energy rho^(2t + 2) / strength,   V_0 the same with q V_(-1) = noise / tau
        V_t = q^t noise / tau + (tau energy / strength) sum_(i <= t) q^(t - i) rho^(2i + 2),   q = 1 / (1 + tau)

    Source: Wu, Yang & Sun, arXiv 2602.14029, 2026 (single spike), for the recursion; its sum is derived.

    >>> spike_noise(0, 1.0, 1.0, 1.0, 2.0), spike_noise(1, 1.0, 1.0, 1.0, 2.0)
    (2.25, 1.1875)

    Raises:
        DataError: rounds below 0, noise below 0, or another argument not above 0.
    """
    _spike(rounds, strength, energy, overhang)
    if not noise >= 0:
        raise DataError(f"noise is {noise}; a variance is 0 or more")
    q, square = 1.0 / (1.0 + overhang), (strength / (strength + overhang)) ** 2
    summed = math.fsum(
        q ** (rounds - i) * square**i for i in range(rounds + 1)
    )  # a quotient would cancel near rho^2 = q
    return q**rounds * noise / overhang + overhang * energy / strength * square * summed


def spike_risk(rounds: int, strength: float, energy: float, overhang: float, noise: float) -> float:
    """Excess risk after so many rounds: `spike_forgetting` + `spike_noise`; a U over the rounds for a strong spike.

    Without a spike (strength 1) it is energy + q^t (noise / tau - q energy), which only falls or only rises.

    Source: Wu, Yang & Sun, arXiv 2602.14029, 2026.

    >>> spike_risk(1, 1.0, 1.0, 1.0, 2.0)
    1.75

    Raises:
        DataError: rounds or noise below 0, or another argument not above 0.
    """
    forgotten = spike_forgetting(rounds, strength, energy, overhang)
    return forgotten + spike_noise(rounds, strength, energy, overhang, noise)


def stopping_time(strength: float, energy: float, overhang: float, noise: float, limit: int = 200) -> int:
    """The round, of ``limit`` at most, with the least `spike_risk`.

    Source: Wu, Yang & Sun, arXiv 2602.14029, 2026 (an optimal time to stop exists).

    >>> stopping_time(20.0, 1.0, 1.0, 4.0)
    3

    Raises:
        DataError: an argument outside its range.
    """
    rounds = range(count(limit, "most") + 1)
    return min(rounds, key=lambda t: spike_risk(t, strength, energy, overhang, noise))


def first_rise(errors: Sequence[float]) -> int:
    """When to stop if only held-out errors are known: the last round before the first rise.

    A round without a successor is the last word. For a U-shaped risk this is `stopping_time`, as far as the held-out
    rows can tell rounds apart.

    Source: early stopping, Prechelt, Early stopping - but when?, 1998, with a patience of one.

    >>> first_rise([4.0, 2.0, 1.5, 1.6, 1.2]), first_rise([3.0, 2.0])
    (2, 1)

    Raises:
        DataError: there is no error to read.
    """
    if not len(errors):
        raise DataError("no error was given; give one for each round")
    pairs = enumerate(pairwise(errors))
    return next((t for t, (current, later) in pairs if not later <= current), len(errors) - 1)


def replaced_error(generation: int, rows: int, dimension: int, noise: float) -> float:
    """Excess risk of the n-th least-squares model when each generation's data replace all before: linear in n.

    Inputs are standard normal and fresh, ``rows`` of them in each generation; labels are the predecessor's values plus
    noise of variance ``noise``; generation 1 sees the truth plus noise.

    Equation::

        n noise d / (T - d - 1)

    Source: Gerstgrasser et al., Is model collapse inevitable?, arXiv 2404.01413, 2024; Dohmatob, Feng & Kempe,
    arXiv 2402.07712, 2024.

    >>> replaced_error(3, rows=21, dimension=10, noise=1.0)
    3.0

    Raises:
        DataError: generation below 1, or fewer than dimension + 2 rows.
    """
    return count(generation, "generation", 1) * _first_error(rows, dimension, noise)


def accumulated_error(generation: int, rows: int, dimension: int, noise: float) -> float:
    """Excess risk of the n-th model when every generation learns from all data there ever were; exact.

    Equation::

        noise d sum_(i <= n) 1 / (i (i T - d - 1))

    Derived: the new model is the old one plus (S_n)^-1 X_n'e_n with S_n = sum_i X_i'X_i; generations are
    exchangeable in S_n, so the added error is noise E tr S_n^-1 / n, an inverse Wishart's mean with n T rows.

    Source: the setting is that of Gerstgrasser et al., arXiv 2404.01413, 2024.

    >>> round(accumulated_error(2, rows=21, dimension=10, noise=1.0), 4)
    1.1613

    Raises:
        DataError: generation below 1, or fewer than dimension + 2 rows.
    """
    _first_error(rows, dimension, noise)
    terms = (1.0 / (i * (i * rows - dimension - 1)) for i in range(1, count(generation, "generation", 1) + 1))
    return noise * dimension * math.fsum(terms)


def accumulated_bound(generation: int | None, rows: int, dimension: int, noise: float) -> float:
    """The upper bound of `accumulated_error`; with None in all generations to come: pi^2 / 6 of one generation's error.

    Equation::

        sum_(i <= n) 1 / i^2  noise d / (T - d - 1)

    Source: Gerstgrasser et al., arXiv 2404.01413, 2024.

    >>> accumulated_bound(2, rows=21, dimension=10, noise=1.0), round(accumulated_bound(None, 21, 10, 1.0), 4)
    (1.25, 1.6449)

    Raises:
        DataError: generation below 1, or fewer than dimension + 2 rows.
    """
    first_error = _first_error(rows, dimension, noise)
    if generation is None:
        return math.pi**2 / 6.0 * first_error
    return first_error * math.fsum(1.0 / i**2 for i in range(1, count(generation, "generation", 1) + 1))


def mixing_variance(weight: float, noise: float = 1.0) -> float:
    """Variance that endless mixing settles at: ``weight`` on fresh real labels, the rest on the predecessor's own.

    Equation::

        V = w^2 noise + (1 - w)^2 (V + noise)  =>  V = noise (w^2 + (1 - w)^2) / (1 - (1 - w)^2)

    Here w is 1 - xi. The least is at w = `GOLDEN` = (sqrt 5 - 1) / 2, and is GOLDEN x noise.

    Source: He, Xu & Cheng, arXiv 2502.18049, 2025 (golden ratio); Garg et al., arXiv 2509.22341, 2025.

    >>> mixing_variance(1.0), round(mixing_variance(GOLDEN), 4)
    (1.0, 0.618)

    Raises:
        DataError: the weight is not in (0, 2), where the variance stays bounded.
    """
    if not 0 < weight < 2:
        raise DataError(f"weight is {weight}; outside (0, 2) the variance grows without bound")
    return noise * (weight**2 + (1 - weight) ** 2) / (1 - (1 - weight) ** 2)


def spike_risks(rounds: int, strength: float, energy: float, overhang: float, noise: float) -> Array:
    """`spike_risk` for rounds 0 to ``rounds``, (rounds + 1,).

    >>> spike_risks(1, 1.0, 1.0, 1.0, 2.0)
    array([2.5 , 1.75])

    Raises:
        DataError: an argument outside its range.
    """
    return np.array([spike_risk(t, strength, energy, overhang, noise) for t in range(count(rounds, "rounds") + 1)])


def _spike(rounds: int, strength: float, energy: float, overhang: float) -> None:
    count(rounds, "rounds")
    for name, value in (("strength", strength), ("energy", energy), ("overhang", overhang)):
        positive(value, name)


def _first_error(rows: int, dimension: int, noise: float) -> float:
    count(dimension, "dimension", 1)
    count(rows, "rows", dimension + 2)
    if not noise >= 0:
        raise DataError(f"noise is {noise}; a variance is 0 or more")
    return noise * dimension / (rows - dimension - 1)
