"""Repeated ridge: power law, collapse, fixed point, several steps, peers. The reference solves every round anew."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .. import identities, multi_step
from .. import repeated_ridge as rounds
from ..simulate import distilled, solved
from .identity import Identity, broken, regression, relative_error, vertex

LAMS = (0.3, 3.0, 30.0)


MOBAHI = "Mobahi, Farajtabar & Bartlett, NeurIPS 2020"


BORUP = "Borup & Andersen, NeurIPS 2021"


PAREEK = "Pareek, Du & Oh, NeurIPS 2024"


def power(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    largest = 0.0
    for lam in LAMS:
        for k, beta in enumerate(distilled(X, y, lam, [1.0] * 5)):
            largest = max(largest, relative_error(rounds.power_law(X, y, lam, k), X @ beta))
    return largest


def collapse(rng: np.random.Generator) -> float:
    """The rule fires in the very round that the power law says, and after 200 rounds nothing is left."""
    X, y, _ = regression(rng)
    lam = 30.0
    norms = [float(np.linalg.norm(X @ beta)) for beta in distilled(X, y, lam, [1.0] * 200)]
    shares = (0.5, 0.1, 0.01)
    fired = [rounds.collapsed_after(norms, share) for share in shares]
    predicted = [rounds.rounds_to_collapse(X, y, lam, share) for share in shares]
    remaining = float(np.linalg.norm(rounds.power_law(X, y, lam, 200)))
    return max(broken(fired == predicted), remaining / norms[0], abs(remaining - norms[200]) / norms[0])


def freedom(rng: np.random.Generator) -> float:
    X, _, _ = regression(rng)
    largest = 0.0
    for lam in LAMS:
        h = X @ np.linalg.solve(X.T @ X + lam * np.eye(X.shape[1]), X.T)
        expected = [float(np.trace(np.linalg.matrix_power(h, k + 1))) for k in range(12)]
        measured = [rounds.degrees_of_freedom(X, lam, k) for k in range(12)]
        falls = all(later < current for current, later in pairwise(measured))
        largest = max(largest, relative_error(measured, expected), broken(falls))
    return largest


def fixed(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    largest = 0.0
    for lam in LAMS:
        for xi in (-0.5, 0.0, 0.3, 0.9):
            assert rounds.contraction(X, lam, xi) < 1
            final = distilled(X, y, lam, [xi] * 400)[-1]
            largest = max(largest, relative_error(rounds.fixed_point(X, y, lam, xi), final))
    return largest


def speed(rng: np.random.Generator) -> float:
    """The factor is the size of the largest eigenvalue of xi H, and no round comes closer by less than it says."""
    X, y, _ = regression(rng)
    largest = 0.0
    for lam in LAMS:
        for xi in (-0.5, 0.3, 0.9):
            factor = rounds.contraction(X, lam, xi)
            eigenvalues = np.linalg.eigvals(xi * X @ np.linalg.solve(X.T @ X + lam * np.eye(X.shape[1]), X.T))
            end = X @ solved(X, y, lam / (1 - xi))
            gaps = [float(np.linalg.norm(X @ beta - end)) for beta in distilled(X, y, lam, [xi] * 10)]
            slow = [later <= factor * current + 1e-12 * gaps[0] for current, later in pairwise(gaps)]
            largest = max(largest, relative_error(factor, np.abs(eigenvalues).max()), broken(*slow))
    return largest


def reparametrised(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    largest = 0.0
    for lam in LAMS:
        for k in (1, 2, 3, 5):
            xis = rng.uniform(-1.5, 1.5, k)
            b = multi_step.step_weights(xis)
            largest = max(
                largest, relative_error(multi_step.stepped(X, y, lam, b), distilled(X, y, lam, list(xis))[-1])
            )
            largest = max(largest, relative_error(multi_step.step_imitation(b), xis))
    return largest


def oracle(rng: np.random.Generator) -> float:
    """r steps reach the best linear method, whose excess is found by scanning each direction by itself."""
    largest = 0.0
    for r in (2, 3, 4):
        s, a, noise = np.linspace(1.0, 3.0, r), rng.standard_normal(r), 1.7
        b = multi_step.best_steps(s, a, noise, 2.0, r)
        value = multi_step.fixed_design_excess(s, a, noise, multi_step.step_shrinkage(s, 2.0, b))
        expected = 0.0
        for size, signal in zip(s, a, strict=True):  # the risk of keeping w = -1, 0, 1 of this direction alone
            three = [size**2 * (1 - w) ** 2 * signal**2 + w**2 * noise for w in (-1, 0, 1)]
            w = vertex(*three)
            expected += size**2 * (1 - w) ** 2 * signal**2 + w**2 * noise
        largest = max(
            largest, relative_error(value, expected), relative_error(multi_step.least_excess(s, a, noise), expected)
        )
    return largest


def equal_values(rng: np.random.Generator) -> float:
    """With equal singular values the best of 1, 2, 3 steps is what a search over plain ridge's penalty finds."""
    r, value, noise = 4, 1.5, 0.8
    s, a = np.full(r, value), rng.standard_normal(r)
    ridges = [
        multi_step.fixed_design_excess(s, a, noise, rounds.shrinkage(s, lam)) for lam in np.geomspace(1e-3, 1e3, 20001)
    ]
    penalty = multi_step.equal_values_penalty(value, a, noise)
    excess = multi_step.fixed_design_excess(s, a, noise, rounds.shrinkage(s, penalty))
    largest = broken(excess <= min(ridges) * (1 + 1e-12))
    for k in (1, 2, 3):
        mask = multi_step.step_shrinkage(s, 0.7, multi_step.best_steps(s, a, noise, 0.7, k))
        largest = max(largest, relative_error(multi_step.fixed_design_excess(s, a, noise, mask), excess))
    return largest


def peers(rng: np.random.Generator) -> float:
    """Two models in turn until nothing moves: equal ones end at plain ridge, different ones at the closed form."""
    X, y, _ = regression(rng)
    X_peer, lam, xi = X[:, :3], 2.0, 0.6
    largest = 0.0
    for second in (X, X_peer):
        f1, f2 = np.zeros(len(y)), np.zeros(len(y))
        for _ in range(300):
            f1, f2 = (
                X @ solved(X, xi * f2 + (1 - xi) * y, lam),
                second @ solved(second, xi * f1 + (1 - xi) * y, lam),
            )
        value = identities.peers_fixed_point(rounds.smoother(X, lam), rounds.smoother(second, lam), y, xi)
        largest = max(largest, relative_error(value, f1))
        if second is X:
            largest = max(largest, relative_error(value, X @ solved(X, y, lam / (1 - xi))))
        else:
            largest = max(largest, broken(relative_error(value, X @ solved(X, y, lam / (1 - xi))) > 1e-3))
    return largest


def recipe(rng: np.random.Generator) -> float:
    """Least squares on held-out rows finds no worse xi's than a search over a grid of them does."""
    X, y, beta = regression(rng)
    X_v = rng.standard_normal((40, X.shape[1]))
    y_v = X_v @ beta + rng.standard_normal(40)
    predictions = np.stack([X_v @ b for b in distilled(X, y, 5.0, [1.0, 1.0])])
    xis = multi_step.step_imitation(multi_step.fitted_weights(predictions, y_v))
    least = float(((y_v - X_v @ distilled(X, y, 5.0, list(xis))[-1]) ** 2).sum())
    grid = [xi + shift for xi in xis for shift in (-0.2, -0.01, 0.0, 0.01, 0.2)]
    losses = [((y_v - X_v @ distilled(X, y, 5.0, [u, v])[-1]) ** 2).sum() for u in grid for v in grid]
    b = multi_step.step_weights(xis)
    mixed = (1 - b.sum()) * predictions[0] + b @ predictions[1:]
    return max(broken(least <= min(losses) * (1 + 1e-12)), relative_error(((y_v - mixed) ** 2).sum(), least))


IDENTITIES = [
    Identity("T1 power law", "k pure rounds fit U diag(h^(k+1)) U'y", MOBAHI, power),
    Identity(
        "T2 collapse",
        "pure rounds end at zero, and the norm rule fires in the round that the power law says",
        MOBAHI,
        collapse,
    ),
    Identity("T3 degrees of freedom", "sum h^(k+1) is the trace of H^(k+1) and falls every round", MOBAHI, freedom),
    Identity("T4 fixed point", "constant xi ends at plain ridge with lam / (1 - xi)", BORUP, fixed),
    Identity("T4 contraction", "each round comes closer to it by the factor xi max h", BORUP, speed),
    Identity(
        "T6 several steps",
        "k steps are a polynomial in the smoother, and xi and b tell each other",
        PAREEK,
        reparametrised,
    ),
    Identity("T6 recipe", "least squares on held-out rounds gives the best xi's", PAREEK, recipe),
    Identity("T7 oracle", "r steps reach the best linear method, for r <= 4 different singular values", PAREEK, oracle),
    Identity(
        "T8 equal values", "with equal singular values no number of steps beats tuned ridge", PAREEK, equal_values
    ),
    Identity(
        "T19 peers",
        "equal peers end at plain ridge, different peers elsewhere",
        "Zhang et al., CVPR 2018; derived",
        peers,
    ),
]
