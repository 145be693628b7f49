"""The plan of a comparison: which trainings there are, and how many steps each may take.

The budget is what the dearest method costs at the requested steps, measured by training each method on the first
seed. Whatever is cheaper gets more steps, in proportion; `plain` alone keeps the requested ones. The plan is written
once, so that a comparison that is cut and taken up again compares the same things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError
from ..prepared import Prepared
from ..sampling import Sampler
from .jobs import Job

BUDGETS = ("passes", "steps", "seconds", "completions", "trainings")  # the last two of language models, of learners
CLOSE = 0.03  # a method within 3 % of the budget keeps its steps
PLAIN, SMOOTHING, DECAY, INDEPENDENT, DISTIL = (
    "plain", "label smoothing", "weight decay", "independent, averaged", "distil from larger",
)  # fmt: skip
PEERS = "peers, averaged"  # of learners on a table
BEFORE = "before"  # of language models: as they were
ABOUT = {
    PLAIN: "cross-entropy on the labels, for the requested steps",
    "plain, longer": "the same for the whole budget",
    SMOOTHING: "labels mixed with 0.1 of the uniform distribution",
    "EMA weights": "the average of the weights of `plain, longer` (decay 0.999)",
    "early stopping": "the epoch of `plain, longer` that is best on the audit split",
    DECAY: "plain with the weight decay that is best on the audit split, of 4; each has the whole budget",
    INDEPENDENT: "plain models of other initialisations, their probabilities averaged, undistilled",
    DISTIL: "traditional distillation from a plainly trained model of twice the width",
}


@dataclass(frozen=True)
class Ask:
    """What is compared: the methods, on which seeds, at what budget."""

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    budget: str = "passes"
    level: float = 0.05


def requested_steps(ready: Prepared) -> int:
    """Steps of one generation, from a plainly prepared request."""
    if ready.settings["steps"]:
        return int(ready.settings["steps"])
    sampler = Sampler(ready.data, ready.method.views, ready.settings["batch_size"], seed=0)
    return int(ready.settings["epochs"]) * sampler.steps_per_epoch


def pilots(ask: Ask, steps: int, teacher: bool) -> list[Job]:
    """The first seed's trainings at the requested steps, whose costs decide the budget."""
    seed = ask.seeds[0]
    jobs = [Job(name, "method", steps, seed, expression=name) for name in ask.methods]
    jobs.append(Job(PLAIN, "plain", steps, seed))
    return [*jobs, Job(DISTIL, "distil", steps, seed, count=steps)] if teacher else jobs


def cost(record: Mapping[str, Any], seconds: float, budget: str) -> float:
    """What a training cost, in the unit of the budget."""
    (row,) = record["rows"].values()
    whole = float(row["passes"]["total"])
    known = {"passes": whole, "trainings": whole, "steps": float(row["steps"]), "seconds": seconds}
    return float(row["drawn"]) if budget == "completions" else known[budget]


def matched(steps: int, spent: float, amount: float) -> int:
    """The steps with which a training that spent so much in ``steps`` spends the whole amount.

    >>> matched(10, 30.0, 90.0), matched(10, 88.0, 90.0)
    (30, 10)
    """
    return steps if spent >= (1 - CLOSE) * amount else max(1, round(steps * amount / spent))


def planned(ask: Ask, steps: int, costs: Mapping[str, float], classify: bool = True) -> tuple[float, list[Job]]:
    """The budget, and the first seed's jobs at matched compute; ``costs`` are those of the pilots by name.

    Label smoothing is a control where classes are learnt.

    >>> ask = Ask(("elr()", "tf_kd()"), (0, 1, 2))
    >>> budget, jobs = planned(ask, 10, {"elr()": 30.0, "tf_kd()": 90.0, "plain": 30.0})
    >>> budget, [job.steps for job in jobs if job.kind == "method"], [job.count for job in jobs][-1]
    (90.0, [30, 10], 3)
    """
    seed, amount = ask.seeds[0], max(costs[name] for name in ask.methods)
    whole = max(steps, round(steps * amount / costs[PLAIN]))
    jobs = [Job(name, "method", matched(steps, costs[name], amount), seed, expression=name) for name in ask.methods]
    jobs += [
        Job(PLAIN, "plain", steps, seed),
        Job("plain, longer", "longer", whole, seed),
        *([Job(SMOOTHING, "smoothing", whole, seed)] if classify else []),
        Job(DECAY, "decay", whole, seed),
    ]
    if DISTIL in costs:
        jobs.append(Job(DISTIL, "distil", matched(steps, costs[DISTIL], amount), seed, count=steps))
    members = max(2, math.floor(amount / costs[PLAIN] + CLOSE))
    return amount, [*jobs, Job(INDEPENDENT, "independent", steps, seed, count=members)]


def of_seed(jobs: Sequence[Job], seed: int) -> list[Job]:
    """The same trainings on another seed."""
    return [replace(job, seed=seed) for job in jobs]


def checked(ask: Ask) -> Ask:
    """Refuse what cannot be compared.

    Raises:
        DataError: no method, the same one twice, a budget of no known kind, seeds given twice, or fewer than three.
    """
    if not ask.methods:
        raise DataError("a comparison needs at least one of --methods, such as 'born_again()'")
    twice = [name for name in ask.methods if ask.methods.count(name) > 1]
    if twice:
        raise DataError(f"{twice[0]!r} is among --methods twice; give it once")
    if len(set(ask.seeds)) < 3 or len(set(ask.seeds)) < len(ask.seeds):
        raise DataError(
            f"{len(set(ask.seeds))} different seeds allow no verdict; give --seeds 3 or more (10 is better)"
        )
    if ask.budget not in BUDGETS:
        raise DataError(f"--budget is {', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}, not {ask.budget!r}")
    if not 0 < ask.level < 1:
        raise DataError(f"--level lies between 0 and 1, not {ask.level}; 0.05 is usual")
    return ask
