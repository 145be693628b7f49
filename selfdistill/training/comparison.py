"""A comparison at matched compute: its settings, its trainings, and the part of each task type.

A job is one training with one seed. Its record has a row for every way to use what was trained (of networks the last
weights, the best epoch, the averaged weights).

The budget is what the most expensive method costs at the requested steps, measured by training each method with the
first seed. Whatever is cheaper gets more steps, in proportion; `plain` alone keeps the requested ones.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..data.dataset import Data
from ..data.prompts import Prompts
from ..errors import DataError
from ..io.run_record import Request
from .fit import Result


@dataclass(frozen=True)
class Job:
    """One training of one seed: ``steps`` are those of one generation.

    ``count`` is that of an ensemble's models, of a search's trainings, or of a larger teacher's steps; of a peer which.
    """

    name: str
    kind: str  # how it is trained; every task type has its own
    steps: int
    seed: int
    expression: str | None = None
    count: int = 1

    @property
    def key(self) -> str:
        """The name of a folder, from the name, steps and count of the training."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:30]
        tail = hashlib.sha256(f"{self.name} {self.steps} {self.count}".encode()).hexdigest()[:8]
        return f"{slug}-{tail}/{self.seed}"


def curve(result: Result) -> list[dict[str, float]]:
    """Audit accuracy, or RMSE, or NLL, by step, counted over all generations."""
    points: list[dict[str, float]] = []
    offset, generation, step = 0, 0, 0
    for line in result.history:
        if line["generation"] != generation:
            offset += step
        generation, step = line["generation"], line["step"]
        score = next(line["audit"][name] for name in ("accuracy", "rmse", "nll") if name in line["audit"])
        points.append({"step": offset + step, "score": score, "generation": generation})
    return points


# completions and tokens are of language models, trainings of learners
MATCHES = ("passes", "steps", "seconds", "completions", "tokens", "trainings")


def split_match(match: str | None, budget: str | None) -> tuple[str | None, str | None]:
    """What is matched, and the bounds: a budget once named what is matched, and its words still do.

    Raises:
        DataError: two quantities are to be matched.

    >>> split_match(None, "steps|10min"), split_match("passes", "4GiB")
    (('steps', '10min'), ('passes', '4GiB'))
    """
    parts = [part for part in re.split(r"[|,]", budget or "") if part]
    words = dict.fromkeys([*([match] if match else []), *(part.strip() for part in parts if part.strip() in MATCHES)])
    if len(words) > 1:
        raise DataError(f"--match is one of {', '.join(words)}; give one of them")
    bounds = "|".join(part for part in parts if part.strip() not in MATCHES)
    return next(iter(words), None), bounds or None


OWN, BOTH = "own predictions", "peers and own predictions"  # kinds of jobs: what teaches in an ablation of peers


CLOSE = 0.03  # a method within 3 % of the budget keeps its steps


PLAIN, LONGER, SMOOTHING, AVERAGED, STOPPED, DECAY, INDEPENDENT, DISTIL = (
    "plain",
    "plain, longer",
    "label smoothing",
    "EMA weights",
    "early stopping",
    "weight decay",
    "independent, averaged",
    "distil from larger",
)


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
class ComparisonSettings:
    """The settings of a comparison: methods, seeds, and the quantity that is matched.

    ``ablation``: methods with peers are also trained by their own predictions, and by both.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    match: str = "passes"
    level: float = 0.05
    ablation: bool = False


def ablation_jobs(methods: Sequence[str], steps: int, seed: int) -> list[Job]:
    """The trainings of methods without their peers as the teacher, and with both teachers.

    >>> [job.name for job in ablation_jobs(["mutual()"], 10, 0)]
    ['mutual(), own predictions', 'mutual(), peers and own predictions']
    """
    return [Job(f"{name}, {kind}", kind, steps, seed, expression=name) for name in methods for kind in (OWN, BOTH)]


def require_peers(methods: Sequence[str], taught: Sequence[str]) -> None:
    """Refuse an ablation where no method is ``taught`` by peers.

    Raises:
        DataError: there is none.
    """
    if not taught:
        raise DataError(
            f"--ablation replaces the peers that teach, and no peer teaches in {' or '.join(methods)}; leave it out, "
            "or give a method with peers, such as 'mutual()', or on a table 'peer_taught()'"
        )


def cost(record: Mapping[str, Any], seconds: float, match: str) -> float:
    """The cost of a training, in the unit that is matched."""
    (row,) = record["rows"].values()
    total = float(row["passes"]["total"])
    costs = {"passes": total, "trainings": total, "steps": float(row["steps"]), "seconds": seconds}
    if match == "tokens":
        return float(sum(row["tokens"].values()))
    return float(row["drawn"]) if match == "completions" else costs[match]


def fixed_cost(record: Mapping[str, Any], match: str) -> float:
    """What a training costs before its first step, in the unit that is matched: completions that are written once."""
    (row,) = record["rows"].values()
    return float(row["tokens"]["once"]) if match == "tokens" else 0.0


def matching_steps(steps: int, used: float, amount: float, fixed: float = 0.0) -> int:
    """The steps with which a training that spent so much in ``steps`` spends the whole amount.

    Args:
        steps: That it took.
        used: What it spent.
        amount: What it is to spend.
        fixed: The part of it that does not grow with the steps.

    >>> matching_steps(10, 30.0, 90.0), matching_steps(10, 88.0, 90.0), matching_steps(10, 30.0, 90.0, fixed=20.0)
    (30, 10, 70)
    """
    if used >= (1 - CLOSE) * amount:
        return steps
    return max(1, round(steps * (amount - fixed) / (used - fixed)))


def of_seed(jobs: Sequence[Job], seed: int) -> list[Job]:
    """The same trainings on another seed."""
    return [replace(job, seed=seed) for job in jobs]


def check(settings: ComparisonSettings) -> None:
    """Refuse settings that allow no comparison.

    Raises:
        DataError: no method, the same one twice, an unknown quantity to match, seeds given twice, or fewer than three.
    """
    if not settings.methods:
        raise DataError("a comparison needs at least one of --methods, such as 'born_again()'")
    repeated = [name for name in settings.methods if settings.methods.count(name) > 1]
    if repeated:
        raise DataError(f"{repeated[0]!r} is among --methods twice; give it once")
    if len(set(settings.seeds)) < 3 or len(set(settings.seeds)) < len(settings.seeds):
        raise DataError(
            f"{len(set(settings.seeds))} different seeds allow no verdict; give --seeds 3 or more (10 is better)"
        )
    if settings.match not in MATCHES:
        raise DataError(f"--match is {', '.join(MATCHES[:-1])} or {MATCHES[-1]}, not {settings.match!r}")
    if not 0 < settings.level < 1:
        raise DataError(f"--level lies between 0 and 1, not {settings.level}; 0.05 is usual")


def refuse_completions(settings: ComparisonSettings) -> None:
    """Refuse a budget of completions or tokens where none are drawn.

    Raises:
        DataError: it is one.
    """
    if settings.match in ("completions", "tokens"):
        raise DataError(f"--match {settings.match} is for prompts; give passes, steps or seconds")


def ignore(line: str) -> None:
    """Drop a warning: a table of many trainings has no place for it."""


def require_splits(data: Data | Prompts) -> None:
    """Refuse data that nothing can be chosen or tested by.

    Raises:
        DataError: there is no audit or no test split.
    """
    if not len(data.audit) or not len(data.test):
        raise DataError(f"{data.name} has no audit split or no test split; a comparison needs both")


class ComparisonDesign(Protocol):
    """The design of a task type's comparisons: its methods, its controls, and their training.

    The class answers what needs no data; an object of it has loaded the first seed's data and model. What is answered
    here holds unless a design says otherwise.
    """

    match: str = "passes"  # what is matched where nothing else is asked for
    ablates: ClassVar[bool] = False  # whether its methods can be trained without their peers

    @classmethod
    def matched(cls, match: str | None) -> str:
        """The matched quantity: the requested one, or the default.

        Raises:
            DataError: it is of another task type.
        """
        return match or cls.match

    @staticmethod
    def judged(methods: Sequence[str]) -> tuple[str, ...]:
        """The methods that get a verdict."""
        return tuple(methods)

    @staticmethod
    def plain(control: bool) -> str:
        """The row that stands for doing nothing new, with and without the control that not all data or models have."""
        return PLAIN

    @staticmethod
    def shared(request: Request, settings: ComparisonSettings) -> Request:
        """The request with the settings that all rows share.

        Raises:
            DataError: what is matched is of another task type, or the rows would not share what they must.
        """
        refuse_completions(settings)
        return request

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        """Train one job; its record."""

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> ComparisonDesign:
        """The design with the first seed's data and model.

        Raises:
            DataError, RecipeError: they cannot be had so.
        """

    def check(self) -> None:
        """Refuse, before anything is trained, a comparison that fails on some seed.

        Raises:
            DataError, RecipeError: the data of a seed, or a method.
        """

    def threads(self) -> int:
        """Threads for each training."""

    def control(self, tell: Callable[[str], None]) -> bool:
        """Whether the optional control can be trained; ``tell`` is called with the reason where it cannot."""

    def pilots(self, control: bool) -> list[Job]:
        """The first seed's trainings at the requested steps, whose costs decide the budget."""

    def trainings(self, job: Job) -> int:
        """The cost of a job, in trainings of the most expensive method; a bound from above."""
        return 1

    def planned(self, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> tuple[float, list[Job]]:
        """The budget, and the first seed's jobs.

        Args:
            costs: Those of the pilots by name.
            fixed: The part of each that does not grow with the steps; none where it is left out.
        """
