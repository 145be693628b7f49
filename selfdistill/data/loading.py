"""Work done ahead: worker processes read and augment rows while the step runs, in the order in which they are used."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError, SelfdistillError
from ..io.files import cores

T = TypeVar("T")


R = TypeVar("R")

AHEAD = 2  # results that each worker may have ready


VARIABLE = "SELFDISTILL_WORKERS"


SHARED = Path("/dev/shm")  # where results of workers lie until they are used


def num_workers(result_bytes: int = 0) -> int:
    """The number of workers: SELFDISTILL_WORKERS, or one for each processor up to 8; 0 does the work in this process.

    Args:
        result_bytes: of one result; there are only as many workers as have room for theirs in shared memory.

    Raises:
        DataError: the variable is not a whole number from 0 on.
    """
    wish = os.environ.get(VARIABLE, "")
    if wish and not (wish.isdecimal() and int(wish) <= 256):
        raise DataError(
            f"{VARIABLE} is a number of worker processes from 0 to 256, not {wish!r}; set it or leave it out"
        )
    if multiprocessing.current_process().daemon:  # it may have no children
        return 0
    count = int(wish) if wish else min(8, cores())
    if result_bytes and SHARED.is_dir():
        count = min(count, shutil.disk_usage(SHARED).free // ((AHEAD + 1) * result_bytes))
    return count


class _Calls(Dataset[Any], Generic[T, R]):
    """A function as the data set of a loader: the indices are its arguments."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.function = function

    def __getitem__(self, item: T) -> R | SelfdistillError:
        try:
            return self.function(item)
        except SelfdistillError as error:  # the loader would wrap it in the lines of a traceback
            return error


class Ahead(Generic[T, R]):
    """The results of numbered steps, of which workers compute the next ones while one is used.

    Args:
        function: of the item of a step.
        item: of a step, in this process.
        workers: how many processes compute; 0 computes each result when it is asked for.
    """

    def __init__(self, function: Callable[[T], R], item: Callable[[int], T], workers: int) -> None:
        self.function, self.item, self.workers = function, item, workers
        self._results: Iterator[R] = iter(())
        self._last: tuple[int, R] | None = None

    def result(self, step: int, end: int) -> R:
        """The result of a step of ``end``; the same step may be asked for again, and any other one begins anew."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        if self._last is None or self._last[0] != step - 1:
            self._results = in_order(self.function, map(self.item, range(step, end)), self.workers)
        self._last = (step, next(self._results))
        if step + 1 >= end:
            self._results = iter(())  # ends the workers
        return self._last[1]


PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)


def end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, at once and within a call of C too; on Linux alone."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _follow_parent(worker: int) -> None:
    """Let Ctrl-C and SIGTERM stop the run alone, which still needs its workers, and end with it."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
    end_with_parent()


def _unchanged(result: R) -> R:
    return result


def in_order(function: Callable[[T], R], items: Iterable[T], workers: int = 0) -> Iterator[R]:
    """The function of each item, in the order of the items; workers compute a few of them ahead.

    Raises:
        DataError: a worker process ended before its work did.

    >>> list(in_order(abs, [-2, 1]))
    [2, 1]
    """
    if workers <= 0:
        yield from map(function, items)
        return
    context = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    loader = DataLoader(
        _Calls(function),
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_follow_parent,
        multiprocessing_context=context,
        generator=torch.Generator(),  # else the loader would draw from the run's own
    )
    results = iter(loader)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DataError(
                f"a worker that reads ahead ended ({str(error).splitlines()[0]}); free memory, or set {VARIABLE}=0"
            ) from None
        if isinstance(result, SelfdistillError):
            raise result
        yield result
