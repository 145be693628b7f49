"""What is asked of a model that was trained without labels: a linear classifier on its features.

Records of cells: read with distrust, and missing ones named.

One cell: a method is trained with a setting's budget, and the test split is read once, at the end.

How many steps a method may take is found with the first seed: two short trainings tell what a step and what everything
else costs, then it is trained in full, again where the passes counted miss the budget by more than 3 %. The other seeds
take as many steps. What a trained teacher from outside has cost is paid from the budget: half of it. No generation is
rolled back: with an audit, the rows of several methods were the plain model that their first generation is.

Running cells one after the other, or side by side: whatever is done stays, and the same call goes on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import __version__, rng
from ...core.objective import Method
from ...core.step import Passes
from ...data.dataset import Data
from ...errors import CheckpointError, DataError, RecipeError
from ...evaluation import linear_probe
from ...evaluation.predict import scored
from ...io.expressions import one_line
from ...io.files import append_line, read_lines, writable
from ...io.schema import parse_json
from ...methods.controls import plain
from ...methods.registry import read_method
from ...training import threads
from ...training.comparison import CLOSE, ignore
from ...training.fit import Result, fit
from ..network_run import batch_size_for
from ..network_task import SplitOutputs, split_outputs
from ..processes import run_jobs
from ..ray_jobs import Work, run_on_ray
from .settings import (
    HALF,
    PLAIN,
    SELF_TRAINING,
    TIMES,
    UNTRAINED,
    Cell,
    Setting,
    build_for,
    data_of,
    fits,
    sorted_out,
    wants_teacher,
)


def probed(model: nn.Module, data: Data, weights: dict[str, Tensor] | None = None) -> SplitOutputs:
    """What a linear classifier on the features, learnt from the training labels, says of audit and test rows."""

    def said(rows: Tensor) -> Tensor:
        if weights is not None:
            model.load_state_dict(weights)
        known, asked = (linear_probe.features(model, data, ids, data.head) for ids in (data.labelled, rows))
        y = data.targets[data.labelled]
        logits = torch.full((len(rows), data.outputs), -torch.inf)
        logits[:, y.unique()] = linear_probe.linear(known, y, asked)
        return logits.clamp(min=-1e4)

    return SplitOutputs(said(data.audit), lambda: said(data.test))


FORMAT = 2  # 1: generations were audited


Records = dict[str, dict[int, dict[str, Any]]]  # method -> seed -> record


Tell = Callable[[str], None]


def read(cell: Cell, out: Path) -> dict[str, Any] | None:
    """A cell's record; None where it is not trained yet. Raises as `records_of`."""
    return records_of(cell.setting, out).get(cell.method, {}).get(cell.seed)


def records_of(setting: Setting, out: Path, tell: Tell = lambda line: None) -> Records:
    """All records of a setting, by method and seed; of two records of a cell the later one counts.

    Args:
        setting: whose file is read; without one there are no records.
        out: the folder of the files.
        tell: called with a line where the end of the file was cut off as it was written, and is left out.

    Raises:
        CheckpointError: a line is damaged.
        DataError: a record is of another setting of this name.
    """
    path = setting.path(out)
    lines, torn = read_lines(path)
    if torn:
        tell(f"the last line of {path} was cut off while it was written; its cell counts as missing")
    records: Records = {}
    for number, line in enumerate(lines, 1):
        record = _parse(line, f"{path}, line {number},", setting)
        records.setdefault(record["method"], {})[record["seed"]] = record
    return records


def _parse(line: str, place: str, setting: Setting) -> dict[str, Any]:
    try:
        record = dict(parse_json(line, {"setting": dict}))
        was, seed, status = record["setting"], record["seed"], record["status"]
        if not isinstance(record["method"], str) or type(seed) is not int or status not in ("finished", "failed"):
            raise ValueError("method, seed or status is missing")
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, this version reads {FORMAT}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{place} is damaged ({one_line(error, 80)}); delete the line and go on") from error
    now = setting.to_json()
    differs = [f"{k} {was.get(k)!r}, now {v!r}" for k, v in now.items() if was.get(k) != v]
    if differs:
        raise DataError(f"{place} is of another setting ({'; '.join(differs)}); delete it, or give another --out")
    return record


def spans(numbers: list[int]) -> str:
    """Whole numbers in words.

    >>> spans([0, 1, 2, 5])
    '0-2, 5'
    """
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


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


def train_within(train: Callable[[int], tuple[Any, float]], budget: float) -> tuple[Any, int]:
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
            seed = rng.seed(cell.seed, "teacher") % (1 << 31)
            found = self._fit(plain(), cell.setting.steps, seed)
            self.teacher, self.taught = found.model, found.passes

    def _fit(self, method: Method, steps: int, seed: int) -> Result:
        return fit(
            self.build, self.data, method, external=self.teacher, device="cpu", warn=ignore, steps=steps, seed=seed,
            batch_size=batch_size_for(self.data, method), audit="off",
        )  # fmt: skip

    def __call__(self, steps: int) -> tuple[Result, float]:
        """The training of so many steps in each generation, and what all of it has cost."""
        found = self._fit(self.method, steps, self.cell.seed)
        return found, (found.passes + self.taught).cost()


def run(cell: Cell, out: Path) -> dict[str, Any]:
    """Train a cell and write its record, on one thread; a failure is recorded too, in one line.

    Raises:
        DataError: the data cannot be read, or the first seed is not trained yet.
    """
    first = _first(cell, out)
    data, begun = data_of(cell.setting, cell.seed), time.monotonic()
    try:
        with threads.limited_to(1):
            if cell.method == SELF_TRAINING:
                found = _learner(data)
            elif cell.method == UNTRAINED:
                found = _untrained(cell, data)
            else:
                found = _network(cell, data, _steps_known(first))
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
    append_line(cell.setting.path(out), json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False))
    return record


def _first(cell: Cell, out: Path) -> dict[str, Any] | None:
    """The record of the first seed, which comes before the others; None for the first itself."""
    if cell.seed == 0:
        return None
    record = read(Cell(cell.setting, cell.method, 0), out)
    if record is None:
        raise DataError(f"{cell.method} in {cell.setting.name} is trained with seed 0 before seed {cell.seed}")
    return record


def _steps_known(first: dict[str, Any] | None) -> int | None:
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
        found, each = train_within(training, cell.setting.budget)
    else:
        found, each = training(known)[0], known
    last = found.generations[found.final_generation]
    asked = probed if cell.setting.probing else split_outputs
    said, early = (asked(found.model, data, weights) for weights in (last.weights, last.best))
    spent = found.passes + training.taught
    return {
        "audit": {"last": _scored(said.audit, data, data.audit), "stopped": _scored(early.audit, data, data.audit)},
        "test": {"last": _scored(said.test(), data, data.test), "stopped": _scored(early.test(), data, data.test)},
        "best_epoch": last.best_epoch,
        "start": found.generations[0].start,
        "final_generation": found.final_generation,
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
    torch.manual_seed(rng.seed(cell.seed, "init", 0))
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


def plan(settings: Sequence[Setting], methods: Sequence[str] = (), seeds: int | None = None) -> list[Cell]:
    """The cells that are asked for, in their order: setting by setting, seed by seed, the reference first.

    ``methods`` are expressions, each with the reference beside it; without any, everything that fits the setting.

    >>> from .settings import SETTINGS
    >>> [(cell.method, cell.seed) for cell in plan([SETTINGS["digits-noise"]], ["elr()"], 2)]
    [('plain()', 0), ('elr()', 0), ('plain()', 1), ('elr()', 1)]
    """
    found = []
    for setting in settings:
        fitting = sorted_out(setting)[0]
        wanted = [PLAIN, *(m for m in methods if m != PLAIN and fits(m, setting))] if methods else fitting
        count = setting.seeds if seeds is None else seeds
        found += [Cell(setting, method, seed) for seed in range(count) for method in wanted]
    return found


class Progress:
    """What is done, how long a cell takes, how much is left, and whether there is time for another one."""

    def __init__(self, left: int, done: int, minutes: float | None, tell: Tell) -> None:
        self.done, self.all = done, done + left
        self.begun, self.minutes, self.tell = time.monotonic(), minutes, tell
        self.longest = dict[str, float]()  # by setting
        self.finished = 0

    def time_for(self, cell: Cell) -> bool:
        """Would a cell as long as the longest of its setting end within the minutes given?"""
        if self.minutes is None:
            return True
        return time.monotonic() - self.begun + self.longest.get(cell.setting.name, 0.0) < 60 * self.minutes

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        """Tell of a cell that has ended."""
        self.finished += 1
        longest = self.longest.get(cell.setting.name, 0.0)
        self.longest[cell.setting.name] = max(longest, record["seconds"])
        left = (time.monotonic() - self.begun) / self.finished * (self.all - self.done - self.finished)
        figure = f"{100 * record['test']['last']['accuracy']:.1f} %" if "test" in record else record["error"]
        where = f"{self.done + self.finished}/{self.all} {cell.setting.name}: {cell.method}, seed {cell.seed}"
        self.tell(f"{where}: {figure}, {record['seconds']:.1f} s; about {_span(left)} left")


def _span(seconds: float) -> str:
    """A time as a person says it.

    >>> _span(40.0), _span(4000.0), _span(40000.0)
    ('40 s', '67 min', '11.1 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def run_cells(
    wanted: Sequence[Cell],
    out: Path,
    workers: int = 1,
    minutes: float | None = None,
    tell: Tell = lambda line: None,
    on: str | None = None,
) -> int:
    """Train what is not trained yet; how many cells are left when the time is over.

    ``on`` is a cluster for them (``ray`` or ``ray:ADDRESS``), in the place of ``workers`` processes here.

    Raises:
        DataError: data are missing, or a record is of another setting.
        CheckpointError: a record is damaged, or a process was ended from outside.
        KeyboardInterrupt: asked to stop; cells that are done stay.
    """
    done = {setting: records_of(setting, out, tell) for setting in dict.fromkeys(cell.setting for cell in wanted)}
    left = [cell for cell in wanted if cell.seed not in done[cell.setting].get(cell.method, {})]
    for setting in dict.fromkeys(cell.setting for cell in left):  # what is missing is told before anything is trained
        data_of(setting, 0)
        out.mkdir(parents=True, exist_ok=True)
        writable(setting.path(out), "--out")
    progress = Progress(len(left), len(wanted) - len(left), minutes, tell)

    def choose(queue: Sequence[Cell], running: Sequence[Cell]) -> Cell | None:
        cell = _next(queue, running)
        return cell if cell is not None and progress.time_for(cell) else None

    if on is not None:
        place = out.resolve()

        def remote(cell: Cell) -> Work:
            key = f"{cell.setting.name}: {cell.method}, seed {cell.seed}"
            return Work(key, run, (cell, place), _known, (cell, place))

        run_on_ray(left, remote, progress.ended, choose, on=on, folder=out)
        return len(left) - progress.finished
    several = min(workers, max(1, len(left)))
    run_jobs(left, lambda cell: (run, (cell, out)), progress.ended, workers=several, folder=out, choose=choose)
    return len(left) - progress.finished


def _known(cell: Cell, out: Path) -> list[dict[str, Any]]:
    """The record of a cell that is trained; none of one that is not."""
    record = read(cell, out)
    return [] if record is None else [record]


def _next(queue: Sequence[Cell], running: Sequence[Cell]) -> Cell | None:
    """The first cell whose method is not being trained with seed 0 in the same setting."""
    firsts = {(cell.setting.name, cell.method) for cell in running if cell.seed == 0}
    waiting = {(cell.setting.name, cell.method) for cell in queue if cell.seed == 0}

    def free(cell: Cell) -> bool:
        return cell.seed == 0 or (cell.setting.name, cell.method) not in firsts | waiting

    return next((cell for cell in queue if free(cell)), None)
