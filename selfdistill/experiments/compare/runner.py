"""Running a comparison: a folder of cells, two at a time where that is faster, and the way back into it.

::

    plan.json         what is compared, at what budget, in how many steps each: written once
    cells/ROW/SEED/   cell.json (the record) and times.json, when done; training/ while under way
    comparison.json   the verdicts
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ... import __version__
from ...errors import CheckpointError, DataError, RecipeError, SelfdistillError, VitalsError
from ...estimators.task import for_learners
from ...evaluation.statistics import reachable
from ...io.expressions import one_line
from ...io.run_record import Request
from ...io.tensors import write_json
from ...language.task import for_language, holds_prompts
from ...report import COMPARISON
from ...report import write as write_report
from ...training import threads
from . import plan, processes
from .controls import Kind
from .plan import Ask, Job, Trained, check, cost, of_seed
from .verdicts import judge

FORMAT = 1


Tell = Callable[[str], None]


def _work(job: Job, request: Request, folder: Path, count: int, trained: Trained) -> None:
    """One job in a process of its own."""
    with named(job), threads.using(count):
        plan.run(job, request, folder, trained)


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

    def __init__(self, folder: Path, request: Request, ask: Ask, kind: type[Kind]) -> None:
        self.folder, self.request, self.ask, self.kind = folder, request, ask, kind

    @classmethod
    def create(cls, request: Request, ask: Ask, out: str | Path | None = None) -> Comparison:
        """The folder for a comparison; an existing one is taken up again if it compares the same.

        Raises:
            DataError: the question cannot be answered, or the folder holds something else.
        """
        check(ask)
        kind = kind_of(request, ask.methods)
        request = kind.settled(request, ask)
        default = Path("runs") / f"compare-{replace(request, method=' '.join(ask.methods)).name()}"
        found = cls(Path(out) if out is not None else default, request, ask, kind)
        if found.plan_file.exists():
            before, now = found.plan()["asked"], found.asked()
            differs = [k for k, v in now.items() if before.get(k) != v]
            if differs:
                changes = ", ".join(f"{k} {_short(before.get(k))}, now {_short(now[k])}" for k in differs)
                raise DataError(
                    f"{found.folder} holds a comparison with other settings ({changes}); give another --out"
                )
        elif found.folder.exists() and (not found.folder.is_dir() or any(found.folder.iterdir())):
            raise DataError(f"{found.folder} exists and is no comparison; give another --out")
        return found

    @property
    def plan_file(self) -> Path:
        return self.folder / "plan.json"

    def asked(self) -> dict[str, Any]:
        """What the comparison is of, as JSON has it."""
        asked = {**self.request.to_json(), **asdict(self.ask)}
        return dict(json.loads(json.dumps(asked)))

    def plan(self) -> dict[str, Any]:
        try:
            plan = json.loads(self.plan_file.read_text(encoding="utf-8"))
            if plan["format"] != FORMAT:
                raise ValueError(f"format {plan['format']!r}, this version reads {FORMAT}")
            return dict(plan)
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = one_line(error, 120)
            raise CheckpointError(f"{self.plan_file} is damaged or foreign ({why}); give another --out") from error

    # running -------------------------------------------------------------------------------------------------------

    def execute(self, tell: Tell = lambda line: None) -> dict[str, Any]:
        """Train what is not trained yet, then judge; returns what ``comparison.json`` holds.

        Raises:
            DataError: the data, or their audit split, allow no comparison.
            KeyboardInterrupt: asked to stop; the finished cells stay, and so do checkpoints of the others.
        """
        begun = time.monotonic()
        kind = self.kind.begun(self.request, self.ask)
        tell(self._reachable())
        fresh = not self.plan_file.exists()
        if fresh:
            kind.check()
            self.folder.mkdir(parents=True, exist_ok=True)
            count = kind.threads()
            first = {"format": FORMAT, "asked": self.asked(), "threads": count, "jobs": None}
            first |= {"command": sys.argv, "versions": _versions(), "teacher": kind.control(tell)}
            write_json(self.plan_file, first)
        plan = self.plan()
        count = int(plan["threads"])
        if plan["jobs"] is None:
            tried = kind.pilots(plan["teacher"])
            try:
                self._train(tried, count, tell, "pilot")
            except (DataError, RecipeError, VitalsError):
                if fresh:
                    self._withdraw()
                raise
            costs = {job.name: cost(self._cell(job), self._times(job)["seconds"], self.ask.budget) for job in tried}
            amount, jobs = kind.planned(costs)
            plan |= {"amount": amount, "jobs": [asdict(job) for job in jobs]}
            write_json(self.plan_file, plan)
        one_seed = [Job(**job) for job in plan["jobs"]]
        all_jobs = [job for seed in self.ask.seeds for job in of_seed(one_seed, seed)]
        self._train(all_jobs, count, tell, "cell")
        return self._finish(plan, all_jobs, time.monotonic() - begun)

    def _reachable(self) -> str:
        return reachable(len(self.ask.seeds), len(self.kind.judged(self.ask.methods)), self.ask.level)

    def _withdraw(self) -> None:
        """What was refused before there was a plan leaves nothing behind: the corrected command may use the folder."""
        shutil.rmtree(self.folder / "cells", ignore_errors=True)
        self.plan_file.unlink(missing_ok=True)
        with suppress(OSError):  # another's files are in it
            self.folder.rmdir()

    def place(self, job: Job) -> Path:
        return self.folder / "cells" / job.key

    def _read(self, job: Job, name: str) -> dict[str, Any]:
        path = self.place(job) / name
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            why = one_line(error, 80)
            raise CheckpointError(f"{path} is damaged ({why}); delete {path.parent} and go on") from error

    def _cell(self, job: Job) -> dict[str, Any]:
        return self._read(job, "cell.json")

    def _times(self, job: Job) -> dict[str, float]:
        return self._read(job, "times.json")

    def _train(self, wanted: Sequence[Job], count: int, tell: Tell, what: str) -> None:
        left = [job for job in wanted if not (self.place(job) / "cell.json").exists()]
        done, begun = len(wanted) - len(left), time.monotonic()
        workers = min(len(left), threads.cores()) if count == 1 and not torch.cuda.is_available() else 1
        if not left:
            return

        def finished(job: Job, number: int) -> None:
            each = (time.monotonic() - begun) / number
            name = f"{what} {done + number}/{len(wanted)}: {job.name}, seed {job.seed}"
            tell(f"{name}, about {each * (len(left) - number):.0f} s left")

        if workers == 1:
            for number, job in enumerate(left, 1):
                _work(job, self.request, self.place(job), count, self.kind.run)
                finished(job, number)
            return
        self._side_by_side(left, count, workers, finished)

    def _side_by_side(self, left: list[Job], count: int, workers: int, finished: Callable[[Job, int], None]) -> None:
        """Each job in a process of its own; the first that fails, or Ctrl-C, ends all."""
        running = dict[Future[None], Job]()
        with processes.pool(workers) as pool:
            number = 0
            try:
                with processes.started():
                    for job in left:
                        place, run = self.place(job), self.kind.run
                        running[pool.submit(processes.alone, _work, job, self.request, place, count, run)] = job
                while running:
                    ended, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()
                        number += 1
                        finished(running.pop(future), number)
            except BrokenProcessPool:
                raise CheckpointError(
                    "the process of a training was ended from outside (out of memory?); what is finished is kept in "
                    f"{self.folder}: give the same command again to go on"
                ) from None
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    # the result ----------------------------------------------------------------------------------------------------

    def _finish(self, plan: dict[str, Any], done: list[Job], wall: float) -> dict[str, Any]:
        cells: dict[str, dict[int, dict[str, Any]]] = {}
        times: dict[str, list[dict[str, float]]] = {}
        first = self._cell(done[0])
        for job in done:
            rows, spent = self._cell(job)["rows"], self._times(job)
            for name, record in rows.items():
                cells.setdefault(name, {})[job.seed] = record
                times.setdefault(name, []).append(spent)
        task = first["data"]["task"]
        methods, plain = self.kind.judged(self.ask.methods), self.kind.plain(plan["teacher"])
        found = {
            "format": FORMAT,
            "kind": "comparison",
            "command": plan["command"],
            "versions": plan["versions"],
            "data": first["data"],
            "task": task,
            "model": first["model"],
            "parameters": first["parameters"],
            "threads": plan["threads"],
            "seeds": list(self.ask.seeds),
            "budget": {"kind": self.ask.budget, "amount": plan["amount"], "unit": _unit(self.ask.budget)},
            "level": self.ask.level,
            "reachable": [self._reachable()],
            **judge(cells, methods, task=task, level=self.ask.level, plain=plain),
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
        write_json(self.folder / COMPARISON, found)
        write_report(self.folder)
        return found


def usual_budget(data: str) -> str:
    """What is matched where nothing else is asked for."""
    return "steps" if holds_prompts(data) else "passes"


def _unit(budget: str) -> str:
    """What a row's whole cost is counted in."""
    return budget if budget == "trainings" else "passes"


def _versions() -> dict[str, str]:
    return {"selfdistill": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _short(value: Any) -> str:
    return one_line(repr(value), 60)


def compare(
    request: Request,
    methods: Sequence[str],
    *,
    seeds: int = 5,
    budget: str | None = None,
    level: float = 0.05,
    out: str | Path | None = None,
    tell: Tell = lambda line: None,
) -> dict[str, Any]:
    """Compare methods with controls and with each other at matched compute.

    Args:
        request: data, model and training of every row; its method is not used, its seed is the first.
        methods: recipes' expressions, such as ``born_again()``.
        seeds: how many; each is a split, a set of wrong labels, an initialisation and a data order for all rows alike.
        budget: what is matched: sample ``passes`` (forward 1, backward 2), optimizer ``steps`` (of prompts, where it is
            left open), ``seconds``, or for prompts the ``completions`` drawn.
        level: of the verdicts, over the methods.
        out: the comparison's folder; the same call there goes on with what was cut.
        tell: called with lines about what is done and what is left.

    Returns:
        What ``comparison.json`` holds; all of it but ``times`` is the same when it is run again.

    Raises:
        DataError: nothing can be compared so, or the folder holds another comparison.
    """
    matched = budget or usual_budget(request.data)
    ask = Ask(tuple(methods), tuple(range(request.seed, request.seed + seeds)), matched, level)
    return Comparison.create(request, ask, out).execute(tell)


def kind_of(request: Request, methods: Sequence[str]) -> type[Kind]:
    """What learns by these methods from these data.

    Raises:
        RecipeError, DataError: a method is for other data, or some are for learners and some for networks.
    """
    from .language_controls import LanguageModels
    from .network_controls import Networks
    from .table_controls import Learners  # these are of the class above

    each = [replace(request, method=method) for method in methods]
    spoken = [for_language(one) for one in each]
    if all(spoken):
        return LanguageModels
    ours = [for_learners(one) for one in each]
    if all(ours):
        return Learners
    if any(ours):
        mine, others = methods[ours.index(True)], methods[ours.index(False)]
        raise RecipeError(f"{mine} is for learners and {others} for networks; compare one kind at a time")
    return Networks
