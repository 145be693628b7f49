"""The best weight of the teacher: held-out, by risk, by noise, by generalised cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from .. import mixing_weight
from ..arrays import Array
from ..simulate import distilled, solved
from .identity import Identity, broken, regression, relative_error, vertex

DANG = "Dang, Patil & Rinaldo, arXiv 2602.17565, 2026"


DAS = "Das & Sanghavi, ICML 2023"


PENALTIES = (0.3, 3.0, 30.0, 300.0)


def held_out(rng: np.random.Generator) -> float:
    """Students refitted at xi = -1, 0, 1 tell the parabola; and none of a grid of xi's is better than its vertex."""
    X, y, beta = regression(rng)
    X_v = rng.standard_normal((50, X.shape[1]))
    y_v = X_v @ beta + rng.standard_normal(50)
    worst = 0.0
    for lam in PENALTIES:

        def error(xi: float, lam: float = lam) -> float:
            return float(((y_v - X_v @ distilled(X, y, lam, [xi])[-1]) ** 2).sum())

        teacher, student = distilled(X, y, lam, [1.0])
        weight = mixing_weight.held_out_weight(y_v, X_v @ teacher, X_v @ student)
        grid = min(error(float(weight + shift)) for shift in np.linspace(-2, 2, 81))
        worst = max(
            worst, broken(error(weight) <= grid * (1 + 1e-12)), relative_error(weight, vertex(*map(error, (-1, 0, 1))))
        )
    return worst


class Population:
    """The true risk of ridge on one data set: (b - beta)' M (b - beta) + noise, M any positive matrix."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.X, self.y, self.beta = regression(rng)
        root = rng.standard_normal((6, 6))
        self.M = root @ root.T + 0.1 * np.eye(6)

    def risk(self, beta: Array) -> float:
        off = beta - self.beta
        return float(off @ self.M @ off) + 1.0

    def teacher(self, lam: float) -> float:
        return self.risk(solved(self.X, self.y, lam))

    def student(self, lam: float, xi: float) -> float:
        return self.risk(distilled(self.X, self.y, lam, [xi])[-1])

    def slope(self, lam: float) -> float:
        """R'(lam) by Richardson's rule from four solves: error of order step^4."""
        step = 1e-3 * lam
        wide, near = (
            (self.teacher(lam + s * step) - self.teacher(lam - s * step)) / (2 * s * step) for s in (2.0, 1.0)
        )
        return (4 * near - wide) / 3

    def distance(self, lam: float) -> float:
        first, second = distilled(self.X, self.y, lam, [1.0])
        return float((second - first) @ self.M @ (second - first))

    def best(self, lam: float) -> float:
        """The best xi, from students refitted at three of them."""
        return vertex(*(self.student(lam, xi) for xi in (-1.0, 0.0, 1.0)))

    def turning(self) -> float:
        """A penalty at which R' = 0, by halving a range in which R' changes its sign; 0 where it never does."""
        grid = [float(lam) for lam in np.geomspace(1e-3, 1e4, 60)]
        turns = [pair for pair in pairwise(grid) if self.slope(pair[0]) <= 0 < self.slope(pair[1])]
        if not turns:
            return 0.0
        low, high = turns[0]
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (low, middle) if self.slope(middle) > 0 else (middle, high)
        return (low + high) / 2


def sign(rng: np.random.Generator) -> float:
    p, worst = Population(rng), 0.0
    for lam in PENALTIES:
        found = mixing_weight.risk_weight(p.slope(lam), p.distance(lam), lam)
        worst = max(worst, relative_error(found, p.best(lam)), broken(np.sign(found) == -np.sign(p.slope(lam))))
    return worst


def risks(rng: np.random.Generator) -> float:
    p, worst = Population(rng), 0.0
    for lam in PENALTIES:
        first, second = (b - p.beta for b in distilled(p.X, p.y, lam, [1.0]))
        cross = float(first @ p.M @ second) + 1.0
        weight = mixing_weight.weight_from_risks(p.teacher(lam), p.student(lam, 1.0), cross)
        worst = max(worst, relative_error(weight, p.best(lam)))
    return worst


def gain(rng: np.random.Generator) -> float:
    """Relative to the teacher's risk, not to the gain: this may be small."""
    p, worst = Population(rng), 0.0
    for lam in PENALTIES:
        formula = mixing_weight.risk_gain(p.slope(lam), p.distance(lam), lam)
        simulated = p.teacher(lam) - p.student(lam, p.best(lam))
        worst = max(worst, abs(formula - simulated) / p.teacher(lam))
    return worst


def stationary(rng: np.random.Generator) -> float:
    """At a minimum of R over lam the best weight, from refitted students, is 0; searched for by halving."""
    while not (lam := (p := Population(rng)).turning()):
        pass
    return abs(p.best(lam))


def flat_design(rng: np.random.Generator, rows: int, dimension: int) -> tuple[Array, Array]:
    """Inputs with X'X / n = I and coefficients."""
    return rows**0.5 * np.linalg.qr(rng.standard_normal((rows, dimension)))[0], rng.standard_normal(dimension)


def flat(rng: np.random.Generator) -> float:
    """Expectation over the noise taken exactly, by one solve for the signal and one for each row's noise."""
    X, beta = flat_design(rng, 20, 5)
    variance, energy, ratio = 1.3, float(beta @ beta), 5 / 20
    worst = 0.0
    for lam in (0.05, 0.3, 1.0, 4.0):

        def risk(xi: float, lam: float = lam) -> float:
            signal = distilled(X, X @ beta, lam * 20, [xi])[-1] - beta
            rows = [distilled(X, row, lam * 20, [xi])[-1] for row in np.eye(20)]
            return float(signal @ signal) + variance * sum(float(r @ r) for r in rows)

        found = mixing_weight.flat_weight(lam, energy, ratio, variance)
        worst = max(worst, relative_error(mixing_weight.flat_risk(lam, energy, ratio, variance), risk(0.0)))
        worst = max(worst, relative_error(found, vertex(risk(-1.0), risk(0.0), risk(1.0))))
        worst = max(worst, broken((found > 0) == (lam < mixing_weight.flat_turning(energy, ratio, variance))))
    return worst


def estimated(rng: np.random.Generator, estimate: Callable[[Array, Array, float], float]) -> float:
    """Median over data sets of an estimate less that of the best weight, which knows the coefficients; d / n = 1/2."""
    worst, rows, dimension = 0.0, 800, 400
    draws = [regression(rng, rows, dimension, noise=25.0) for _ in range(7)]
    scale = np.linspace(0.5, 2.0, dimension)  # of the inputs' directions, so this is the excess risk of fresh rows
    for lam in (200.0, 400.0):
        found, wanted = [], []
        for X, y, beta in draws:
            first, second = distilled(X, y, lam, [1.0])
            off = scale * (beta - first), scale * (second - first)
            wanted.append(float(off[0] @ off[1] / (off[1] @ off[1])))
            found.append(estimate(X, y, lam))
        worst = max(worst, abs(float(np.median(found)) - float(np.median(wanted))))
    return worst


def gcv(rng: np.random.Generator) -> float:
    return estimated(rng, mixing_weight.gcv_weight)


def left_out(rng: np.random.Generator) -> float:
    return estimated(rng, mixing_weight.left_out_weight)


def refitted(rng: np.random.Generator) -> float:
    """Teacher and student really fitted without each row in turn; the vertex of their left-out errors."""
    X, y, _ = regression(rng, rows=15, dimension=4)
    worst = 0.0
    for lam in PENALTIES:

        def error(xi: float, lam: float = lam) -> float:
            kept = [np.arange(15) != i for i in range(15)]
            return float(sum((y[i] - X[i] @ distilled(X[k], y[k], lam, [xi])[-1]) ** 2 for i, k in enumerate(kept)))

        worst = max(
            worst, relative_error(mixing_weight.left_out_weight(X, y, lam), vertex(error(-1.0), error(0.0), error(1.0)))
        )
    return worst


def design(rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """A design with known singular values, and the signal in each direction."""
    s, a = np.array([0.6, 1.0, 1.7, 2.5]), rng.standard_normal(4)
    X = np.linalg.qr(rng.standard_normal((12, 4)))[0] * s
    return X, s, a


def expected(X: Array, a: Array, variance: float, lam: float, xi: float) -> float:
    """Expected squared error of the coefficients, from one solve for the signal and one for each row's noise."""
    signal = distilled(X, X @ a, lam, [xi])[-1] - a
    rows = [distilled(X, row, lam, [xi])[-1] for row in np.eye(len(X))]
    return float(signal @ signal) + variance * sum(float(r @ r) for r in rows)


def noisy(rng: np.random.Generator) -> float:
    X, s, a = design(rng)
    worst = 0.0
    for variance in (0.05, 1.0, 20.0):
        for lam in (0.5, 3.0):
            three = [expected(X, a, variance, lam, xi) for xi in (-1.0, 0.0, 1.0)]
            formula = [mixing_weight.parameter_error(s, a, variance, lam, xi) for xi in (-1.0, 0.0, 1.0)]
            worst = max(
                worst,
                relative_error(formula, three),
                relative_error(mixing_weight.noise_weight(s, a, variance, lam), vertex(*three)),
            )
    return worst


def ordered(rng: np.random.Generator) -> float:
    """Weights found by refitting grow with the noise, change sign where told, and end above 1 where told."""
    X, s, a = design(rng)
    lam = 2.0

    def best(variance: float) -> float:
        return vertex(*(expected(X, a, variance, lam, xi) for xi in (-1.0, 0.0, 1.0)))

    turning = mixing_weight.turning_noise(s, a, lam)
    found = [best(v) for v in (0.0, 0.5 * turning, turning, 2 * turning, 10 * turning, 1e12)]
    limit = mixing_weight.noise_weight_limit(s, lam)
    rises = all(now < later for now, later in pairwise(found))
    return max(broken(rises, found[1] < 0 < found[3], limit > 1), abs(found[2]), relative_error(limit, found[-1]))


IDENTITIES = [
    Identity(
        "T5 held-out weight",
        "xi* = <y - f_T, f_PD - f_T> / |f_PD - f_T|^2 is the best refitted student's",
        "Borup & Andersen, NeurIPS 2021; derived",
        held_out,
    ),
    Identity("T9 noise rule", "the best xi for the coefficients, in closed form", DAS, noisy),
    Identity("T10 noise order", "it grows with the noise, through 0 where told, to a limit above 1", DAS, ordered),
    Identity("T11 sign rule", "xi* = -lam R'(lam) / (2 D), of the sign opposite to R'", DANG, sign),
    Identity("T11 three risks", "xi* = (R_T - C) / (R_T + R_PD - 2 C)", DANG, risks),
    Identity("T11 flat design", "risk, xi* and its turning point where X'X / n = I", DANG, flat),
    Identity("T12 gain", "the best student is better by lam^2 R'^2 / (4 D)", DANG, gain, unit="the teacher's risk"),
    Identity("T13 stationary", "where R' = 0, xi* = 0", DANG, stationary, unit="xi"),
    Identity(
        "T14 GCV weight", "one fit estimates xi* (d = 400, n = 800, lam moderate)", DANG, gcv, "Monte Carlo", 0.3, "xi"
    ),
    Identity(
        "T14 left-out weight",
        "the best xi of left-out errors, as if each row's models were refitted",
        "Allen, 1974; derived",
        refitted,
    ),
    Identity(
        "T14 left-out estimate",
        "left-out errors estimate xi* (the same setting)",
        "Allen, 1974; derived",
        left_out,
        "Monte Carlo",
        0.1,
        "xi",
    ),
]
