"""Times of several step functions in one process, taken in turns, and ratios of times taken side by side.

A machine that is busy, warm or throttled slows every variant of a round alike, so a ratio within a round is worth
more than a ratio of two averages. Each round starts at another variant, because the first one after a pause is slow.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

CLOCKS = ("cpu", "wall")  # processor seconds of this process; seconds on the wall

Call = Callable[[int], None]  # the number of the round -> one step
Taken = dict[str, list[dict[str, float]]]  # clock -> per round: variant -> seconds a call


class Spread(NamedTuple):
    """Median and quartiles of one figure over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """
        >>> Spread.of([1.0, 2.0, 3.0, 4.0, 5.0])
        Spread(median=3.0, low=2.0, high=4.0)
        """
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread and no garbage collection in the middle of a measurement."""
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.disable()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()


def in_turns(
    groups: Sequence[Mapping[str, Call]], rounds: int, warm_up: int, progress: Callable[[int], None] | None = None
) -> Taken:
    """Call every variant once a round. Groups change place from round to round, and the members of one stand side by
    side, every second round in reverse: what is compared most closely is measured most closely together.
    """
    for group in groups:
        for call in group.values():
            for i in range(warm_up):
                call(i)
    taken: Taken = {clock: [] for clock in CLOCKS}
    for i in range(rounds):
        gc.collect()
        row: dict[str, dict[str, float]] = {clock: {} for clock in CLOCKS}
        for g in range(len(groups)):
            members = list(groups[(i + g) % len(groups)].items())
            for name, call in reversed(members) if i % 2 else members:
                wall, cpu = time.perf_counter(), time.process_time()
                call(warm_up + i)
                row["cpu"][name] = time.process_time() - cpu
                row["wall"][name] = time.perf_counter() - wall
        for clock in CLOCKS:
            taken[clock].append(row[clock])
        if progress:
            progress(i + 1)
    return taken


def seconds(taken: Taken, name: str) -> dict[str, Spread]:
    """Seconds a call, by clock."""
    return {clock: Spread.of([row[name] for row in rows]) for clock, rows in taken.items()}


def ratio(taken: Taken, name: str, base: str) -> dict[str, Spread]:
    """Time of one variant over that of another in the same round, by clock."""
    return {clock: Spread.of([row[name] / row[base] for row in rows]) for clock, rows in taken.items()}
