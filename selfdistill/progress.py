"""Progress on stderr: a bar where a person looks, a line now and then where a file does."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from .step import Clock

LINE_SECONDS = 10.0
Show = Callable[[Clock, dict[str, float]], None]


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

    def begin(self, name: str) -> Show:
        """A callback for the training of this name."""
        return self._lines(name) if self.bar is None else self._moving(name, self.bar)

    def _moving(self, name: str, bar: Progress) -> Show:
        task: list[TaskID] = []

        def show(clock: Clock, figures: dict[str, float]) -> None:
            done, total = _steps(clock)
            if not task:  # a resumed run does not start at 0
                task.append(bar.add_task(name, total=total, completed=done, figures=""))
            bar.update(task[0], completed=done, total=total, figures=f"{_where(clock)}  {_words(figures)}")

        return show

    def _lines(self, name: str) -> Show:
        begun: list[tuple[float, int]] = []

        def show(clock: Clock, figures: dict[str, float]) -> None:
            now, (done, total) = time.monotonic(), _steps(clock)
            if not begun:
                begun.append((now, done))
            if now - self.printed < LINE_SECONDS and done != total:
                return
            self.printed = now
            since, first = begun[0]
            left = f"  {(now - since) / (done - first) * (total - done):.0f} s left" if done > first else ""
            print(f"{name}: {_where(clock)}  step {done}/{total}  {_words(figures)}{left}", file=sys.stderr)

        return show


def _steps(clock: Clock) -> tuple[int, int]:
    """Steps done and to do over all generations (which may differ a little in length)."""
    return clock.generation * clock.length + clock.step + 1, clock.length * clock.generations


def _where(clock: Clock) -> str:
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
        TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with TwoLines(*columns, console=console) as bar:
        yield Reporter(bar)
