"""Running a comparison: a folder of cells, two at a time where that is faster, and the way back into it.

::

    plan.json         what is compared, at what budget, in how many steps each: written once
    cells/ROW/SEED/   cell.json (the record) and times.json, when done; training/ while under way
    comparison.json   the verdicts
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ...errors import CheckpointError, DataError, RecipeError, SelfdistillError, VitalsError
from ...evaluation.cross_scores import CROSS_FIT
from ...evaluation.statistics import fewest_seeds, reachable
from ...io import trust
from ...io.expressions import Range, one_line
from ...io.files import FORMAT, check_format, cores, is_temporary, refuse_links, sweep
from ...io.run_config import FILE as CONFIG
from ...io.run_config import Value, request_options, write_run_config
from ...io.run_record import Request, versions
from ...io.schema import find_fault, read_json, refuse_misfits
from ...io.tensors import write_json
from ...report import COMPARISON, LABEL_CURVE, PAGE, surviving
from ...report import write as write_report
from ...training import threads
from ...training.budget import FILE, MARGIN, Expense, Meter, Peak, foretell, parse_budget
from ...training.comparison import (
    BOTH,
    MATCHES,
    OWN,
    ComparisonDesign,
    ComparisonSettings,
    Job,
    check,
    cost,
    fixed_cost,
    of_seed,
    split_match,
)
from ..folder import Folder, locked
from ..processes import run_jobs
from ..ray_jobs import Work, run_on_ray
from ..request_trust import require_request_trust
from ..task_types import TASK_TYPES
from .verdicts import judge, label_curve

Tell = Callable[[str], None]


Trainer = Callable[[Job, Request, Path], dict[str, Any]]  # trains a job, in a folder of its own; gives its record


_JOB = {"name": str, "kind": str, "steps": int, "seed": int, "expression": (str, None), "count": int}


_PLAN = {
    "format": Any,
    "asked": dict,
    "threads": Range(1, 4096),
    "jobs": ([_JOB], None),
    "command": [str],
    "versions": {str: str},
    "teacher": bool,
    "amount?": float,
    "seeds?": [int],
    "steps?": (int, None),
}


TRIAL = 20  # a trial has this share of the steps, and another one twice as many


_FILES = {
    "cell.json": {"rows": {str: dict}, "data": {"task": str}, "model": str, "parameters": (int, None)},
    "times.json": {"seconds": float, "peak_memory_mb": float},
}


def _work(job: Job, request: Request, folder: Path, count: int, train: Trainer, trusted: bool) -> None:
    """Train a job on so many threads and write its record: ``cell.json``, and ``times.json``, which no two runs share.

    The record may say the ``seconds`` of earlier sittings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        named(job),
        trust.trust_code(trusted),
        threads.limited_to(count),
        locked(folder),
    ):  # a comparison that was killed may have left a worker there
        if (folder / "cell.json").exists():  # which may just have ended
            return
        sweep(folder)
        peak, begun = Peak(), time.monotonic()
        record = train(job, request, folder)
        seconds = max(record.pop("seconds", 0.0), time.monotonic() - begun)
        write_json(folder / "times.json", {"seconds": seconds, "peak_memory_mb": peak.megabytes()})
        write_json(folder / "cell.json", {"job": asdict(job), **record})
        shutil.rmtree(folder / "training", ignore_errors=True)


def _known(folder: Path) -> list[None]:
    """One entry for a cell that is trained, none for another."""
    return [None] if (folder / "cell.json").exists() else []


@contextmanager
def named(job: Job) -> Iterator[None]:
    """An error says which training it came from."""
    try:
        yield
    except SelfdistillError as error:
        error.args = (f"{job.name}, seed {job.seed}: {error}",)
        raise


class Comparison:
    """A folder in which a comparison is run, cut and taken up again."""

    def __init__(
        self, folder: Path, request: Request, settings: ComparisonSettings, design: type[ComparisonDesign]
    ) -> None:
        self.folder, self.request, self.settings, self.design = folder, request, settings, design
        self._folder = Folder(folder, "plan.json", "comparison")
        self._meter: Meter | None = None
        self.on: str | None = None  # a cluster for the trainings; it changes no result
        self._options: dict[str, Value] = {}  # that ask for it, as run.toml has them

    @classmethod
    def create(
        cls,
        request: Request,
        settings: ComparisonSettings,
        out: str | Path | None = None,
        source: Path | None = None,
    ) -> Comparison:
        """The folder for a comparison; an existing one is taken up again if it compares the same.

        Args:
            request: as of `compare`.
            settings: methods, seeds and what is matched.
            out: the folder; by default one below ``runs``.
            source: the file that the request was read from, if any: functions that it names need trust.

        Raises:
            CheckpointError: the file names a function that is not trusted.
            DataError: the question cannot be answered, or the folder holds something else.
        """
        check(settings)
        if request.budget is not None:
            parse_budget(request.budget)
        if request.search is not None or request.trials is not None:
            raise DataError("a comparison searches nothing; search by `selfdistill run`, and compare what it chooses")
        if request.test == CROSS_FIT:
            raise DataError(
                f"--test {CROSS_FIT} is for `run` and `label-errors`; a comparison pairs scores on test rows"
            )
        if source is not None:
            require_request_trust(request, source)
        design = design_for(request, settings.methods)
        options = comparison_options(request, settings)
        request = design.shared(request, settings)
        if settings.ablation and not design.ablates:
            raise DataError(
                f"--ablation is for networks and learners that predict, and {settings.methods[0]} is for none; "
                "leave it out"
            )
        default = Path("runs") / f"compare-{replace(request, method=' '.join(settings.methods)).name()}"
        comparison = cls(Path(out) if out is not None else default, request, settings, design)
        comparison._options = options
        if comparison._folder.begun():
            before, now = comparison.plan()["asked"], comparison.asked()
            differences = [key for key, value in now.items() if before.get(key) != value and key != "budget"]
            comparison._folder.refuse(
                ", ".join(f"{key} {_short(before.get(key))}, now {_short(now[key])}" for key in differences)
            )
        return comparison

    @property
    def plan_file(self) -> Path:
        return self._folder.record

    def asked(self) -> dict[str, Any]:
        """What the comparison is of, as JSON has it."""
        asked = {**self.request.to_json(), **asdict(self.settings)}
        if not self.settings.ablation:  # a folder without it may be older than the option
            del asked["ablation"]
        return dict(json.loads(json.dumps(asked)))

    def plan(self) -> dict[str, Any]:
        try:
            plan = read_json(self.plan_file, {"format?": Any})
            check_format(self.plan_file, plan.get("format"))
            if fault := find_fault(plan, _PLAN):
                raise ValueError(fault)
            return dict(plan)
        except (OSError, ValueError) as error:
            why = one_line(error, 120)
            raise CheckpointError(f"{self.plan_file} is damaged or foreign ({why}); give another --out") from error

    # running -------------------------------------------------------------------------------------------------------

    def execute(self, tell: Tell = lambda line: None) -> dict[str, Any]:
        """Train what is not trained yet, then judge; returns what ``comparison.json`` holds.

        Raises:
            DataError: the data, or their audit split, allow no comparison.
            KeyboardInterrupt: asked to stop; the finished cells stay, and so do checkpoints of the others.
        """
        begun, budget = time.monotonic(), self.request.budget
        refuse_links(self.folder)
        design = self.design.load(self.request, self.settings)
        tell(self._reachable())
        fresh = not self.plan_file.exists()
        if fresh:
            design.check()
            self._folder.create()
            count = design.threads()
            first = {"format": FORMAT, "asked": self.asked(), "threads": count, "jobs": None}
            first |= {"command": sys.argv, "versions": versions(), "teacher": design.control(tell)}
            write_json(self.plan_file, first)
            write_run_config(self.folder, "compare", self._options, {})
        plan = self.plan()
        count = int(plan["threads"])
        try:
            self._meter = None if budget is None else Meter(budget, self.folder, tell)
            if self._meter is not None:
                design = self._fit_into_budget(self._meter, design, plan)
            tried = design.pilots(plan["teacher"]) if plan["jobs"] is None else []
            self._train(tried, count, tell, "pilot")
            self._require_all(tried)
        except (DataError, RecipeError, VitalsError):
            if plan["jobs"] is None:
                (self.folder / CONFIG).unlink(missing_ok=True)
                self._folder.withdraw("cells", "trial", FILE)
            raise
        if plan["jobs"] is None:
            costs = {job.name: cost(self._cell(job), self._times(job)["seconds"], self.settings.match) for job in tried}
            fixed = {job.name: fixed_cost(self._cell(job), self.settings.match) for job in tried}
            amount, jobs = design.planned(costs, fixed)
            plan |= {"amount": amount, "jobs": [asdict(job) for job in jobs]}
            write_json(self.plan_file, plan)
        one_seed, seeds = [Job(**job) for job in plan["jobs"]], plan.get("seeds", list(self.settings.seeds))
        all_jobs = [job for seed in seeds for job in of_seed(one_seed, seed)]
        self._train(all_jobs, count, tell, "cell")
        done = self._complete(all_jobs)
        return self._finish(plan, done, time.monotonic() - begun, tell)

    def _reachable(self, seeds: int | None = None) -> str:
        number = len(self.settings.seeds) if seeds is None else seeds
        return reachable(number, len(self.design.judged(self.settings.methods)), self.settings.level)

    # the budget ----------------------------------------------------------------------------------------------------

    def _fit_into_budget(self, meter: Meter, design: ComparisonDesign, plan: dict[str, Any]) -> ComparisonDesign:
        """Choose seeds and steps that fit: fewer seeds as long as a verdict can be reached, then fewer steps.

        Returns:
            The design with as many steps.

        Raises:
            DataError: not one step fits.
        """
        if plan["asked"]["budget"] != meter.text:  # begun with another one: its steps stay, its seeds do not
            plan["asked"]["budget"] = meter.text
            plan.pop("seeds", None)
        elif "seeds" not in plan:
            seeds, steps = self._affordable(meter, design, plan)
            plan |= {"seeds": seeds, "steps": steps}
        write_json(self.plan_file, plan)
        if plan.get("steps") is None:
            return design
        return self.design.load(replace(self.request, steps=plan["steps"], epochs=None), self.settings)

    def _affordable(self, meter: Meter, design: ComparisonDesign, plan: dict[str, Any]) -> tuple[list[int], int | None]:
        """The seeds that fit, and the steps where fewer must be taken, by two short trials of each method."""
        seeds, teacher = list(self.settings.seeds), bool(plan["teacher"])
        pilots = design.pilots(teacher)
        jobs = pilots or [job for job in design.planned({})[1] if job.name in self.settings.methods]
        asked = max(job.steps for job in jobs)
        if not asked:
            return seeds, None
        fixed, rate, costs, once = Expense(), Expense(), dict[str, float](), dict[str, float]()
        for job in jobs:
            short = max(1, asked // TRIAL)
            _, one = self._trial(job, short, plan["threads"])
            second, two = self._trial(job, 2 * short, plan["threads"])
            alike = design.trainings(job)
            slope = [max((b - a) / short, b / (8 * short)) for a, b in zip(one, two, strict=True)]
            start = [max(0.0, a - s * short) for a, s in zip(one, slope, strict=True)]
            rate = Expense(*(max(a, b / alike) for a, b in zip(rate, slope, strict=True)))
            fixed = Expense(*(max(a, b / alike) for a, b in zip(fixed, start, strict=True)))
            match = self.settings.match
            once[job.name] = fixed_cost(second, match)
            grown = cost(second, two.seconds, match) - once[job.name]
            costs[job.name] = once[job.name] + grown * asked / (2 * short)
        meter.check_memory("a training of the comparison")
        each = design.planned(costs, once)[1]
        trainings, workers = sum(map(design.trainings, each)), self._workers(len(each) * len(seeds), plan["threads"])
        spend = Expense(MARGIN * meter.left().seconds * workers, meter.left().passes)

        def fitting(seeds: int) -> int:
            """The steps that so many seeds may have."""
            number = len(pilots) + seeds * trainings
            return min(
                asked if rest == math.inf or not a else math.floor((rest / number - b) / a)
                for rest, a, b in zip(spend, rate, fixed, strict=True)
            )

        fewest = min(len(seeds), fewest_seeds(len(self.design.judged(self.settings.methods)), self.settings.level))
        number = next((n for n in range(len(seeds), fewest, -1) if fitting(n) >= asked), fewest)
        steps = min(asked, fitting(number))
        if steps < 1:
            raise DataError(
                f"--budget {meter.text} has no room for a step of {number} seeds with {trainings} trainings each; give "
                "a larger one, or fewer --methods"
            )
        if number < len(seeds):
            meter.cut(f"{number} seeds in place of {len(seeds)}: no more fit")
        if steps < asked:
            meter.cut(f"{steps:,} steps in place of {asked:,}: no more fit")
        return seeds[:number], steps if steps < asked else None

    def _trial(self, job: Job, steps: int, count: int) -> tuple[dict[str, Any], Expense]:
        """Train a job for a few steps: its record, and its cost."""
        folder, begun = self.folder / "trial", time.monotonic()
        short = replace(job, steps=steps, count=min(job.count, steps))
        with named(job), threads.limited_to(count):
            record = self.design.run(short, self.request, folder)
        shutil.rmtree(folder, ignore_errors=True)
        return record, Expense(time.monotonic() - begun, _passes(record))

    def _complete(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs of the seeds whose cells are all there.

        Raises:
            DataError: fewer than three seeds are complete.
        """
        missing = {job.seed for job in jobs if not (self.place(job) / "cell.json").exists()}
        complete = [job for job in jobs if job.seed not in missing]
        if missing and self._meter is not None:
            seeds = len({job.seed for job in jobs})
            self._meter.cut(f"{seeds - len(missing)} of {seeds} seeds are complete: the budget is used up")
            self._require_all([] if seeds - len(missing) >= 3 else jobs)
        return complete

    def _require_all(self, jobs: Sequence[Job]) -> None:
        """Refuse to go on without all of these cells.

        Raises:
            DataError: the budget ended before one of them.
        """
        missing = [job for job in jobs if not (self.place(job) / "cell.json").exists()]
        if missing and self._meter is not None:
            raise DataError(
                f"--budget {self._meter.text} is used up before three seeds are complete, so there is no verdict; what "
                f"is trained is kept in {self.folder}: give the same command with a larger --budget to go on"
            )

    def place(self, job: Job) -> Path:
        return self.folder / "cells" / job.key

    def _read(self, job: Job, name: str) -> dict[str, Any]:
        path = self.place(job) / name
        try:
            return dict(read_json(path, _FILES[name]))
        except (OSError, ValueError) as error:
            why = one_line(error, 80)
            raise CheckpointError(f"{path} is damaged ({why}); delete {path.parent} and go on") from error

    def _cell(self, job: Job) -> dict[str, Any]:
        return self._read(job, "cell.json")

    def _times(self, job: Job) -> dict[str, float]:
        return self._read(job, "times.json")

    def _train(self, wanted: Sequence[Job], count: int, tell: Tell, what: str) -> None:
        left = [job for job in wanted if not (self.place(job) / "cell.json").exists()]
        done, begun = len(wanted) - len(left), time.monotonic()
        if not left:
            return
        number, meter = 0, self._meter

        def choose(queue: Sequence[Job], running: Sequence[Job]) -> Job | None:
            return queue[0] if queue and (meter is None or meter.affords(Expense())) else None

        def finished(job: Job, record: None) -> None:
            nonlocal number
            number += 1
            each = (time.monotonic() - begun) / number
            if meter is not None:
                meter.passes[job.key] = _passes(self._cell(job))
                meter.highest = max(meter.highest, 1e6 * self._times(job)["peak_memory_mb"])
                meter.write()
            name = f"{what} {done + number}/{len(wanted)}: {job.name}, seed {job.seed}"
            tell(f"{name}, about {each * (len(left) - number):.0f} s left")
            if number == 1 and meter is None:
                foretell(each * (len(left) - number), "give fewer --seeds, a smaller --steps or --budget 10min", tell)

        def call(job: Job) -> tuple[Callable[..., None], tuple[Any, ...]]:
            return _work, (job, self.request, self.place(job), count, self.design.run, trust.is_trusted())

        if self.on is not None:
            folder = self.folder.resolve()

            def remote(job: Job) -> Work:
                place = folder / "cells" / job.key
                arguments = (job, self.request, place, count, self.design.run, trust.is_trusted())
                return Work(job.key, _work, arguments, _known, (place,))

            run_on_ray(left, remote, finished, choose, on=self.on, folder=folder, threads=count)
            return
        run_jobs(left, call, finished, workers=self._workers(len(left), count), folder=self.folder, choose=choose)

    @staticmethod
    def _workers(jobs: int, count: int) -> int:
        """The trainings that run at once."""
        return min(jobs, cores()) if count == 1 and not torch.cuda.is_available() else 1

    # the result ----------------------------------------------------------------------------------------------------

    def _finish(self, plan: dict[str, Any], done: list[Job], wall: float, tell: Tell) -> dict[str, Any]:
        with refuse_misfits(self.folder, f"delete {self.folder} and run the comparison again"):
            result = self._result(plan, done, wall)
        write_json(self.folder / COMPARISON, result)
        remedy = f"the comparison is finished, and `selfdistill report {self.folder}` draws it again"
        with surviving(f"{self.folder / PAGE} was not drawn", remedy, tell):
            write_report(self.folder, TASK_TYPES)
        return result

    def _result(self, plan: dict[str, Any], done: list[Job], wall: float) -> dict[str, Any]:
        cells: dict[str, dict[int, dict[str, Any]]] = {}
        times: dict[str, list[dict[str, float]]] = {}
        first = self._cell(done[0])
        for job in done:
            rows, spent = self._cell(job)["rows"], self._times(job)
            shutil.rmtree(self.place(job) / "training", ignore_errors=True)  # of a worker that was killed as it did so
            for name, record in rows.items():
                cells.setdefault(name, {})[job.seed] = record
                times.setdefault(name, []).append(spent)
        task = first["data"]["task"]
        methods, plain = self.design.judged(self.settings.methods), self.design.plain(plan["teacher"])
        ablations = {job.name: job.expression or "" for job in done if job.kind in (OWN, BOTH)}
        return {
            "format": FORMAT,
            "kind": "comparison",
            "type": TASK_TYPES.of_request(replace(self.request, method=self.settings.methods[0])).name,
            "command": plan["command"],
            "versions": plan["versions"],
            "data": first["data"],
            "task": task,
            "model": first["model"],
            "parameters": first["parameters"],
            "threads": plan["threads"],
            "seeds": sorted({job.seed for job in done}),
            "budget": {"kind": self.settings.match, "amount": plan["amount"], "unit": _unit(self.settings.match)},
            "level": self.settings.level,
            **({} if self._meter is None else {"bound": self._meter.summary()}),
            "reachable": [self._reachable(len({job.seed for job in done}))],
            **judge(cells, methods, task=task, level=self.settings.level, plain=plain, ablations=ablations),
            "trouble": [
                f"{name}, seed {seed}: {record['trouble']}"
                for name, records in cells.items()
                for seed, record in records.items()
                if record.get("trouble")
            ],
            "times": {
                "rows": {
                    name: {
                        "seconds": sum(t["seconds"] for t in each) / len(each),
                        "peak_memory_mb": max(t["peak_memory_mb"] for t in each),
                    }
                    for name, each in times.items()
                },
                "wall_seconds": wall,
            },
        }


def comparison_options(request: Request, settings: ComparisonSettings) -> dict[str, Value]:
    """The options that ask for a comparison, by their long names."""
    options = request_options(replace(request, method=None)) | {"methods": settings.methods}
    options |= {"seeds": len(settings.seeds), "level": settings.level}
    if settings.match in MATCHES[:-1]:  # trainings are what tables are matched by, and nobody asks for them
        options["match"] = settings.match
    return options | ({"ablation": True} if settings.ablation else {})


def _passes(record: dict[str, Any]) -> float:
    """The passes of a training, by the record of its rows."""
    return max(float(row["passes"]["total"]) for row in record["rows"].values())


def _unit(match: str) -> str:
    """What a row's whole cost is counted in."""
    return match if match == "trainings" else "passes"


def _short(value: Any) -> str:
    return one_line(repr(value), 60)


def label_curve_folder(request: Request, settings: ComparisonSettings, out: str | Path | None) -> Path:
    """The folder of a comparison at several numbers of labels."""
    name = replace(request, method=" ".join(settings.methods)).name()
    return Path(out) if out is not None else Path("runs") / f"label-curve-{name}"


def compare_labels(
    request: Request,
    settings: ComparisonSettings,
    labels: Sequence[int],
    out: str | Path | None = None,
    tell: Tell = lambda line: None,
    on: str | None = None,
    source: Path | None = None,
) -> dict[str, Any]:
    """The same comparison at several numbers of labels, each in a folder of its own.

    Args:
        request: as of `compare`; its number of labels is not used.
        settings: methods and seeds of each.
        labels: the numbers.
        out: the folder of them all; the same call there goes on with what was cut.
        tell: as of `compare`.
        on: as of `compare`.
        source: as of `Comparison.create`.

    Returns:
        What ``comparison.json`` holds: the labels that each row needs, as of `verdicts.label_curve`.

    Raises:
        DataError: the numbers or the data allow no such comparison, or the folder holds something else.
    """
    counts = sorted(set(labels))
    if len(counts) < 2 or len(counts) < len(labels) or counts[0] < 1:
        raise DataError(f"a label curve has two numbers of labels or more, each once, such as 25,50,100; not {labels}")
    for name, given in (("labels", request.labels), ("budget", request.budget)):
        if given is not None:
            raise DataError(
                f"--{name} has no meaning beside --label-curve, which is of several comparisons; leave it out"
            )
    folder = label_curve_folder(request, settings, out)
    own = {COMPARISON, PAGE}
    for path in folder.iterdir() if folder.is_dir() else ():
        if not (path.name in own or path.name.startswith("labels-") or is_temporary(path)):
            raise DataError(f"{folder} exists and is no label curve of selfdistill; give another --out")
    parts = {n: Comparison.create(replace(request, labels=n), settings, folder / f"labels-{n}", source) for n in counts}
    for part in (parts[counts[-1]], parts[counts[0]]):  # the hardest ones, before anything is trained
        part.design.load(part.request, settings)

    def execute(count: int) -> dict[str, Any]:
        parts[count].on = on
        return parts[count].execute(lambda line: tell(f"{count} labels: {line}"))

    results = {count: execute(count) for count in counts}
    last = results[counts[-1]]
    shared = {key: last[key] for key in ("format", "command", "versions", "data", "task", "model", "level")}
    result = {**shared, "kind": LABEL_CURVE, "methods": list(settings.methods), **label_curve(results)}
    write_json(folder / COMPARISON, result)
    with surviving(f"{folder / PAGE} was not drawn", f"`selfdistill report {folder}` draws it again", tell):
        write_report(folder, TASK_TYPES)
    return result


MOST_SEEDS = 1000


def compare(
    request: Request,
    methods: Sequence[str],
    *,
    seeds: int = 5,
    match: str | None = None,
    budget: str | None = None,
    level: float = 0.05,
    ablation: bool = False,
    out: str | Path | None = None,
    tell: Tell = lambda line: None,
    trust_code: bool = False,
    on: str | None = None,
) -> dict[str, Any]:
    """Compare methods with controls and with each other at matched compute.

    Args:
        request: data, model and training of every row; its method is not used, its seed is the first.
        methods: recipes' expressions, such as ``born_again()``.
        seeds: how many; each is a split, a set of wrong labels, an initialisation and a data order for all rows alike.
        match: what is matched: sample ``passes`` (forward 1, backward 2), optimizer ``steps`` (of prompts, where it is
            left open), ``seconds``, or for prompts the ``completions`` drawn, or
            the ``tokens`` written by sampling plus those that the student reads in training, prompts included.
        budget: bounds of the whole comparison, such as ``2h|8GiB``.
        level: of the verdicts, over the methods.
        ablation: whether methods with peers are also trained by their own predictions, and by both.
        out: the comparison's folder; the same call there goes on with what was cut.
        tell: called with lines about what is done and what is left.
        trust_code: whether functions that folders and files name, such as a teacher's, may be run.
        on: a cluster for the trainings: ``ray`` or ``ray:ADDRESS``; see `ray_jobs`.

    Returns:
        What ``comparison.json`` holds; all of it but ``times`` is the same when it is run again.

    Raises:
        DataError: nothing can be compared so, or the folder holds another comparison.
    """
    if seeds > MOST_SEEDS:
        raise DataError(f"a comparison has at most {MOST_SEEDS} seeds, not {one_line(seeds, 40)}")
    match, bounds = split_match(match, budget)
    request = replace(request, budget=bounds or request.budget)
    matched = design_for(request, methods).matched(match)
    chosen = tuple(range(request.seed, request.seed + seeds))
    settings = ComparisonSettings(tuple(methods), chosen, matched, level, ablation)
    with trust.trust_code(trust_code):
        comparison = Comparison.create(request, settings, out)
        comparison.on = on
        return comparison.execute(tell)


def design_for(request: Request, methods: Sequence[str]) -> type[ComparisonDesign]:
    """How these methods are compared on these data.

    Raises:
        RecipeError, DataError: a method is for other data, or the methods are of several task types.
    """
    tasks = {method: TASK_TYPES.of_request(replace(request, method=method)) for method in methods}
    (first, task_type), *others = tasks.items()
    for method, task in others:
        if task is not task_type:
            raise RecipeError(
                f"{first} is for {task_type.learner} and {method} for {task.learner}; compare one kind at a time"
            )
    return task_type.design()
