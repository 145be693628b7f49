"""The jobs of a comparison: what each one is, and the record it leaves, whatever learns.

One job is one seed of one training; its record has a row for every way to use what was trained (of networks the last
weights, the best epoch, the averaged weights).

The plan of a comparison: which trainings there are, and how many steps each may take.

The budget is what the dearest method costs at the requested steps, measured by training each method on the first
seed. Whatever is cheaper gets more steps, in proportion; `plain` alone keeps the requested ones. The plan is written
once, so that a comparison that is cut and taken up again compares the same things.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...data.dataset import Data
from ...data.prompts import Prompts
from ...errors import DataError
from ...io.run_record import Request
from ...io.tensors import write_json
from ...training.fit import Result
from .processes import Peak


@dataclass(frozen=True)
class Job:
    """One training of one seed: ``steps`` are those of one generation.

    ``count`` is that of an ensemble's models, of a search's trainings, or of a larger teacher's steps; of a peer which.
    """

    name: str
    kind: str  # how it is trained; networks, learners and prompts each have their own
    steps: int
    seed: int
    expression: str | None = None
    count: int = 1

    @property
    def key(self) -> str:
        """A folder's name: what is trained and for how long, so that nothing else is taken for it."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:30]
        tail = hashlib.sha256(f"{self.name} {self.steps} {self.count}".encode()).hexdigest()[:8]
        return f"{slug}-{tail}/{self.seed}"


Trained = Callable[[Job, Request, Path], dict[str, Any]]  # trains a job, in a folder of its own; gives its record


def run(job: Job, request: Request, folder: Path, trained: Trained) -> None:
    """Train a job and write its record: ``cell.json``, and beside it ``times.json``, which no two runs share.

    ``trained`` makes the record; it may say ``seconds`` of earlier sittings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "cell.json").exists():  # a worker that outlived its comparison may just have ended it
            return
        peak, begun = Peak(), time.monotonic()
        record = trained(job, request, folder)
        seconds = max(record.pop("seconds", 0.0), time.monotonic() - begun)
        write_json(folder / "times.json", {"seconds": seconds, "peak_memory_mb": peak.megabytes()})
        write_json(folder / "cell.json", {"job": asdict(job), **record})
        shutil.rmtree(folder / "training", ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the folder: a comparison that was killed may have left a worker that still trains there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def curve(result: Result) -> list[dict[str, float]]:
    """Audit accuracy, or RMSE, or NLL, by step, counted over all generations."""
    points: list[dict[str, float]] = []
    before, generation, step = 0, 0, 0
    for line in result.history:
        if line["generation"] != generation:
            before += step
        generation, step = line["generation"], line["step"]
        score = next(line["audit"][name] for name in ("accuracy", "rmse", "nll") if name in line["audit"])
        points.append({"step": before + step, "score": score, "generation": generation})
    return points


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
