"""Repeated ridge: power law, collapse, fixed point, several steps, peers. The reference solves every round anew."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .. import identities, multi_step
from .. import repeated_ridge as rounds
from ..simulate import distilled, solved
from .identity import Identity, apart, broken, regression, vertex

LAMS = (0.3, 3.0, 30.0)


MOBAHI = "Mobahi, Farajtabar & Bartlett, NeurIPS 2020"


BORUP = "Borup & Andersen, NeurIPS 2021"


PAREEK = "Pareek, Du & Oh, NeurIPS 2024"


def power(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    worst = 0.0
    for lam in LAMS:
        for k, beta in enumerate(distilled(X, y, lam, [1.0] * 5)):
            worst = max(worst, apart(rounds.power_law(X, y, lam, k), X @ beta))
    return worst


def collapse(rng: np.random.Generator) -> float:
    """The rule fires in the very round that the power law says, and after 200 rounds nothing is left."""
    X, y, _ = regression(rng)
    lam = 30.0
    norms = [float(np.linalg.norm(X @ beta)) for beta in distilled(X, y, lam, [1.0] * 200)]
    shares = (0.5, 0.1, 0.01)
    fired = [rounds.collapsed_after(norms, share) for share in shares]
    said = [rounds.rounds_to_collapse(X, y, lam, share) for share in shares]
    left = float(np.linalg.norm(rounds.power_law(X, y, lam, 200)))
    return max(broken(fired == said), left / norms[0], abs(left - norms[200]) / norms[0])


def freedom(rng: np.random.Generator) -> float:
    X, _, _ = regression(rng)
    worst = 0.0
    for lam in LAMS:
        h = X @ np.linalg.solve(X.T @ X + lam * np.eye(X.shape[1]), X.T)
        wanted = [float(np.trace(np.linalg.matrix_power(h, k + 1))) for k in range(12)]
        found = [rounds.degrees_of_freedom(X, lam, k) for k in range(12)]
        falls = all(later < now for now, later in pairwise(found))
        worst = max(worst, apart(found, wanted), broken(falls))
    return worst


def fixed(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    worst = 0.0
    for lam in LAMS:
        for xi in (-0.5, 0.0, 0.3, 0.9):
            assert rounds.contraction(X, lam, xi) < 1
            last = distilled(X, y, lam, [xi] * 400)[-1]
            worst = max(worst, apart(rounds.fixed_point(X, y, lam, xi), last))
    return worst


def speed(rng: np.random.Generator) -> float:
    """The factor is the size of the largest eigenvalue of xi H, and no round comes closer by less than it says."""
    X, y, _ = regression(rng)
    worst = 0.0
    for lam in LAMS:
        for xi in (-0.5, 0.3, 0.9):
            factor = rounds.contraction(X, lam, xi)
            eigenvalues = np.linalg.eigvals(xi * X @ np.linalg.solve(X.T @ X + lam * np.eye(X.shape[1]), X.T))
            end = X @ solved(X, y, lam / (1 - xi))
            gaps = [float(np.linalg.norm(X @ beta - end)) for beta in distilled(X, y, lam, [xi] * 10)]
            slow = [later <= factor * now + 1e-12 * gaps[0] for now, later in pairwise(gaps)]
            worst = max(worst, apart(factor, np.abs(eigenvalues).max()), broken(*slow))
    return worst


def reparametrised(rng: np.random.Generator) -> float:
    X, y, _ = regression(rng)
    worst = 0.0
    for lam in LAMS:
        for k in (1, 2, 3, 5):
            xis = rng.uniform(-1.5, 1.5, k)
            b = multi_step.step_weights(xis)
            worst = max(worst, apart(multi_step.stepped(X, y, lam, b), distilled(X, y, lam, list(xis))[-1]))
            worst = max(worst, apart(multi_step.step_imitation(b), xis))
    return worst


def oracle(rng: np.random.Generator) -> float:
    """r steps reach the best linear method, whose excess is found by scanning each direction by itself."""
    worst = 0.0
    for r in (2, 3, 4):
        s, a, noise = np.linspace(1.0, 3.0, r), rng.standard_normal(r), 1.7
        b = multi_step.best_steps(s, a, noise, 2.0, r)
        found = multi_step.fixed_design_excess(s, a, noise, multi_step.step_shrinkage(s, 2.0, b))
        wanted = 0.0
        for size, signal in zip(s, a, strict=True):  # the risk of keeping w = -1, 0, 1 of this direction alone
            three = [size**2 * (1 - w) ** 2 * signal**2 + w**2 * noise for w in (-1, 0, 1)]
            w = vertex(*three)
            wanted += size**2 * (1 - w) ** 2 * signal**2 + w**2 * noise
        worst = max(worst, apart(found, wanted), apart(multi_step.least_excess(s, a, noise), wanted))
    return worst


def equal_values(rng: np.random.Generator) -> float:
    """With equal singular values the best of 1, 2, 3 steps is what a search over plain ridge's penalty finds."""
    r, value, noise = 4, 1.5, 0.8
    s, a = np.full(r, value), rng.standard_normal(r)
    ridges = [
        multi_step.fixed_design_excess(s, a, noise, rounds.shrinkage(s, lam)) for lam in np.geomspace(1e-3, 1e3, 20001)
    ]
    best = multi_step.equal_values_penalty(value, a, noise)
    found = multi_step.fixed_design_excess(s, a, noise, rounds.shrinkage(s, best))
    worst = broken(found <= min(ridges) * (1 + 1e-12))
    for k in (1, 2, 3):
        kept = multi_step.step_shrinkage(s, 0.7, multi_step.best_steps(s, a, noise, 0.7, k))
        worst = max(worst, apart(multi_step.fixed_design_excess(s, a, noise, kept), found))
    return worst


def peers(rng: np.random.Generator) -> float:
    """Two models in turn until nothing moves: equal ones end at plain ridge, different ones at the closed form."""
    X, y, _ = regression(rng)
    other, lam, xi = X[:, :3], 2.0, 0.6
    worst = 0.0
    for second in (X, other):
        f1, f2 = np.zeros(len(y)), np.zeros(len(y))
        for _ in range(300):
            f1, f2 = (
                X @ solved(X, xi * f2 + (1 - xi) * y, lam),
                second @ solved(second, xi * f1 + (1 - xi) * y, lam),
            )
        found = identities.peers_fixed_point(rounds.smoother(X, lam), rounds.smoother(second, lam), y, xi)
        worst = max(worst, apart(found, f1))
        if second is X:
            worst = max(worst, apart(found, X @ solved(X, y, lam / (1 - xi))))
        else:
            worst = max(worst, broken(apart(found, X @ solved(X, y, lam / (1 - xi))) > 1e-3))
    return worst


def recipe(rng: np.random.Generator) -> float:
    """Least squares on held-out rows finds no worse xi's than a search over a grid of them does."""
    X, y, beta = regression(rng)
    X_v = rng.standard_normal((40, X.shape[1]))
    y_v = X_v @ beta + rng.standard_normal(40)
    each = np.stack([X_v @ b for b in distilled(X, y, 5.0, [1.0, 1.0])])
    xis = multi_step.step_imitation(multi_step.fitted_weights(each, y_v))
    least = float(((y_v - X_v @ distilled(X, y, 5.0, list(xis))[-1]) ** 2).sum())
    grid = [xi + shift for xi in xis for shift in (-0.2, -0.01, 0.0, 0.01, 0.2)]
    tried = [((y_v - X_v @ distilled(X, y, 5.0, [u, v])[-1]) ** 2).sum() for u in grid for v in grid]
    b = multi_step.step_weights(xis)
    mixed = (1 - b.sum()) * each[0] + b @ each[1:]
    return max(broken(least <= min(tried) * (1 + 1e-12)), apart(((y_v - mixed) ** 2).sum(), least))


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
