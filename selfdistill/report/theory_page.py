"""The report of the theory: its laws against simulations, and the table of its identities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import theory
from ..theory import simulate
from .figures import Mark, Series, curves
from .layout import code, figure, page, paragraph, section, table

__all__ = ["render"]

SEED = 0


def render(outcomes: Sequence[dict[str, Any]]) -> str:
    """The page, from the outcomes of `selfdistill.theory.checks.run`; the simulations have a fixed seed."""
    failed = [outcome["name"] for outcome in outcomes if not outcome["ok"]]
    verdict = f"{len(failed)} of {len(outcomes)} identities fail: {', '.join(failed)}."
    rows = [
        (o["name"], "ok" if o["ok"] else "FAILS", f"{o['deviation']:.1e}", f"{o['tolerance']:g}", o["unit"], o["kind"])
        for o in outcomes
    ]
    statements = "\n".join(f"{o['name']}: {o['statement']}\n    {o['source']}" for o in outcomes)
    parts = [
        paragraph(verdict if failed else f"All {len(outcomes)} identities hold within their tolerance.", "verdict"),
        paragraph("Target = xi x teacher + (1 - xi) x label. Lines are closed forms, dots are simulations.", "soft"),
        section("Power law", *_power()),
        section("Helps, then hurts", *_u_shape()),
        section("Replace or accumulate", *_collapse()),
        section("Weight of the teacher", *_weight()),
        section("Mixing in real labels", *_mixing()),
        section(
            "Identities",
            table(("", "", "deviation", "tolerance", "in", "against"), rows),
            code(statements),
        ),
    ]
    return page("The theory of self-distillation against simulation", parts)


def _power() -> list[str]:
    """The share of single directions that is left after each round; each round is solved anew."""
    sizes, lam, rounds = (4.0, 2.0, 1.0), 1.0, 8
    X, series = np.diag(sizes), []
    for j, (size, h) in enumerate(zip(sizes, theory.shrinkage(sizes, lam), strict=True)):
        fits = [float((X @ beta)[j]) for beta in simulate.distilled(X, np.ones(3), lam, [1.0] * rounds)]
        law = [theory.power_law(X, np.ones(3), lam, k)[j] for k in range(rounds + 1)]
        series.append(Series(f"s = {size:g}: h = {h:.2f}", list(enumerate(law))))
        series.append(Series(f"s = {size:g}, solved", list(enumerate(fits)), lined=False))
    drawn = curves(series, "what is left of a direction by round", "round of pure self-distillation", "share left")
    return [figure(drawn, "Pure repetition keeps h^(k+1) of each direction: the weak ones go first, and all go.")]


def _u_shape() -> list[str]:
    rows, dimension, strength, energy, noise, rounds = 400, 800, 20.0, 1.0, 4.0, 8
    overhang, rng = dimension / rows - 1, np.random.default_rng(SEED)
    runs = [
        [
            simulate.spiked_excess(beta, strength, energy)
            for beta in simulate.self_trained(rng, rows, dimension, strength, energy, noise, rounds)
        ]
        for _ in range(40)
    ]
    steps, risks = range(rounds + 1), np.mean(runs, axis=0)
    parameters = (strength, energy, overhang)
    drawn = curves(
        [
            Series("risk", list(enumerate(theory.spike_risks(rounds, *parameters, noise)))),
            Series("risk, simulated", list(enumerate(risks)), lined=False),
            Series("forgetting", [(t, theory.spike_forgetting(t, *parameters)) for t in steps]),
            Series("noise", [(t, theory.spike_noise(t, *parameters, noise)) for t in steps]),
        ],
        "risk by round",
        "round",
        "excess risk",
        marks=[Mark(theory.stopping_time(*parameters, noise), "stop", True)],
    )
    return [figure(drawn, f"Least-norm self-training on {rows} fresh rows of {dimension} inputs, mean of 40 runs.")]


def _collapse() -> list[str]:
    rows, dimension, last, rng = 60, 10, 10, np.random.default_rng(SEED)
    parameters, numbers, series = (rows, dimension, 1.0), range(1, last + 1), []
    laws = {False: ("replace", theory.replaced_error), True: ("accumulate", theory.accumulated_error)}
    for keep, (name, law) in laws.items():
        runs = [simulate.regenerated(rng, rows, dimension, 1.0, last, accumulate=keep) for _ in range(500)]
        series.append(Series(name, [(n, law(n, *parameters)) for n in numbers]))
        series.append(Series(f"{name}, simulated", list(enumerate(np.mean(runs, axis=0), 1)), lined=False))
    bound = Series("bound", [(n, theory.accumulated_bound(n, *parameters)) for n in numbers])
    limit = Series("bound of all generations", [(n, theory.accumulated_bound(None, *parameters)) for n in numbers])
    caption = f"Least squares on {rows} rows of {dimension} inputs for each generation, mean of 500 runs."
    bound_caption = "Accumulating alone: the exact error stays below the published bound."
    return [
        figure(curves([*series, limit], "error by generation", "generation", "excess risk"), caption),
        figure(curves([*series[2:], bound, limit], "error, accumulating", "generation", "excess risk"), bound_caption),
    ]


def _weight() -> list[str]:
    """xi* by the penalty for X'X / n = I: the closed form, and the best weight over simulated label noise."""
    rows, dimension, variance, rng = 100, 50, 1.0, np.random.default_rng(SEED)
    X = rows**0.5 * np.linalg.qr(rng.standard_normal((rows, dimension)))[0]
    beta = rng.standard_normal(dimension)
    beta /= np.linalg.norm(beta)
    labels = X @ beta + variance**0.5 * rng.standard_normal((200, rows))
    simulated = []
    for lam in np.geomspace(0.2, 2.0, 8):
        pairs = [simulate.distilled(X, y, rows * float(lam), [1.0]) for y in labels]
        errors = [(beta - first, second - first) for first, second in pairs]
        simulated.append((float(lam), sum(float(a @ b) for a, b in errors) / sum(float(b @ b) for _, b in errors)))
    parameters = (1.0, dimension / rows, variance)
    law = [(float(lam), theory.flat_weight(float(lam), *parameters)) for lam in np.linspace(0.2, 2.0, 100)]
    drawn = curves(
        [Series("xi*", law), Series("xi*, simulated", simulated, lined=False), Series("0", [(0.2, 0.0), (2.0, 0.0)])],
        "best weight of the teacher by penalty",
        "penalty lam on X'X / n",
        "best xi",
        marks=[Mark(theory.flat_turning(*parameters), "best ridge", True)],
    )
    return [figure(drawn, "Too little penalty: believe the teacher. Too much: contradict it. At the best: ignore it.")]


def _mixing() -> list[str]:
    weights = np.linspace(0.2, 1.0, 81)
    rng = np.random.default_rng(SEED)
    simulated = [(float(w), simulate.mixed_labels(rng, float(w), 1.0, 20_000, 40)) for w in np.linspace(0.2, 1.0, 9)]
    drawn = curves(
        [
            Series("variance", [(float(w), theory.mixing_variance(float(w))) for w in weights]),
            Series("variance, simulated", simulated, lined=False),
        ],
        "variance by weight of real labels",
        "weight of fresh real labels",
        "variance",
        marks=[Mark(theory.GOLDEN, "golden ratio", True)],
    )
    return [
        figure(drawn, "Endless mixing of fresh real labels with the model's own, in units of one label's variance.")
    ]
