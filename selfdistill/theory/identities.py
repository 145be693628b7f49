"""Identities of losses and ensembles that hold for any model.

Target = xi x teacher + (1 - xi) x label. Logarithms are natural, so entropies are in nats.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DataError
from .arrays import Array, array, design, positive


def mixed_target(teacher: ArrayLike, label: ArrayLike, xi: float) -> Array:
    """xi teacher + (1 - xi) label, of their common shape.

    >>> mixed_target([1.0, 0.0], [0.0, 1.0], 0.25)
    array([0.25, 0.75])

    Raises:
        DataError: the shapes differ.
    """
    scale, second = np.asarray(teacher, np.float64), np.asarray(label, np.float64)
    if scale.shape != second.shape:
        raise DataError(f"teacher has shape {scale.shape} and label {second.shape}; give two of one shape")
    return xi * scale + (1.0 - xi) * second


def squared_remainder(teacher: ArrayLike, label: ArrayLike, xi: float) -> Array:
    """The difference of two squared losses and the loss of the mixed target; it does not depend on the student.

    Equation::

        xi (p - f)^2 + (1 - xi)(y - f)^2 = (t - f)^2 + xi (1 - xi)(p - y)^2,   t = xi p + (1 - xi) y, any real xi

    Source: algebra; the step from two losses to one target in Das & Sanghavi, ICML 2023.

    >>> squared_remainder([3.0], [1.0], 0.5)
    array([1.])

    Raises:
        DataError: the shapes differ.
    """
    mixed_target(teacher, label, xi)
    return xi * (1.0 - xi) * (np.asarray(teacher, np.float64) - np.asarray(label, np.float64)) ** 2


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Array:
    """exp(z / T), normalised over the last axis.

    >>> softmax([0.0, 0.0])
    array([0.5, 0.5])

    Raises:
        DataError: the temperature is not above 0.
    """
    z = np.asarray(logits, np.float64) / positive(temperature, "temperature")
    powers = np.exp(z - z.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def entropy(p: ArrayLike) -> Array:
    """-sum_c p_c log p_c over the last axis, in nats, with 0 log 0 = 0.

    >>> entropy([[0.5, 0.5], [1.0, 0.0]]).round(4)
    array([0.6931, 0.    ])
    """
    return cross_entropy(p, p)


def cross_entropy(target: ArrayLike, p: ArrayLike) -> Array:
    """-sum_c t_c log p_c over the last axis, in nats; linear in the target, so losses mix as targets do.

    Equation::

        xi CE(p, q) + (1 - xi) CE(y, q) = CE(xi p + (1 - xi) y, q),   KL(t || q) = CE(t, q) - H(t)

    A uniform teacher at weight xi is label smoothing by xi (Szegedy et al., CVPR 2016, mass spread over all classes).

    Source: Hinton, Vinyals & Dean, arXiv 1503.02531, 2015.

    >>> cross_entropy([[1.0, 0.0]], [[0.5, 0.5]]).round(4)
    array([0.6931])
    """
    t, q = np.asarray(target, np.float64), np.asarray(p, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(0.0 - np.where(t == 0, 0.0, t * np.log(q)).sum(-1))


def temperature_gradient(student: ArrayLike, teacher: ArrayLike, temperature: float) -> Array:
    """Gradient in the student's logits z of T^2 KL(softmax(v / T) || softmax(z / T)), v the teacher's.

    Equation::

        T (softmax(z / T) - softmax(v / T))

    Source: Hinton, Vinyals & Dean, arXiv 1503.02531, 2015, section 2.1.

    >>> temperature_gradient([0.0, 0.0], [0.0, 0.0], 4.0)
    array([0., 0.])

    Raises:
        DataError: the temperature is not above 0.
    """
    return temperature * (softmax(student, temperature) - softmax(teacher, temperature))


def temperature_limit(student: ArrayLike, teacher: ArrayLike) -> Array:
    """The limit of `temperature_gradient` as T grows: (z - mean z - v + mean v) / N; its error falls as 1 / T.

    Source: Hinton, Vinyals & Dean, arXiv 1503.02531, 2015, section 2.1, for logits of mean zero.

    >>> temperature_limit([2.0, 0.0], [0.0, 0.0])
    array([ 0.5, -0.5])
    """
    difference = np.asarray(student, np.float64) - np.asarray(teacher, np.float64)
    return np.asarray((difference - difference.mean(-1, keepdims=True)) / difference.shape[-1])


def gaussian_kl(mean: float, std: float, other_mean: float, other_std: float) -> float:
    """KL(N(mean, std^2) || N(other_mean, other_std^2)) in nats.

    Equation::

        log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1 / 2

    Source: Kullback, Information Theory and Statistics, 1959.

    >>> gaussian_kl(0.0, 1.0, 1.0, 1.0)
    0.5

    Raises:
        DataError: a standard deviation is not above 0.
    """
    s1, s2 = positive(std, "std"), positive(other_std, "other_std")
    return math.log(s2 / s1) + (s1**2 + (mean - other_mean) ** 2) / (2 * s2**2) - 0.5


def moment_matched(means: ArrayLike, stds: ArrayLike) -> tuple[float, float, float]:
    """Mean of an even mixture of K normals, and its variance in two parts: within (aleatoric), between (epistemic).

    The one normal with the mixture's mean and variance has variance within + between.

    Equation::

        m = mean m_k,   within = mean s_k^2,   between = mean m_k^2 - m^2

    Source: Lakshminarayanan, Pritzel & Blundell, Deep ensembles, NeurIPS 2017; law of total variance.

    >>> moment_matched([-1.0, 1.0], [1.0, 1.0])
    (0.0, 1.0, 1.0)

    Raises:
        DataError: no member, or shapes that differ.
    """
    m, s = array(means, "means", 1), array(stds, "stds", 1)
    if m.shape != s.shape:
        raise DataError(f"{len(m)} means and {len(s)} standard deviations; give one of each for each member")
    return float(m.mean()), float((s**2).mean()), float(m.var())


def ambiguity(members: ArrayLike) -> Array:
    """mean_k (f_k - f)^2 for members (K, ...), f their mean: by how much f is better than the average member.

    Equation::

        (f - y)^2 = mean_k (f_k - y)^2 - mean_k (f_k - f)^2

    It bounds what peers can teach one another by averaging.

    Source: Krogh & Vedelsby, Neural network ensembles, cross validation, and active learning, NIPS 1995.

    >>> ambiguity([[1.0], [3.0]])
    array([1.])
    """
    return np.asarray(np.asarray(members, np.float64).var(axis=0))


def bald(p: ArrayLike) -> Array:
    """Disagreement H(mean_k p_k) - mean_k H(p_k) of members (K, ..., classes), in nats: 0 only where all agree.

    Source: Houlsby, Huszar, Ghahramani & Lengyel, Bayesian active learning by disagreement, arXiv 1112.5745, 2011.

    >>> bald([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.5, 0.5]]]).round(4)
    array([0.6931, 0.    ])
    """
    p_members = np.asarray(p, np.float64)
    return np.asarray(entropy(p_members.mean(axis=0)) - entropy(p_members).mean(axis=0))


def peers_fixed_point(smoother: ArrayLike, peer: ArrayLike, y: ArrayLike, xi: float) -> Array:
    """Fitted values (n,) of a model whose teacher is a peer that it teaches in turn; smoothers (n, n), labels (n,).

    Equation::

        f1 = (I - xi^2 H1 H2)^-1 H1 ((1 - xi) y + xi (1 - xi) H2 y)

    With equal smoothers this is self-distillation's fixed point, plain ridge at lam / (1 - xi): peers that do not
    differ teach each other nothing.

    Source: derived from f1 = H1 (xi f2 + (1 - xi) y) and its mirror; the setting is Zhang et al., Deep mutual learning,
    CVPR 2018, in the linear case.

    >>> peers_fixed_point([[0.5]], [[0.5]], [3.0], 0.5)
    array([1.])

    Raises:
        DataError: shapes that do not belong together, or rounds that do not contract.
    """
    first, labels = design(smoother, y)
    second, _ = design(peer, y)
    if first.shape != second.shape or first.shape[0] != first.shape[1]:
        raise DataError(f"smoothers have shapes {first.shape} and {second.shape}; give two of (n, n)")
    factor = xi**2 * float(np.abs(np.linalg.eigvals(first @ second)).max(initial=0.0))
    if not factor < 1:
        raise DataError(
            f"xi is {xi}, and two rounds multiply the distance from the fixed point by {factor:.3g}: they move away "
            "from it; take an xi nearer to 0"
        )
    target = (1 - xi) * labels + xi * (1 - xi) * second @ labels
    return np.asarray(np.linalg.solve(np.eye(len(labels)) - xi**2 * first @ second, first @ target))
