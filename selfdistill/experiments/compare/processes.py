"""The most memory that a job held at once.

Processes that train beside each other and stop together: Ctrl-C reaches all of them at once.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch


class Peak:
    """Peak memory from here on: of the GPU if there is one, else resident memory (Linux resets it, others do not)."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """The peak, in millions of bytes."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        with suppress(OSError, AttributeError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            assert found is not None
            return int(found[1]) * 1024 / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


T = TypeVar("T")


_asked = threading.Event()  # has this process been asked to stop?


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes of their own, spawned: nothing is shared, so results are those of one after the other."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=listen)


def listen() -> None:
    """From now on Ctrl-C is noted between two jobs, where it has nothing to end."""
    signal.signal(signal.SIGINT, _note)
    _hold(False)


def alone(work: Callable[..., T], *given: Any) -> T:
    """What one job gives; Ctrl-C ends it, and those that were already handed to this process are not begun.

    Raises:
        KeyboardInterrupt: this process was asked to stop.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return work(*given)
    except KeyboardInterrupt:
        _asked.set()
        raise
    finally:
        signal.signal(signal.SIGINT, _note)


@contextmanager
def started() -> Iterator[None]:
    """Processes that are started meanwhile hear Ctrl-C when they `listen`, not while they import; so does this one."""
    heard, ours = list[int](), threading.current_thread() is threading.main_thread()
    if ours:  # which acts on a signal even if another thread, that does not hold it back, has got it
        before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    _hold(True)
    try:
        yield
    finally:
        _hold(False)
        if ours:
            signal.signal(signal.SIGINT, before)
    if heard:
        signal.raise_signal(signal.SIGINT)


def _note(number: int, frame: object) -> None:
    _asked.set()


def _hold(held: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):  # which Windows has not
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})
