"""Repetition against simulation: U-shaped risk, stopping, replacing, accumulating, mixing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .. import repetition
from ..arrays import Array
from ..simulate import mixed_labels, regenerated, self_trained, spiked_excess
from .identity import Identity, broken, each_error, relative_error

WU = "Wu, Yang & Sun, arXiv 2602.14029, 2026"


GERSTGRASSER = "Gerstgrasser et al., arXiv 2404.01413, 2024"


HE = "He, Xu & Cheng, arXiv 2502.18049, 2025"

ROWS, DIMENSION = 400, 800


STRENGTH, ENERGY, NOISE = 20.0, 1.0, 4.0


OVERHANG = DIMENSION / ROWS - 1


ROUNDS, REPLICATES = 6, 40


def trained(rng: np.random.Generator) -> Array:
    """Simulated excess risk, (replicates, rounds + 1)."""
    risks = []
    for _ in range(REPLICATES):
        betas = self_trained(rng, ROWS, DIMENSION, STRENGTH, ENERGY, NOISE, ROUNDS)
        risks.append([spiked_excess(beta, STRENGTH, ENERGY) for beta in betas])
    return np.array(risks)


def u_shape(rng: np.random.Generator) -> float:
    measured = trained(rng).mean(axis=0)
    closed_form = repetition.spike_risks(ROUNDS, STRENGTH, ENERGY, OVERHANG, NOISE)
    minimum = repetition.stopping_time(STRENGTH, ENERGY, OVERHANG, NOISE)
    return max(each_error(closed_form, measured), broken(minimum == int(measured.argmin())))


def recursion(rng: np.random.Generator) -> float:
    """The sum against the recursion it solves, also where rho^2 = q (strength 3, tau 3); and no U without a spike."""
    largest = 0.0
    for strength, tau, noise in [(20.0, 1.0, 4.0), (1.6, 0.5, 0.0), (3.0, 3.0, 2.0)]:
        q, rho, remaining = 1 / (1 + tau), strength / (strength + tau), noise / tau * (1 + tau)
        closed_form, expected = [], []
        for t in range(12):
            remaining = q * remaining + tau / strength * rho ** (2 * t + 2)
            closed_form.append(repetition.spike_noise(t, strength, 1.0, tau, noise))
            expected.append(remaining)
        largest = max(largest, relative_error(closed_form, expected))
    for noise in rng.uniform(0.0, 5.0, 20):
        tau = float(rng.uniform(0.2, 4.0))
        q, risks = 1 / (1 + tau), repetition.spike_risks(8, 1.0, 1.0, tau, float(noise))
        largest = max(largest, relative_error(risks, [1 + q**t * (noise / tau - q) for t in range(9)]))
    return largest


def stopping(rng: np.random.Generator) -> float:
    """How many rounds the rule, reading noisy errors of 2000 held-out rows, stops off the time told."""
    closed_form, errors = repetition.stopping_time(STRENGTH, ENERGY, OVERHANG, NOISE), []
    for _ in range(9):
        betas = self_trained(rng, ROWS, DIMENSION, STRENGTH, ENERGY, NOISE, ROUNDS)
        X = rng.standard_normal((2000, DIMENSION))
        X[:, 0] *= STRENGTH**0.5
        y = ENERGY**0.5 * X[:, 0] + NOISE**0.5 * rng.standard_normal(2000)
        errors.append(
            abs(
                repetition.first_rise([float(((y - X @ beta.sum(axis=0)) ** 2).mean()) for beta in betas]) - closed_form
            )
        )
    return float(np.median(errors))


def generations(
    rng: np.random.Generator, accumulate: bool, rows: int = 60, dimension: int = 10, final: int = 6
) -> Array:
    runs = [regenerated(rng, rows, dimension, 1.0, final, accumulate=accumulate) for _ in range(3000)]
    return np.array(np.mean(runs, axis=0))


def replaced(rng: np.random.Generator) -> float:
    """Each generation's error; the slope of them in units of one generation's error must be 1 as well."""
    measured = generations(rng, accumulate=False)
    first_error = repetition.replaced_error(1, 60, 10, 1.0)
    slope = float(np.polyfit(np.arange(1, 7), measured / first_error, 1)[0])
    return max(each_error([repetition.replaced_error(n, 60, 10, 1.0) for n in range(1, 7)], measured), abs(slope - 1.0))


def accumulated(rng: np.random.Generator) -> float:
    return each_error(
        [repetition.accumulated_error(n, 60, 10, 1.0) for n in range(1, 7)], generations(rng, accumulate=True)
    )


def bounded(rng: np.random.Generator) -> float:
    """The exact error never exceeds the bound, nor this its limit; in one case the first is done by hand."""
    bounds_hold = []
    for rows, dimension in [(12, 10), (60, 10), (5, 1)]:
        limit = repetition.accumulated_bound(None, rows, dimension, 2.0)
        closed_form = [repetition.accumulated_error(n, rows, dimension, 2.0) for n in range(1, 200)]
        bounds = [repetition.accumulated_bound(n, rows, dimension, 2.0) for n in range(1, 200)]
        bounds_hold += [a <= b * (1 + 1e-12) <= limit * (1 + 2e-12) for a, b in zip(closed_form, bounds, strict=True)]
        bounds_hold += [current < later for current, later in pairwise(closed_form)]
    by_hand = 2.0 * 1 / 3 + 2.0 * 1 / (2 * 8)
    return max(broken(*bounds_hold), relative_error(repetition.accumulated_error(2, 5, 1, 2.0), by_hand))


def mixed(rng: np.random.Generator) -> float:
    weights = (0.3, repetition.GOLDEN, 1.0)
    measured = [mixed_labels(rng, w, 1.5, 40_000, 40) for w in weights]
    return each_error([repetition.mixing_variance(w, 1.5) for w in weights], measured)


def golden(rng: np.random.Generator) -> float:
    """Ternary search for the weight of least variance, over the recursion run to its end."""

    def settled(w: float) -> float:
        v = 0.0
        for _ in range(400):
            v = w**2 + (1 - w) ** 2 * (v + 1.0)
        return v

    low, high = 0.3, 0.9
    for _ in range(100):
        initial, second = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, second) if settled(initial) < settled(second) else (initial, high)
    largest = max(relative_error(repetition.mixing_variance(w), settled(w)) for w in rng.uniform(0.2, 1.2, 20))
    least = settled(repetition.GOLDEN)
    neighbours = broken(
        abs((low + high) / 2 - repetition.GOLDEN) < 1e-7
    )  # a flat minimum is found to the root of the precision
    return max(
        largest,
        neighbours,
        relative_error(repetition.GOLDEN, least),
        relative_error(repetition.mixing_variance(repetition.GOLDEN), least),
    )


IDENTITIES = [
    Identity(
        "T15 U-shape",
        "forgetting + noise is the risk of each round, least in the same round",
        WU,
        u_shape,
        "Monte Carlo",
        0.08,
    ),
    Identity("T15 recursion", "the noise's sum solves its recursion; without a spike the risk has no U", WU, recursion),
    Identity(
        "T16 stopping",
        "the first rise of held-out errors stops within a round of the best",
        f"{WU}; Prechelt, 1998",
        stopping,
        "Monte Carlo",
        1.0,
        "rounds",
    ),
    Identity("T17 replace", "error n d / (T - d - 1): a slope of 1", GERSTGRASSER, replaced, "Monte Carlo", 0.05),
    Identity(
        "T17 accumulate",
        "error d sum 1 / (i (i T - d - 1))",
        f"{GERSTGRASSER}; derived",
        accumulated,
        "Monte Carlo",
        0.05,
    ),
    Identity("T17 bound", "which never exceeds d / (T - d - 1) sum 1 / i^2", GERSTGRASSER, bounded),
    Identity("T18 mixing", "the variance at which mixing real and own labels settles", HE, mixed, "Monte Carlo", 0.05),
    Identity(
        "T18 golden ratio", "it is least at a weight of (sqrt 5 - 1) / 2 on the real ones, and is as much", HE, golden
    ),
]
