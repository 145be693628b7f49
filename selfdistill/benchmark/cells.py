"""One cell: a method is trained with a setting's budget, and the test split is read once, at the end.

How many steps a method may take is found with the first seed: two short trainings tell what a step and what everything
else costs, then it is trained in full, again where the passes counted miss the budget by more than 3 %. The other seeds
take as many steps. What a trained teacher from outside has cost is paid from the budget: half of it. No generation is
rolled back: with an audit, the rows of several methods were the plain model that their first generation is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .. import __version__, draws, threads
from ..checkpoint import write_json
from ..compare.networks import heard
from ..compare.plan import CLOSE
from ..core import Method
from ..errors import DataError, RecipeError
from ..evaluate import scored
from ..expressions import one_line
from ..loop import Result, fit
from ..methods.controls import plain
from ..prepared import batch_size_for, read_method
from ..step import Passes
from ..tasks.data import Data
from .fitting import HALF, PLAIN, SELF_TRAINING, UNTRAINED, build_for, wants_teacher
from .probe import probed
from .records import FORMAT, read
from .settings import TIMES, Cell, data_of

TRIES = 3  # full trainings at most
SHORT = 2  # steps of the first of two short ones


class Tried(NamedTuple):
    """A training's steps in each generation, and the sample passes it took in all."""

    steps: int
    cost: float


def steps_within(tried: list[Tried], budget: float) -> int:
    """Steps in each generation that cost the budget, on the line through the last two trainings.

    Raises:
        RecipeError: not even one step fits.

    >>> steps_within([Tried(8, 1800.0), Tried(16, 2600.0)], 11000.0)
    100
    """
    (a, low), (b, high) = tried[-2:]
    each = (high - low) / (b - a)
    steps = int((budget - low) / each + a + 0.5)
    if steps < 1:
        raise RecipeError(_dear(Tried(1, low + each * (1 - a)), budget))
    return steps


def _dear(tried: Tried, budget: float) -> str:
    several = f"{tried.steps} steps" if tried.steps > 1 else "one step"
    return (
        f"{several} in each generation, with what is done between them, take {tried.cost:,.0f} passes, and the budget "
        f"is {budget:,.0f}"
    )


def matched(train: Callable[[int], tuple[Any, float]], budget: float) -> tuple[Any, int]:
    """What ``train`` (steps -> what it gives, its cost) gives at a cost within 3 % of the budget, and its steps.

    After three tries the nearest; costs need not be linear in the steps, for answers of frozen teachers are kept.

    Raises:
        RecipeError: the first short training alone takes more than the budget.
    """
    tried = [Tried(SHORT, train(SHORT)[1])]
    if tried[0].cost > budget:
        raise RecipeError(_dear(tried[0], budget))
    tried.append(Tried(2 * SHORT, train(2 * SHORT)[1]))
    found: list[tuple[float, Any, int]] = []
    for _ in range(TRIES):
        steps = steps_within(tried, budget)
        if any(steps == before for *_, before in found):
            break
        given, cost = train(steps)
        found.append((abs(cost / budget - 1), given, steps))
        if found[-1][0] <= CLOSE:
            break
        tried.append(Tried(steps, cost))
    _, given, steps = min(found, key=lambda one: one[0])
    return given, steps


class Training:
    """A method in a setting with a seed: its data, model and teacher, to be trained for any number of steps."""

    def __init__(self, cell: Cell, data: Data) -> None:
        expression = PLAIN if cell.method == HALF else cell.method
        self.cell, self.data, self.method = cell, data, read_method(expression)
        self.build = build_for(cell.setting, expression)
        self.teacher, self.taught = None, Passes()
        if wants_teacher(self.method):
            seed = draws.seed(cell.seed, "teacher") % (1 << 31)
            found = self._fit(plain(), cell.setting.steps, seed)
            self.teacher, self.taught = found.model, found.passes

    def _fit(self, method: Method, steps: int, seed: int) -> Result:
        return fit(
            self.build, self.data, method, external=self.teacher, device="cpu", warn=_quiet, steps=steps, seed=seed,
            batch_size=batch_size_for(self.data, method), audit="off",
        )  # fmt: skip

    def __call__(self, steps: int) -> tuple[Result, float]:
        """The training of so many steps in each generation, and what all of it has cost."""
        found = self._fit(self.method, steps, self.cell.seed)
        return found, (found.passes + self.taught).cost()


def _quiet(line: str) -> None:
    """Trouble that a training survives is no line among those of the cells: its history has it, and so the record."""


def run(cell: Cell, out: Path) -> dict[str, Any]:
    """Train a cell and write its record, on one thread; a failure is recorded too, in one line.

    Raises:
        DataError: the data cannot be read, or the first seed is not trained yet.
    """
    first = _first(cell, out)
    data, begun = data_of(cell.setting, cell.seed), time.monotonic()
    try:
        with threads.using(1):
            if cell.method == SELF_TRAINING:
                found = _learner(data)
            elif cell.method == UNTRAINED:
                found = _untrained(cell, data)
            else:
                found = _network(cell, data, _known(first))
        record = {"status": "finished", **found}
    except Exception as error:  # a new recipe's own fault is a row of the table too
        said = f"{type(error).__name__}: {one_line(error)}"
        record = {"status": "failed", "error": said}
    record |= {
        "format": FORMAT,
        "setting": cell.setting.to_json(),
        "method": cell.method,
        "seed": cell.seed,
        "versions": {"selfdistill": __version__, "torch": torch.__version__},
        "data": data.fingerprint,
        "seconds": round(time.monotonic() - begun, 2),
        "command": cell.command(),
    }
    path = cell.path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, record)
    return record


def _first(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The record of the first seed, which comes before the others; None for the first itself."""
    if cell.seed == 0:
        return None
    record = read(Cell(cell.setting, cell.method, 0), out)
    if record is None:
        raise DataError(f"{cell.method} in {cell.setting.name} is trained with seed 0 before seed {cell.seed}")
    return record


def _known(first: dict[str, Any] | None) -> int | None:
    """The steps that the first seed found.

    Raises:
        RecipeError: the method fails with the first seed, and is not tried with the others.
    """
    if first is not None and first["status"] == "failed":
        raise RecipeError(f"not tried, for seed 0 has failed ({first['error']})")
    return int(first["steps_each"]) if first is not None else None


def _network(cell: Cell, data: Data, known: int | None) -> dict[str, Any]:
    training = Training(cell, data)
    if cell.method in (PLAIN, HALF):  # by which the budget is defined
        known = cell.setting.steps * (1 if cell.method == HALF else TIMES)
    if known is None:
        found, each = matched(training, cell.setting.budget)
    else:
        found, each = training(known)[0], known
    last = found.generations[found.product]
    asked = probed if cell.setting.probing else heard
    said, early = (asked(found.model, data, weights) for weights in (last.weights, last.best))
    spent = found.passes + training.taught
    return {
        "audit": {"last": _scored(said.audit, data, data.audit), "stopped": _scored(early.audit, data, data.audit)},
        "test": {"last": _scored(said.test(), data, data.test), "stopped": _scored(early.test(), data, data.test)},
        "best_epoch": last.best_epoch,
        "start": found.generations[0].start,
        "product": found.product,
        "generations": len(found.generations),
        "steps": found.steps,
        "steps_each": each,
        "passes": {**spent._asdict(), "total": spent.cost()},
        "budget": cell.setting.budget,
        "warnings": list(dict.fromkeys(said for line in found.history for said in line.get("warnings", []))),
    }


def _scored(said: torch.Tensor, data: Data, rows: torch.Tensor) -> dict[str, float]:
    return scored(said, data.y[rows], data.task)


def _untrained(cell: Cell, data: Data) -> dict[str, Any]:
    """The weights that the other methods begin with, under the same probe."""
    torch.manual_seed(draws.seed(cell.seed, "init", 0))
    said = probed(build_for(cell.setting, PLAIN)(), data)
    return _without_passes(data, said.audit, said.test())


def _without_passes(data: Data, audit: torch.Tensor, test: torch.Tensor) -> dict[str, Any]:
    """A record of logits (rows, classes) on both splits, for which no network was trained: it has no other epoch."""
    found = {}
    for name, said, ids in (("audit", audit, data.audit), ("test", test, data.test)):
        found[name] = dict.fromkeys(("last", "stopped"), _scored(said, data, ids))
    return {**found, "passes": None, "steps": 0, "budget": None}


def _learner(data: Data) -> dict[str, Any]:
    """Self-training of scikit-learn over logistic regression, with their usual settings but for more iterations."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier
    from threadpoolctl import threadpool_limits

    def rows(ids: torch.Tensor) -> Any:
        return data.rows(ids).flatten(1).numpy()

    taught = torch.cat([data.labelled, data.unlabelled])
    learner = SelfTrainingClassifier(LogisticRegression(max_iter=500))
    with threadpool_limits(1):
        learner.fit(rows(taught), data.y[taught].numpy())
    audit, test = (
        torch.from_numpy(learner.predict_proba(rows(ids))).clamp(min=1e-12).log() for ids in (data.audit, data.test)
    )
    return _without_passes(data, audit, test)
