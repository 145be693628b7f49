"""The weight xi of the teacher in one step of self-distillation: optimal, signed, and estimated.

Target = xi x teacher + (1 - xi) x label, any real xi. The student is linear in its target, so it is the mixture
f_T + xi (f_PD - f_T) of the teacher f_T and the purely distilled student f_PD, and its squared risk is a parabola
in xi.

The second part is about noisy labels: s_j are singular values, a_j = v_j'beta, ``noise`` is the variance of the
labels' noise, h_j = s_j^2 / (s_j^2 + lam), and the risk is the squared error of the coefficients.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import design, positive, same_length
from .repeated_ridge import shrinkage, smoother


def held_out_weight(label: ArrayLike, teacher: ArrayLike, student: ArrayLike) -> float:
    """The xi with the least squared error on held-out rows: labels, f_T and f_PD, each (n,).

    Equation::

        xi* = <y - f_T, f_PD - f_T> / ||f_PD - f_T||^2

    Source: least squares on the mixture; Borup & Andersen, NeurIPS 2021, have a closed form for each step too.

    >>> held_out_weight([1.0, 1.0], [0.0, 0.0], [2.0, 2.0])
    0.5

    Raises:
        DataError: lengths differ, or teacher and student agree everywhere.
    """
    y, f, g = same_length(label=label, teacher=teacher, student=student)
    return float((y - f) @ (g - f)) / positive(float((g - f) @ (g - f)), "the distance of student and teacher")


def weight_from_risks(teacher: float, student: float, cross: float) -> float:
    """xi* from the risks of teacher and pure student, and the mean product of their errors (same units).

    Equation::

        xi* = (R_T - C) / (R_T + R_PD - 2 C)

    Source: Dang, Patil & Rinaldo, arXiv 2602.17565, 2026.

    >>> weight_from_risks(2.0, 2.0, 1.0)
    0.5

    Raises:
        DataError: R_T + R_PD - 2 C, the distance of the two, is not above 0.
    """
    return (teacher - cross) / positive(teacher + student - 2.0 * cross, "the distance of student and teacher")


def risk_weight(slope: float, distance: float, lam: float) -> float:
    """xi* from how the teacher's risk changes with its own penalty: the sign rule.

    ``slope`` is R'(lam), ``distance`` D = E (f_PD - f_T)^2 under the same inputs as the risk.

    Equation::

        xi* = -lam R'(lam) / (2 D)

    so xi* > 0 where more penalty would help, < 0 where it would hurt, and 0 at the best lam. Holds because
    f_PD - f_T = lam df_T / dlam, for any squared risk.

    Source: Dang, Patil & Rinaldo, arXiv 2602.17565, 2026.

    >>> risk_weight(-2.0, 1.0, 0.5)
    0.5

    Raises:
        DataError: the distance or lam is not above 0.
    """
    return -positive(lam, "lam") * slope / (2.0 * positive(distance, "distance"))


def risk_gain(slope: float, distance: float, lam: float) -> float:
    """By how much the best xi lowers the teacher's risk: lam^2 R'^2 / (4 D), in units of the risk.

    Source: Dang, Patil & Rinaldo, arXiv 2602.17565, 2026.

    >>> risk_gain(-2.0, 1.0, 0.5)
    0.25

    Raises:
        DataError: the distance or lam is not above 0.
    """
    return (positive(lam, "lam") * slope) ** 2 / (4.0 * positive(distance, "distance"))


def gcv_weight(X: ArrayLike, y: ArrayLike, lam: float) -> float:
    """xi* estimated by generalised cross-validation: no split, no refit; X (n, d), y (n,).

    Equation::

        r_T = (I - H) y,  r_PD = (I - H^2) y,  c_T = 1 - tr H / n,  c_PD = 1 - tr H^2 / n
        R_T = |r_T|^2 / (n c_T^2),  R_PD = |r_PD|^2 / (n c_PD^2),  C = r_T'r_PD / (n c_T c_PD)
        xi = (R_T - C) / (R_T + R_PD - 2 C)

    Good where lam is moderate or large; at a tiny lam teacher and student hardly differ and the quotient is noise. In
    simulations (check T14) it lies further from 0 than the best xi, and `left_out_weight` is nearer to
    that. The formula is known here from public reproductions, not from the paper itself.

    Source: Dang, Patil & Rinaldo, arXiv 2602.17565, 2026.

    >>> round(gcv_weight([[1.0], [1.0], [1.0]], [1.0, 3.0, 2.0], 1.0), 3)
    -1.04

    Raises:
        DataError: shapes that do not belong together, lam not above 0, or estimates that do not differ.
    """
    inputs, labels = design(X, y)
    n, h = len(labels), smoother(inputs, lam)
    h2 = h @ h
    teacher = (labels - h @ labels) / (1.0 - np.trace(h) / n)
    student = (labels - h2 @ labels) / (1.0 - np.trace(h2) / n)
    risks = float(teacher @ teacher) / n, float(student @ student) / n, float(teacher @ student) / n
    return weight_from_risks(*risks)


def left_out_weight(X: ArrayLike, y: ArrayLike, lam: float) -> float:
    """xi* by leaving out each row in both rounds, without a refit; X (n, d), y (n,).

    Equation, with h_i and g_i the diagonals of H and H^2::

        e_T = (y - H y) / (1 - h),  e_PD = (y - H^2 y + (g - h) e_T) / (1 - h)
        xi = <e_T, e_T - e_PD> / |e_T - e_PD|^2

    e_T and e_PD are exactly the errors at row i of a teacher, and of its student, that have never seen row i.

    Source: derived; the first is Allen's PRESS, 1974, the second applies it twice: a label replaced by what
    the left-out model predicts there changes no prediction.

    >>> round(left_out_weight([[1.0], [1.0], [1.0]], [1.0, 3.0, 2.0], 1.0), 3)
    -0.96

    Raises:
        DataError: shapes that do not belong together, lam not above 0, or a student that equals its teacher.
    """
    inputs, labels = design(X, y)
    H = smoother(inputs, lam)
    h, g = np.diag(H), np.einsum("ij,ij->i", H, H)
    teacher = (labels - H @ labels) / (1.0 - h)
    student = (labels - H @ (H @ labels) + (g - h) * teacher) / (1.0 - h)
    return held_out_weight(teacher, np.zeros(len(labels)), teacher - student)


def flat_risk(lam: float, energy: float, ratio: float, noise: float) -> float:
    """Expected excess risk of ridge for a design with X'X / n = I; here lam is the penalty on X'X / n.

    ``energy`` = |beta|^2, ``ratio`` = d / n, ``noise`` = variance of the labels' noise.

    Equation::

        R = (lam^2 energy + ratio noise) / (1 + lam)^2

    Source: the isotropic case of Dang, Patil & Rinaldo, arXiv 2602.17565, 2026; derived for a fixed design.

    >>> flat_risk(1.0, 1.0, 0.5, 2.0)
    0.5

    Raises:
        DataError: lam is not above 0, or another argument is below 0.
    """
    _flat(lam, energy, ratio, noise)
    return (lam**2 * energy + ratio * noise) / (1.0 + lam) ** 2


def flat_weight(lam: float, energy: float, ratio: float, noise: float) -> float:
    """xi* for a design with X'X / n = I; arguments as for `flat_risk`.

    Equation::

        xi* = (ratio noise - lam energy) (1 + lam) / (lam (energy + ratio noise))

    Source: the isotropic case of Dang, Patil & Rinaldo, arXiv 2602.17565, 2026; derived for a fixed design.

    >>> flat_weight(1.0, 1.0, 0.5, 0.0)
    -2.0

    Raises:
        DataError: lam is not above 0, another argument is below 0, or signal and noise are both 0.
    """
    _flat(lam, energy, ratio, noise)
    scale = positive(energy + ratio * noise, "energy + ratio * noise")
    return (ratio * noise - lam * energy) * (1.0 + lam) / (lam * scale)


def flat_turning(energy: float, ratio: float, noise: float) -> float:
    """The lam at which xi* of `flat_weight` changes its sign: ratio noise / energy, the best penalty of plain ridge.

    Source: Dang, Patil & Rinaldo, arXiv 2602.17565, 2026.

    >>> flat_turning(1.0, 0.5, 2.0)
    1.0

    Raises:
        DataError: energy is not above 0.
    """
    return ratio * noise / positive(energy, "energy")


def _flat(lam: float, energy: float, ratio: float, noise: float) -> None:
    positive(lam, "lam")
    if not min(energy, ratio, noise) >= 0:
        raise DataError(f"energy {energy}, ratio {ratio} and noise {noise} must be 0 or more")


# noisy labels ---------------------------------------------------------------------------------------------------------


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
