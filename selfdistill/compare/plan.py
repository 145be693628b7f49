"""The plan of a comparison: which trainings there are, and how many steps each may take.

The budget is what the dearest method costs at the requested steps, measured by training each method on the first
seed. Whatever is cheaper gets more steps, in proportion; `plain` alone keeps the requested ones. The plan is written
once, so that a comparison that is cut and taken up again compares the same things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import DataError
from ..tasks.data import Data
from ..tasks.prompts import Prompts
from .jobs import Job

BUDGETS = ("passes", "steps", "seconds", "completions", "trainings")  # the last two of language models, of learners
CLOSE = 0.03  # a method within 3 % of the budget keeps its steps
PLAIN, LONGER, SMOOTHING, AVERAGED, STOPPED, DECAY, INDEPENDENT, DISTIL = (
    "plain", "plain, longer", "label smoothing", "EMA weights", "early stopping", "weight decay",
    "independent, averaged", "distil from larger",
)  # fmt: skip
PEERS = "peers, averaged"  # of learners on a table
BEFORE = "before"  # of language models: as they were
ABOUT = {
    PLAIN: "cross-entropy on the labels, for the requested steps",
    LONGER: "the same for the whole budget",
    SMOOTHING: "labels mixed with 0.1 of the uniform distribution",
    AVERAGED: "the average of the weights of `plain, longer` (decay 0.999)",
    STOPPED: "the epoch of `plain, longer` that is best on the audit split",
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


def of_seed(jobs: Sequence[Job], seed: int) -> list[Job]:
    """The same trainings on another seed."""
    return [replace(job, seed=seed) for job in jobs]


def check(ask: Ask) -> None:
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


def undrawn(ask: Ask) -> None:
    """Refuse a budget of completions where none are drawn.

    Raises:
        DataError: it is one.
    """
    if ask.budget == "completions":
        raise DataError("--budget completions is for prompts; give passes, steps or seconds")


def require_splits(data: Data | Prompts) -> None:
    """Refuse data that nothing can be chosen or tested by.

    Raises:
        DataError: there is no audit or no test split.
    """
    if not len(data.audit) or not len(data.test):
        raise DataError(f"{data.name} has no audit split or no test split; a comparison needs both")
