"""The mixing weight xi, estimated from data: target = xi x teacher + (1 - xi) x label.

For squared error the student's held-out risk is a parabola in xi, because a linear student is affine in it:
f_xi = f_0 + xi (f_1 - f_0), f_1 being the student of the teacher alone. So one extra fit gives the best xi,
negative or above 1 where the data ask for it. A gain within its own noise is shrunk toward xi = 0: "do not distil".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from sklearn.base import clone

from ..data.copies import Floats
from .tables import EQUAL_WEIGHTS, RowWeights

MAX_STEPS = 4  # the powers of a smoother are nearly collinear: further weights would be noise


MAX_SMOOTHER_ROWS = 2000  # for a smoother's whole matrix


SIGNIFICANT = 2.0  # standard errors a gain must exceed


MAX_CONDITION = 1e8


class MixingWeight(NamedTuple):
    """An estimate: ``xi`` after shrinking, ``raw`` before, the shrinking ``factor`` in [0, 1], and ``t``, the gain in
    standard errors."""

    xi: float
    raw: float
    factor: float
    t: float


def _parabola_minimum(errors: Floats, step: Floats, rows: RowWeights = EQUAL_WEIGHTS) -> MixingWeight:
    """The xi of least mean square of ``errors - xi step``, shrunk by the noise of its gain."""
    w = rows.of(len(errors))
    w = w / w.sum()
    denominator = float(w @ step**2)
    numerator = float(w @ (errors * step))
    if denominator <= 1e-12 * max(float(w @ errors**2), 1e-300):
        return MixingWeight(0.0, 0.0, 0.0, 0.0)  # the student predicts what its teacher does: no choice
    raw = numerator / denominator
    products = rows.sum_copies(w * (errors - raw * step) * step)
    noise = float(np.sqrt(products @ products))
    t = numerator / noise if noise > 0 else float("inf")
    factor = max(0.0, 1.0 - (SIGNIFICANT / t) ** 2) if t else 0.0
    return MixingWeight(raw * factor, raw, factor, abs(t))


def held_out_weight(y: Floats, teacher: Floats, student: Floats, rows: RowWeights = EQUAL_WEIGHTS) -> MixingWeight:
    """The best xi on held-out rows.

    Equation::

        xi* = <y - f_0, f_1 - f_0> / |f_1 - f_0|^2

    Args:
        y: labels (rows,).
        teacher: f_0 (rows,), trained on labels alone.
        student: f_1 (rows,), trained on the teacher's predictions alone.
        rows: weights of the rows, and which of them are copies.

    >>> y, f0 = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.0, 4.0, 5.01])
    >>> round(held_out_weight(y, f0, f0 - 0.5).raw, 2)
    2.0
    """
    return _parabola_minimum(y - teacher, student - teacher, rows)


def log_loss_weight(y: NDArray[Any], teacher: Floats, student: Floats, rows: RowWeights) -> float:
    """The xi in [0, 1] whose mixture of two held-out probabilities (rows, classes) has the least log loss, shrunk.

    ``y`` are class indices (rows,); ``teacher`` was trained on labels, ``student`` on the teacher alone.
    """
    index = np.arange(len(y))
    ends = np.stack([teacher[index, y], student[index, y]]).clip(1e-12)
    w = rows.of(len(y))
    w = w / w.sum()

    def losses(xi: float) -> Floats:
        return np.asarray(-np.log((1.0 - xi) * ends[0] + xi * ends[1]))

    inner = minimize_scalar(lambda xi: float(w @ losses(xi)), bounds=(0.0, 1.0), method="bounded")
    xi = min((0.0, float(inner.x), 1.0), key=lambda value: float(w @ losses(value)))
    gains = w * (losses(0.0) - losses(xi))
    gain = float(gains.sum())
    spread = rows.sum_copies(gains - w * gain)
    noise = float(np.sqrt(spread @ spread))
    return xi * max(0.0, 1.0 - (SIGNIFICANT * noise / gain) ** 2) if gain > 0 else 0.0


def smoother(estimator: Any, X: Any, y: Floats, **options: Any) -> Floats | None:
    """The matrix H (rows, rows) of a learner that is linear in its targets, f = H y; None if it is not linear.

    The learner is fitted on the unit vectors as targets, all at once. Then H must reproduce its predictions for ``y``
    and for random targets.
    """
    rows = len(y)
    if not 3 <= rows <= MAX_SMOOTHER_ROWS:
        return None
    probes = y, np.random.default_rng(0).standard_normal(rows)
    try:
        predictions = [clone(estimator).fit(X, target, **options).predict(X) for target in probes]
        H = np.asarray(clone(estimator).fit(X, np.eye(rows), **options).predict(X), dtype=np.float64)
    except Exception:  # a learner of one target, or of any other kind: its weight is chosen by folds
        return None
    if H.shape != (rows, rows):
        return None
    linear = all(
        np.abs(H @ target - prediction).max() <= 1e-6 * max(float(np.abs(target).max()), 1.0)
        for target, prediction in zip(probes, predictions, strict=True)
    )
    return H if linear else None


def left_out_residuals(H: Floats, y: Floats, by: str = "gcv", rows: RowWeights = EQUAL_WEIGHTS) -> Floats:
    """Residuals (rows,) of f = H y as if each row had been left out.

    ``gcv`` divides by 1 - tr H / n, n being the sum of the weights; ``loo`` by 1 - H_ii, which is exact for ridge
    regression.

    Source: Golub, Heath and Wahba, Technometrics 21, 1979.
    """
    n = float(rows.of(len(y)).sum())
    share = np.full(len(y), 1.0 - np.trace(H) / n) if by == "gcv" else 1.0 - np.diag(H)
    return np.asarray((y - H @ y) / np.maximum(share, 1e-12))


def closed_form_weight(H: Floats, y: Floats, by: str = "gcv", rows: RowWeights = EQUAL_WEIGHTS) -> MixingWeight:
    """The best xi for a linear smoother, without a split.

    Equation::

        xi* = (R_T - C) / (R_T + R_PD - 2 C),  from the left-out residuals of H y (T) and H H y (PD)

    Source: Dang, Patil and Rinaldo, Optimal Unconstrained Self-Distillation in Ridge Regression, ICML 2026, eq. 17-19.
    """
    teacher, student = left_out_residuals(H, y, by, rows), left_out_residuals(H @ H, y, by, rows)
    return _parabola_minimum(teacher, teacher - student, rows)


def step_weights(H: Floats, y: Floats, number: int, by: str = "gcv", rows: RowWeights = EQUAL_WEIGHTS) -> list[float]:
    """The best xi of each of ``number`` steps (at most four), by a quadratic programme over H y, H^2 y, ...

    Fewer steps are weighed where the programme is badly conditioned; the others get xi 0. A gain within its own noise
    is shrunk.

    Source: Pareek, Du and Oh, Understanding the Gains from Repeated Self-Distillation, NeurIPS 2024, section 4.
    """
    for used in range(min(number, MAX_STEPS), 1, -1):
        power, residuals = H, [left_out_residuals(H, y, by, rows)]
        for _ in range(used):
            power = power @ H
            residuals.append(left_out_residuals(power, y, by, rows))
        R = np.stack(residuals)  # (used + 1, rows)
        D = R[:1] - R[1:]
        w = rows.of(len(y))
        gram = (w * D) @ D.T
        if np.linalg.cond(gram) > MAX_CONDITION:
            continue
        b = np.linalg.solve(gram, (w * D) @ R[0])
        factor = _parabola_minimum(R[0], b @ D, rows).factor  # of the whole step: its best multiple is 1
        if factor > 0.0:
            return [0.0] * (number - used) + weights_to_xis(factor * b)
    return [0.0] * (number - 1) + [closed_form_weight(H, y, by, rows).xi]


def weights_to_xis(b: Floats) -> list[float]:
    """The xi of each step, first step first, that give f = (1 - sum b) H y + sum_i b_i H^(i+1) y.

    Equation::

        b_i = (1 - xi_(k-i)) xi_(k-i+1) ... xi_k,  xi_0 = 0

    >>> [round(xi, 6) for xi in weights_to_xis(np.array([0.25, 0.25]))]
    [0.5, 0.5]
    """
    xis, product = [], 1.0
    for i in range(len(b)):
        tail = float(b[i:].sum())
        xis.append(tail / product if product else 0.0)
        product *= xis[-1]
    return xis[::-1]
