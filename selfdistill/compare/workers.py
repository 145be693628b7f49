"""Processes that train beside each other and stop together: Ctrl-C reaches all of them at once."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

_asked = threading.Event()  # has this process been asked to stop?


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes of their own, spawned: nothing is shared, so results are those of one after the other."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=listen)


def listen() -> None:
    """From now on Ctrl-C is noted between two jobs, where it has nothing to end."""
    signal.signal(signal.SIGINT, _note)
    _hold(False)


def alone(work: Callable[..., None], *given: Any) -> None:
    """One job; Ctrl-C ends it, and those that were already handed to this process are not begun.

    Raises:
        KeyboardInterrupt: this process was asked to stop.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work(*given)
    except KeyboardInterrupt:
        _asked.set()
        raise
    finally:
        signal.signal(signal.SIGINT, _note)


@contextmanager
def started() -> Iterator[None]:
    """Processes that are started meanwhile hear Ctrl-C when they `listen`, not while they import; so does this one."""
    _hold(True)
    try:
        yield
    finally:
        _hold(False)


def _note(number: int, frame: object) -> None:
    _asked.set()


def _hold(held: bool) -> None:
    if hasattr(signal, "pthread_sigmask"):  # which Windows has not
        signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGINT})
