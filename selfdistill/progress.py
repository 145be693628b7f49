"""Progress on stderr: a bar where a person looks, a line now and then where a file does."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .core import Clock, Method

LINE_SECONDS = 10.0


def _words(figures: dict[str, float]) -> str:
    """Losses per term, and the share kept by each gate."""
    return "  ".join(
        f"{name} {100 * value:.0f} %" if name.endswith(" kept") else f"{name} {value:.3f}"
        for name, value in figures.items()
    )


class Reporter:
    """Shows one training after another; `begin` makes the callback that `fit` calls."""

    def __init__(self, bar: Progress | None) -> None:
        self.bar, self.last = bar, 0.0

    def begin(self, name: str, method: Method) -> Callable[[Clock, dict[str, float]], None]:
        started = time.monotonic()
        first: list[int] = []
        task: list[TaskID] = []

        def show(clock: Clock, figures: dict[str, float]) -> None:
            total = clock.length * clock.generations  # later generations may differ a little in length
            done = clock.generation * clock.length + clock.step + 1
            if not first:
                first.append(done)  # a resumed run does not start at 0
            where = f"epoch {clock.epoch + 1}/{clock.epochs}"
            if clock.generations > 1:
                where = f"generation {clock.generation + 1}/{clock.generations} {where}"
            if self.bar is not None:
                if not task:
                    task.append(self.bar.add_task(name, total=total, where="", figures=""))
                self.bar.update(task[0], completed=done, total=total, where=where, figures=_words(figures))
            elif time.monotonic() - self.last > LINE_SECONDS or done == total:
                self.last = time.monotonic()
                pace = (self.last - started) / max(1, done - first[0])
                left = f"{pace * (total - done):.0f} s left"
                print(f"{name}: {where}  step {done}/{total}  {_words(figures)}  {left}", file=sys.stderr)

        return show


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
        TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[where]}"), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[figures]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        yield Reporter(bar)
