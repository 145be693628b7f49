"""Running cells one after the other, or side by side: whatever is done stays, and the same call goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ..compare import workers as processes
from ..errors import CheckpointError
from . import cells
from .fitting import PLAIN, fits, sorted_out
from .records import read
from .settings import Cell, Setting

Tell = Callable[[str], None]


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

    def __init__(self, left: Sequence[Cell], done: int, workers: int, minutes: float | None, tell: Tell) -> None:
        self.left, self.done, self.all, self.workers = list(left), done, done + len(left), workers
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


def run(
    wanted: Sequence[Cell], out: Path, workers: int = 1, minutes: float | None = None, tell: Tell = lambda line: None
) -> int:
    """Train what is not trained yet; how many cells are left when the time is over.

    Raises:
        DataError: data are missing, or a record is of another setting.
        CheckpointError: a record is damaged, or a process was ended from outside.
        KeyboardInterrupt: asked to stop; cells that are done stay.
    """
    left = [cell for cell in wanted if read(cell, out) is None]
    progress = Progress(left, len(wanted) - len(left), workers, minutes, tell)
    if workers == 1 or len(left) < 2:
        for cell in left:
            if not progress.time_for(cell):
                break
            progress.ended(cell, cells.run(cell, out))
    else:
        _side_by_side(progress, out)
    return len(left) - progress.finished


def _side_by_side(progress: Progress, out: Path) -> None:
    """Processes of their own; a method's first seed ends before its others begin, for it finds their steps."""
    queue, running = progress.left, dict[Future[dict[str, Any]], Cell]()
    with processes.pool(progress.workers) as pool:
        try:
            while True:
                while len(running) < progress.workers and (cell := _next(queue, list(running.values()))):
                    if not progress.time_for(cell):
                        queue.clear()
                        break
                    queue.remove(cell)
                    with processes.started():
                        running[pool.submit(processes.alone, cells.run, cell, out)] = cell
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    progress.ended(running[future], future.result())
                    del running[future]
        except BrokenProcessPool:
            raise CheckpointError(
                f"the process of a cell was ended from outside (out of memory?); what is done is kept in {out}: give "
                "the same command again to go on"
            ) from None
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _next(queue: Sequence[Cell], running: Sequence[Cell]) -> Cell | None:
    """The first cell whose method is not being trained with seed 0 in the same setting."""
    firsts = {(cell.setting.name, cell.method) for cell in running if cell.seed == 0}
    waiting = {(cell.setting.name, cell.method) for cell in queue if cell.seed == 0}

    def free(cell: Cell) -> bool:
        return cell.seed == 0 or (cell.setting.name, cell.method) not in firsts | waiting

    return next((cell for cell in queue if free(cell)), None)
