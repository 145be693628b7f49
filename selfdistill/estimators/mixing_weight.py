"""The trust weight xi, from data: target = xi x teacher + (1 - xi) x label.

For squared error the student's held-out risk is a parabola in xi, because a linear student is affine in it:
f_xi = f_0 + xi (f_1 - f_0), f_1 being what it learns from the teacher alone. So one extra fit gives the best xi,
negative or above 1 where the data ask for it. What cannot be told from noise is shrunk toward 0: "do not distil".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.base import clone

from .tables import ALIKE, Floats, Rows

MOST_STEPS = 4  # the powers of a smoother are all but collinear: further weights would be noise


MOST_ROWS = 2000  # for a smoother's whole matrix


CERTAIN = 2.0  # standard errors a gain must exceed


CONDITION = 1e8


class Trust(NamedTuple):
    """A choice: ``xi`` after shrinking, ``raw`` before, the shrinking ``factor`` in [0, 1], and ``t``, how many
    standard errors the gain is from 0."""

    xi: float
    raw: float
    factor: float
    t: float


def _trust(errors: Floats, step: Floats, rows: Rows = ALIKE) -> Trust:
    """The best xi for the risk of ``errors - xi step``; its gain is measured against its own noise."""
    w = rows.weigh(len(errors))
    w = w / w.sum()
    below = float(w @ step**2)
    above = float(w @ (errors * step))
    if below <= 1e-12 * max(float(w @ errors**2), 1e-300):
        return Trust(0.0, 0.0, 0.0, 0.0)  # the student alone says what the teacher said: nothing to choose
    raw = above / below
    products = rows.summed(w * (errors - raw * step) * step)
    noise = float(np.sqrt(products @ products))
    t = above / noise if noise > 0 else float("inf")
    factor = max(0.0, 1.0 - (CERTAIN / t) ** 2) if t else 0.0
    return Trust(raw * factor, raw, factor, abs(t))


def held_out(y: Floats, teacher: Floats, student: Floats, rows: Rows = ALIKE) -> Trust:
    """The best xi on rows that nothing has learnt from.

    Equation::

        xi* = <y - f_0, f_1 - f_0> / |f_1 - f_0|^2

    Args:
        y: labels (rows,).
        teacher: f_0 (rows,), learnt from labels alone.
        student: f_1 (rows,), learnt from the teacher alone.
        rows: their weights, and which of them are copies.

    >>> y, f0 = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.0, 4.0, 5.01])
    >>> round(held_out(y, f0, f0 - 0.5).raw, 2)
    2.0
    """
    return _trust(y - teacher, student - teacher, rows)


def mixture(y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
    """The xi in [0, 1] whose mixture of two predictions (rows, classes) has the least log loss on rows left out."""
    at = np.arange(len(y))
    ends = np.stack([without[at, y], taught[at, y]]).clip(1e-12)
    w = rows.weigh(len(y))
    w = w / w.sum()

    def losses(xi: float) -> Floats:
        return np.asarray(-np.log((1.0 - xi) * ends[0] + xi * ends[1]))

    found = minimize_scalar(lambda xi: float(w @ losses(xi)), bounds=(0.0, 1.0), method="bounded")
    xi = min((0.0, float(found.x), 1.0), key=lambda value: float(w @ losses(value)))
    gains = w * (losses(0.0) - losses(xi))
    gain = float(gains.sum())
    spread = rows.summed(gains - w * gain)
    noise = float(np.sqrt(spread @ spread))
    return xi * max(0.0, 1.0 - (CERTAIN * noise / gain) ** 2) if gain > 0 else 0.0


def smoother(estimator: Any, X: Any, y: Floats, **options: Any) -> Floats | None:
    """The matrix H of a learner that is linear in its targets, f = H y, (rows, rows); None if it is not linear.

    The learner is fitted on the unit vectors, all at once, as targets; then H y must be what it says after fitting y.
    """
    rows = len(y)
    if not 3 <= rows <= MOST_ROWS:
        return None
    probe = np.random.default_rng(0).standard_normal(rows)
    try:
        wanted = [clone(estimator).fit(X, target, **options).predict(X) for target in (y, probe)]
        found = np.asarray(clone(estimator).fit(X, np.eye(rows), **options).predict(X), dtype=np.float64)
    except Exception:  # a learner of one target, or of any other kind: then it is chosen by folds
        return None
    if found.shape != (rows, rows):
        return None
    near = [
        np.abs(found @ target - said).max() <= 1e-6 * max(float(np.abs(target).max()), 1.0)
        for target, said in zip((y, probe), wanted, strict=True)
    ]
    return found if all(near) else None


def corrected(H: Floats, y: Floats, by: str = "gcv", rows: Rows = ALIKE) -> Floats:
    """Residuals of f = H y as if each row had been left out.

    ``gcv`` divides by 1 - tr H / n, n being the sum of the weights; ``loo`` by 1 - H_ii, which is exact for ridge
    regression.

    Source: Golub, Heath and Wahba, Technometrics 21, 1979.
    """
    whole = float(rows.weigh(len(y)).sum())
    left = np.full(len(y), 1.0 - np.trace(H) / whole) if by == "gcv" else 1.0 - np.diag(H)
    found: Floats = (y - H @ y) / np.maximum(left, 1e-12)
    return found


def closed_form(H: Floats, y: Floats, by: str = "gcv", rows: Rows = ALIKE) -> Trust:
    """The best xi for a linear smoother, without a split.

    Equation::

        xi* = (R_T - C) / (R_T + R_PD - 2 C),  from the corrected residuals of H y (T) and H H y (PD)

    Source: Dang, Patil and Rinaldo, Optimal Unconstrained Self-Distillation in Ridge Regression, ICML 2026, eq. 17-19.
    """
    first, second = corrected(H, y, by, rows), corrected(H @ H, y, by, rows)
    return _trust(first, first - second, rows)


def steps(H: Floats, y: Floats, number: int, by: str = "gcv", rows: Rows = ALIKE) -> list[float]:
    """The best xi of each of ``number`` steps (at most four), by a quadratic programme over H y, H^2 y, ...

    Fewer steps are weighed where the programme is badly conditioned; the others get xi 0. A gain that cannot be told
    from noise is shrunk away.

    Source: Pareek, Du and Oh, Understanding the Gains from Repeated Self-Distillation, NeurIPS 2024, section 4.
    """
    for used in range(min(number, MOST_STEPS), 1, -1):
        powers, residuals = H, [corrected(H, y, by, rows)]
        for _ in range(used):
            powers = powers @ H
            residuals.append(corrected(powers, y, by, rows))
        R = np.stack(residuals)  # (used + 1, rows)
        D = R[:1] - R[1:]
        w = rows.weigh(len(y))
        gram = (w * D) @ D.T
        if np.linalg.cond(gram) > CONDITION:
            continue
        b = np.linalg.solve(gram, (w * D) @ R[0])
        guarded = _trust(R[0], b @ D, rows)  # of the whole step: its best multiple is 1
        if guarded.factor == 0.0:
            continue
        return [0.0] * (number - used) + weights_to_xis(guarded.factor * b)
    return [0.0] * (number - 1) + [closed_form(H, y, by, rows).xi]


def weights_to_xis(b: Floats) -> list[float]:
    """The xi of each step, first step first, that give f = (1 - sum b) H y + sum_i b_i H^(i+1) y.

    Equation::

        b_i = (1 - xi_(k-i)) xi_(k-i+1) ... xi_k,  xi_0 = 0

    >>> [round(xi, 6) for xi in weights_to_xis(np.array([0.25, 0.25]))]
    [0.5, 0.5]
    """
    found, product = [], 1.0
    for i in range(len(b)):
        tail = float(b[i:].sum())
        found.append(tail / product if product else 0.0)
        product *= found[-1]
    return found[::-1]


def jointly(smoothers: dict[float, Floats], y: Floats) -> tuple[float, float]:
    """A regularisation and a trust weight, chosen together: (key of ``smoothers``, xi).

    The regularisation that generalised cross-validation prefers without distillation stays, unless another one with
    its own xi is better row by row, left out one by one, by three standard errors: chosen freely over both, what looks
    best is often the noise of an under-regularised fit.
    """
    best = min(smoothers, key=lambda key: float(np.mean(corrected(smoothers[key], y) ** 2)))
    usual = corrected(smoothers[best], y, "loo") ** 2
    choice, least = (best, 0.0), usual
    for key, H in smoothers.items():
        xi = closed_form(H, y, "loo").xi
        losses = corrected((1.0 - xi) * H + xi * (H @ H), y, "loo") ** 2
        gain = usual - losses
        noise = float(gain.std()) / np.sqrt(len(y))
        if gain.mean() > 3.0 * noise and losses.mean() < least.mean():
            choice, least = (key, xi), losses
    return choice
