"""Identities that hold for any model, against loops, numeric derivatives, integrals and draws."""

from __future__ import annotations

import math

import numpy as np

from .. import identities
from ..arrays import Array
from .identity import Identity, broken, relative_error

HINTON = "Hinton, Vinyals & Dean, arXiv 1503.02531, 2015"


def distributions(rng: np.random.Generator, *shape: int) -> Array:
    return rng.dirichlet(np.ones(shape[-1]), shape[:-1])


def surprise(target: Array, p: Array) -> float:
    """Cross-entropy of one row, by a plain loop."""
    return -math.fsum(t * math.log(q) for t, q in zip(target.tolist(), p.tolist(), strict=True) if t)


def squared(rng: np.random.Generator) -> float:
    largest = 0.0
    for xi in (-1.5, 0.0, 0.4, 1.0, 2.5):
        f, p, y = rng.standard_normal((3, 20))
        pair = xi * (p - f) ** 2 + (1 - xi) * (y - f) ** 2
        value = (identities.mixed_target(p, y, xi) - f) ** 2 + identities.squared_remainder(p, y, xi)
        largest = max(largest, relative_error(value, pair))
    return largest


def linear(rng: np.random.Generator) -> float:
    largest = 0.0
    for xi in (-0.5, 0.3, 1.0, 1.7):
        p, q, y = distributions(rng, 8, 5), distributions(rng, 8, 5), np.eye(5)[rng.integers(0, 5, 8)]
        pair = [xi * surprise(a, b) + (1 - xi) * surprise(c, b) for a, b, c in zip(p, q, y, strict=True)]
        largest = max(largest, relative_error(identities.cross_entropy(identities.mixed_target(p, y, xi), q), pair))
    return largest


def divergence(rng: np.random.Generator) -> float:
    p, q = distributions(rng, 8, 5), distributions(rng, 8, 5)
    pairs = [zip(a.tolist(), b.tolist(), strict=True) for a, b in zip(p, q, strict=True)]
    expected = [sum(s * math.log(s / t) for s, t in pair) for pair in pairs]
    return relative_error(identities.cross_entropy(p, q) - identities.entropy(p), expected)


def smoothing(rng: np.random.Generator) -> float:
    q, y, xi = distributions(rng, 8, 5), rng.integers(0, 5, 8), 0.1
    expected = [(1 - xi) * -math.log(row[c]) + xi / 5 * -sum(map(math.log, row)) for row, c in zip(q, y, strict=True)]
    uniform = np.full((8, 5), 0.2)
    return relative_error(identities.cross_entropy(identities.mixed_target(uniform, np.eye(5)[y], xi), q), expected)


def gradient(rng: np.random.Generator) -> float:
    """Complex steps: a derivative to full precision, without a difference."""
    largest = 0.0
    for temperature in (1.0, 4.0, 20.0):
        z, v = rng.standard_normal((2, 6))
        t = np.exp(v / temperature) / np.exp(v / temperature).sum()
        expected = []
        for c in range(6):
            shifted = z.astype(complex)
            shifted[c] += 1e-20j
            log_p = shifted / temperature - np.log(np.exp(shifted / temperature).sum())
            expected.append(float((temperature**2 * (t * (np.log(t) - log_p)).sum()).imag) / 1e-20)
        largest = max(largest, relative_error(identities.temperature_gradient(z, v, temperature), expected))
    return largest


def limit(rng: np.random.Generator) -> float:
    """Extrapolated from 1/T = 1/1000 and 1/2000 to 0; what is left is of order 1/T^2."""
    z, v = rng.standard_normal((2, 6)) + np.array([[3.0], [-1.0]])
    hot, hotter = (identities.temperature_gradient(z, v, t) for t in (1000.0, 2000.0))
    limits = identities.temperature_limit(z, v)
    gaps = [relative_error(value, limits) for value in (hot, hotter)]
    halves = broken(abs(gaps[0] / gaps[1] - 2.0) < 0.05)
    return max(relative_error(2 * hotter - hot, limits), halves)


def gaussian(rng: np.random.Generator) -> float:
    """By quadrature over twelve standard deviations: the trapezoidal rule is exact to rounding for such integrands."""
    largest = 0.0
    for _ in range(10):
        m1, m2 = rng.standard_normal(2)
        s1, s2 = rng.uniform(0.5, 2.0, 2)
        x = m1 + s1 * np.linspace(-12, 12, 4001)

        def log_density(m: float, s: float, x: Array = x) -> Array:
            return np.asarray(-((x - m) ** 2) / (2 * s**2) - math.log(s * math.sqrt(2 * math.pi)))

        integrand = np.exp(log_density(m1, s1)) * (log_density(m1, s1) - log_density(m2, s2))
        expected = float(integrand.sum() * (x[1] - x[0]))
        largest = max(largest, relative_error(identities.gaussian_kl(m1, s1, m2, s2), expected))
    return largest


def moments(rng: np.random.Generator) -> float:
    """Mean and variance of the mixture's density, by quadrature; and the matched normal is the nearest one."""
    m, s = rng.standard_normal(5), rng.uniform(0.5, 2.0, 5)
    x = np.linspace(-30, 30, 20001)
    density = np.mean(
        [np.exp(-((x - a) ** 2) / (2 * b**2)) / (b * math.sqrt(2 * math.pi)) for a, b in zip(m, s, strict=True)], axis=0
    )
    step = x[1] - x[0]
    mean = float((x * density).sum() * step)
    variance = float(((x - mean) ** 2 * density).sum() * step)
    average, aleatoric, epistemic = identities.moment_matched(m, s)

    def surprise_of(a: float, v: float) -> float:
        return float((density * ((x - a) ** 2 / v + math.log(v))).sum() * step)

    neighbours = [
        surprise_of(average + da, (aleatoric + epistemic) * dv) for da in (-0.1, 0.0, 0.1) for dv in (0.9, 1.0, 1.1)
    ]
    return max(
        relative_error([average, aleatoric + epistemic], [mean, variance]), broken(min(neighbours) == neighbours[4])
    )


def ambiguous(rng: np.random.Generator) -> float:
    largest = 0.0
    for members in (1, 2, 7):
        f, y = rng.standard_normal((members, 12)), rng.standard_normal(12)
        mean = sum(f) / members
        expected = sum((row - y) ** 2 for row in f) / members - (mean - y) ** 2
        largest = max(largest, float(np.abs(identities.ambiguity(f) - expected).max()))
    return largest


def disagreement(rng: np.random.Generator) -> float:
    """The mean divergence of members from their mean; never below 0, and 0 where all agree."""
    p = distributions(rng, 4, 9, 5)
    mean = (p[0] + p[1] + p[2] + p[3]) / 4
    expected = [sum(surprise(p[k, i], mean[i]) - surprise(p[k, i], p[k, i]) for k in range(4)) / 4 for i in range(9)]
    equal = float(np.abs(identities.bald(np.stack([p[0]] * 4))).max())
    return max(relative_error(identities.bald(p), expected), equal, broken(bool((identities.bald(p) > 0).all())))


IDENTITIES = [
    Identity(
        "squared losses",
        "two squared losses are one at the mixed target plus xi (1 - xi)(p - y)^2, any real xi",
        "Das & Sanghavi, ICML 2023; algebra",
        squared,
    ),
    Identity("cross-entropies", "two cross-entropies are one at the mixed target", HINTON, linear),
    Identity("divergence", "KL(t || q) = CE(t, q) - H(t)", "Kullback, 1959", divergence),
    Identity("label smoothing", "is a uniform teacher", "Szegedy et al., CVPR 2016", smoothing),
    Identity("temperature gradient", "of T^2 KL is T (q - t)", HINTON, gradient),
    Identity(
        "temperature limit",
        "(z - v) / N for centred logits, with an error that falls as 1 / T",
        HINTON,
        limit,
        tolerance=1e-5,
    ),
    Identity("Gaussian KL", "in closed form", "Kullback, 1959", gaussian),
    Identity(
        "moment matching",
        "mean and variance of an ensemble of normals, and the nearest normal",
        "Lakshminarayanan, Pritzel & Blundell, NeurIPS 2017",
        moments,
    ),
    Identity(
        "ambiguity",
        "the ensemble's error is its members' mean error less their spread",
        "Krogh & Vedelsby, NIPS 1995",
        ambiguous,
    ),
    Identity(
        "BALD", "is the members' mean divergence from their mean", "Houlsby et al., arXiv 1112.5745, 2011", disagreement
    ),
]
