"""Progress on stderr: a bar where a person looks, a line now and then where a file does."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ..core.step import TrainingClock
from ..io.display import printable
from ..io.files import line_due, seconds_left
from ..io.trust import split_function
from .options import echo, first_process

if TYPE_CHECKING:
    from ..experiments.run import Run


def _words(figures: dict[str, float]) -> str:
    """Losses per term, and the share kept by each gate."""
    return "  ".join(
        f"{name} {100 * value:.0f} %" if name.endswith(" kept") else f"{name} {value:.3f}"
        for name, value in figures.items()
    )


class TwoLines(Progress):
    """The bar, and below it what a bar's width would cut off: epoch, losses, shares kept."""

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            yield self.make_tasks_table([task])
            yield Text("  " + str(task.fields["figures"]))


class Reporter:
    """Shows one training after another; `begin` makes the callback that `fit` calls."""

    def __init__(self, bar: Progress | None) -> None:
        self.bar, self.printed = bar, -math.inf

    def begin(self, name: str) -> ProgressLine:
        """A callback for the training of this name."""
        return ProgressLine(self, name)


class ProgressLine:
    """One training: call it with clock and figures; or `count` where there are no steps."""

    def __init__(self, reporter: Reporter, name: str) -> None:
        self.reporter, self.name, self.made = reporter, name, time.monotonic()
        self.task: TaskID | None = None
        self.begun: tuple[float, int] | None = None

    def __call__(self, clock: TrainingClock, figures: dict[str, float]) -> None:
        done, total = _steps(clock)
        self._show(done, total, f"{_where(clock)}  step {done}/{total}", _where(clock), _words(figures))

    def count(self, done: int, planned: int, what: str) -> None:
        """So many trainings of at most those planned have ended; the last was ``what``. An audit may end it early."""
        self.begun = self.begun or (self.made, done - 1)
        self._show(done, planned, f"training {done} of at most {planned}", f"at most {planned}", what,
                   " if all are needed")  # fmt: skip

    def _show(self, done: int, total: int, place: str, short: str, words: str, unless: str = "") -> None:
        """``place`` stands in a line, and the shorter one where a bar has the numbers already; ``unless`` after the
        time that is left."""
        bar = self.reporter.bar
        if bar is None:
            self._line(done, total, f"{place}  {words}", unless)
            return
        if self.task is None:  # a resumed run does not start at 0
            self.task = bar.add_task(printable(self.name, kept=""), total=total, completed=done, figures="")
        bar.update(self.task, completed=done, total=total, figures=printable(f"{short}  {words}", kept=""))

    def _line(self, done: int, total: int, said: str, unless: str) -> None:
        now = time.monotonic()
        since, first = self.begun = self.begun or (now, done)
        if done != total and not line_due(now, self.made, self.reporter.printed):
            return
        self.reporter.printed = now
        left = f"  {seconds_left(now - since, done - first, total - done):.0f} s left" if done > first else ""
        left += unless if left and done < total else ""
        print(printable(f"{self.name}: {said}{left}", kept=""), file=sys.stderr)


def _steps(clock: TrainingClock) -> tuple[int, int]:
    """Steps done and to do over all generations (which may differ a little in length)."""
    return clock.generation * clock.length + clock.step + 1, clock.length * clock.generations


def _where(clock: TrainingClock) -> str:
    epoch = f"epoch {clock.epoch + 1}/{clock.epochs}"
    return epoch if clock.generations == 1 else f"generation {clock.generation + 1}/{clock.generations} {epoch}"


@contextmanager
def reporting(quiet: bool) -> Iterator[Reporter | None]:
    """A reporter while a run is under way; None when nothing shall be shown."""
    if quiet:
        yield None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(None)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with TwoLines(*columns, console=console) as bar:
        yield Reporter(bar)


def execute(run: Run, quiet: bool, log: Sequence[str] = ()) -> dict[str, Any]:
    """Train what a run asks for, with its progress on stderr, and return its result.

    Raises:
        KeyboardInterrupt: it was stopped; the message says how to resume.
    """
    from ..experiments.processes import stopped_by_sigterm

    first = first_process()

    def warn(line: str) -> None:
        if first:
            echo(line, err=True)

    if first and not quiet and run.result() is not None:
        warn(f"{run.folder} is finished: nothing is trained, this is its saved result")
    try:
        with stopped_by_sigterm(), reporting(quiet or not first) as reporter:
            return run.execute(reporter.begin if reporter else None, warn, None if quiet else warn, log)
    except KeyboardInterrupt as stopped:
        begun = (run.folder / "run.json").exists()  # else there is nothing to go on from
        trusting = " --trust-code" if split_function(run.request.model or "") else ""
        hint = f"; resume by `selfdistill resume {run.folder}{trusting}`" if begun else ""
        raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}{hint}") from None
