"""A shortlist of recipes: each is trained at full length, and the rows that none of them learnt from choose.

`auto()` of every task type is this loop. A task type says how a candidate is trained and how each validation row (or
prompt, or episode) scores it; `try_each` trains, `choose` compares, and `Choice.to_json` is what reports show.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from ..core.step import Passes
from ..errors import DataError, NotFiniteError, RecipeError, VitalsError
from ..evaluation.statistics import smallest_visible
from ..io.expressions import expression_name
from ..io.files import write
from ..io.run_record import METRICS

T = TypeVar("T")


class Trial(NamedTuple):
    """A candidate that was trained.

    Args:
        name: its expression.
        losses: of each validation row; the mean chooses.
        steps, passes, seconds: what the training took; nothing for a second use of the training before.
        rows: the positions of the rows that ``losses`` are of, where they are not all: those kept apart.
    """

    name: str
    losses: Sequence[float]
    steps: int = 0
    passes: Passes = Passes()
    seconds: float = 0.0
    rows: Sequence[int] | None = None

    def loss(self, rows: Sequence[int] | None = None) -> float:
        """The mean loss, over all its rows or some of them."""
        losses = self.losses if rows is None else [self.losses[row] for row in rows]
        mean = math.fsum(losses) / len(losses)
        return math.inf if math.isnan(mean) else mean


def choose(trials: Sequence[Trial], rank: Callable[[str], int]) -> int:
    """The trial with the smallest mean loss; of equals the simpler one.

    A trial on some rows alone, such as early stopping, must be better there than the best of the others.

    Args:
        trials: the first of them is scored on all rows.
        rank: the place of a name in the order of simplicity.

    >>> plain, elr = (Trial(name, losses) for name, losses in (("plain()", [0, 1]), ("elr()", [1, 0])))
    >>> choose([elr, plain], ["plain()", "elr()"].index)
    1
    """
    whole = [i for i, trial in enumerate(trials) if trial.rows is None]
    best = min(whole, key=lambda i: (trials[i].loss(), rank(trials[i].name)))
    for i, trial in enumerate(trials):
        if trial.rows is not None and trial.loss() < trials[best].loss(trial.rows):
            best = i
    return best


@dataclass
class Choice(Generic[T]):
    """What was tried and chosen; ``kept`` has, by trial, the trainings of the first candidate and of the choice."""

    trials: list[Trial] = field(default_factory=list)
    kept: dict[int, T] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    chosen: int = 0

    @property
    def winner(self) -> Trial:
        """The trial that was chosen."""
        return self.trials[self.chosen]

    def extend(self, trial: Trial, result: T) -> None:
        """Add a longer training of the chosen candidate, which is chosen unless it is worse."""
        if trial.loss() <= self.winner.loss():
            first = self.kept[0]
            self.chosen = len(self.trials)
            self.kept = {place: one for place, one in self.kept.items() if one is first} | {self.chosen: result}
        self.trials.append(trial)

    def to_json(self, measure: str) -> dict[str, Any]:
        """The table of the trials, and the reason for the choice, as run.json holds them."""
        first = self.trials[0]
        tried = []
        for number, trial in enumerate(self.trials):
            beside = first.loss(trial.rows)
            score = _score(trial.loss(), measure)
            entry = {"method": trial.name, "score": _finite(score), "rows": len(trial.losses)}
            gain = _finite(score - _score(beside, measure))
            spent = {"steps": trial.steps, "passes": trial.passes.cost(), "seconds": round(trial.seconds, 2)}
            tried.append({**entry, "gain": gain, **spent, "chosen": number == self.chosen})
        return {"measure": measure, "tried": tried, "why": self._why(measure), "left_out": self.left_out}

    def spent(self) -> dict[str, Any]:
        """Steps, passes and seconds of all trainings, as a result holds them."""
        passes = sum((trial.passes for trial in self.trials), Passes())
        steps, seconds = sum(trial.steps for trial in self.trials), sum(trial.seconds for trial in self.trials)
        return {"steps": steps, "passes": passes._asdict(), "seconds": round(seconds, 2)}

    def _why(self, measure: str) -> str:
        winner, first = self.winner, self.trials[0]
        if winner is first:
            return f"no candidate has a better validation {WORDS[measure]} than {first.name}"
        score, beside = (_score(one, measure) for one in (winner.loss(), first.loss(winner.rows)))
        text = f"{winner.name} has the best validation {WORDS[measure]}: {_figures(score, beside, first.name, measure)}"
        return text + f" ({visible(len(winner.losses), measure)})"


#: The measures by which candidates are chosen, in words.
WORDS = {
    "accuracy": "accuracy",
    "mse": "error (mse)",
    "rmse": "error (RMSE)",
    "nll": "likelihood",
    "return": "mean return",
}


def _score(loss: float, measure: str) -> float:
    """The mean loss as it is reported: accuracy and return are better where they are larger."""
    return 1 - loss if measure == "accuracy" else -loss if measure == "return" else loss


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _figures(score: float, beside: float, reference: str, measure: str) -> str:
    if measure == "accuracy":
        return f"{100 * score:.1f} % against {100 * beside:.1f} % of {reference}"
    return f"{score:.4g} against {beside:.4g} of {reference}"


def foreword(names: Sequence[str], each: str, chooses: str) -> list[str]:
    """The lines before training: what is tried, what that costs, and what chooses.

    >>> foreword(["plain()", "elr()"], "of 10 steps each", "validation accuracy")
    ['auto(): 2 trainings of 10 steps each: plain(), elr()', 'auto(): chooses by validation accuracy']
    """
    return [f"auto(): {len(names)} trainings {each}: {', '.join(names)}", f"auto(): chooses by {chooses}"]


def visible(rows: int, measure: str, kind: str = "validation") -> str:
    """How small a difference between two candidates so many rows of a kind can show, in words."""
    if measure != "accuracy":
        return f"{rows} {kind} rows; differences within their spread may be chance"
    least = smallest_visible(rows, 0.05)
    if least > 1:
        return f"{rows} {kind} rows, which show no difference for certain"
    return f"{rows} {kind} rows; a difference below {100 * least:.1f} points may be chance"


def candidate_folder(number: int, expression: str) -> str:
    """The folder of a candidate's training, below that of the run.

    >>> candidate_folder(2, "elr()")
    'candidates/2-elr'
    """
    return f"candidates/{number}-{expression_name(expression)}"


def refuse_budget(bounds: str | None) -> None:
    """Refuse a budget where the candidates of ``auto()`` do not share one.

    Raises:
        DataError: there is one.
    """
    if bounds is not None:
        raise DataError(f"--budget {bounds} bounds one recipe here; give --method with a recipe in place of auto()")


def copy_log(source: Path, target: Path) -> None:
    """Copy the metrics of a candidate's training to where reports read those of a run."""
    target.mkdir(parents=True, exist_ok=True)
    write(target / METRICS, (source / METRICS).read_text(encoding="utf-8"))


def try_each(
    names: Sequence[str],
    train: Callable[[int], tuple[list[Trial], T]],
    rank: Callable[[str], int],
    tell: Callable[[str], None],
    follow: Callable[[Sequence[Trial], Sequence[int]], int] = lambda trials, rest: rest[0],
) -> Choice[T]:
    """Train every candidate, one after another, and choose; a candidate that cannot be trained is left out.

    Args:
        names: the candidates; the first is the plain one, which must be trainable.
        train: trains the candidate of a number from wherever it was cut; a training may be several trials.
        rank: see `choose`.
        tell: hears that a candidate is trained, and of the time that is left.
        follow: which of the rest is trained next, by the trials so far; in their order by default.

    Raises:
        SelfdistillError: the first candidate fails.
    """
    choice, begun, trained = Choice[T](), time.monotonic(), 0
    rest = list(range(len(names)))
    while rest:
        number = follow(choice.trials, rest) if choice.trials else rest[0]
        rest.remove(number)
        name = names[number]
        try:
            trials, result = train(number)
        except (NotFiniteError, RecipeError, VitalsError) as error:
            if number == 0:
                raise
            choice.left_out.append(f"{name}: {error}")
            tell(f"auto(): {name} is left out: {error}")
            continue
        trained += 1
        places = range(len(choice.trials), len(choice.trials) + len(trials))
        choice.trials += trials
        choice.kept |= dict.fromkeys(places, result)
        choice.chosen = choose(choice.trials, rank)
        first = choice.kept[0]
        choice.kept = {place: one for place, one in choice.kept.items() if place == choice.chosen or one is first}
        left = (time.monotonic() - begun) / trained * len(rest)
        remainder = f", about {left:.0f} s left" if rest else ""
        tell(f"auto(): candidate {len(names) - len(rest)} of {len(names)}, {name}, is trained{remainder}")
    return choice
