"""Jobs in processes of their own: the memory each one held, and their end, by Ctrl-C or with the process above them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, TypeVar

from ..data.loading import end_with_parent
from ..errors import CheckpointError

J = TypeVar("J")
T = TypeVar("T")


_asked = threading.Event()  # has this process been asked to stop?


_ASKING = (signal.SIGINT, signal.SIGTERM)


_PATIENCE = 30.0  # seconds that a worker gets to save and stop


def pool(workers: int) -> ProcessPoolExecutor:
    """Processes of their own, spawned: nothing is shared, so results are those of one after the other."""
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=listen)


def listen() -> None:
    """From now on Ctrl-C is noted between two jobs, where it has nothing to end; the parent's end is the own one."""
    _end_with_parent()
    for number in _ASKING:
        signal.signal(number, _note)
    _hold(False)


def _end_with_parent() -> None:
    """End this process when its parent ends, however that is: a worker on its own would train on for nobody."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    end_with_parent()

    def watch() -> None:  # everywhere, and for a parent that ended before this line
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_jobs(
    jobs: Sequence[J],
    call: Callable[[J], tuple[Callable[..., T], tuple[Any, ...]]],
    finished: Callable[[J, T], None],
    *,
    workers: int,
    folder: Path,
    choose: Callable[[Sequence[J], Sequence[J]], J | None] = lambda queue, running: queue[0] if queue else None,
) -> None:
    """Run jobs one after the other here, or side by side; the first that fails, or Ctrl-C, ends all.

    Args:
        jobs: what is to be done.
        call: a job's function, of the top level of a module, and its arguments.
        finished: called here with a job and what its function returned.
        workers: how many run at once; 1 runs all of them in this process.
        folder: where finished jobs are kept, for the message.
        choose: the next job, from those left and those running; None: none of those left may begin now.

    Raises:
        CheckpointError: a process was ended from outside.
        KeyboardInterrupt: asked to stop.
    """
    queue = list(jobs)
    with stopped_by_sigterm():
        _run_jobs(queue, call, finished, workers, folder, choose)


def _run_jobs(
    queue: list[J],
    call: Callable[[J], tuple[Callable[..., T], tuple[Any, ...]]],
    finished: Callable[[J, T], None],
    workers: int,
    folder: Path,
    choose: Callable[[Sequence[J], Sequence[J]], J | None],
) -> None:
    if workers == 1:
        while (job := choose(queue, ())) is not None:
            queue.remove(job)
            function, arguments = call(job)
            finished(job, function(*arguments))
        return
    running = dict[Future[T], J]()
    with pool(workers) as executor:
        try:
            while True:
                while len(running) < workers and (job := choose(queue, list(running.values()))) is not None:
                    queue.remove(job)
                    function, arguments = call(job)
                    with started():
                        running[executor.submit(alone, function, *arguments)] = job
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    finished(running.pop(future), future.result())
        except BrokenProcessPool:
            raise CheckpointError(
                "the process of a training was killed (out of memory?); finished trainings are kept in "
                f"{folder}: give the same command again to resume"
            ) from None
        except KeyboardInterrupt:
            _stop(executor)
            raise
        except BaseException:
            executor.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within it SIGTERM stops as Ctrl-C does: workers save and end, and the message says how to go on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(executor: ProcessPoolExecutor) -> None:
    """Ask the workers to stop, as a signal to this process alone has not reached them, and wait for their end.

    By SIGTERM, as a Ctrl-C has reached them already, and a second one would not let them save.
    """
    workers = list((executor._processes or {}).values())
    for worker in workers:
        worker.terminate()
    executor.shutdown(wait=False, cancel_futures=True)
    deadline = time.monotonic() + _PATIENCE
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()


def alone(work: Callable[..., T], *given: Any) -> T:
    """What one job gives; Ctrl-C ends it, and those that were already handed to this process are not begun.

    Raises:
        KeyboardInterrupt: this process was asked to stop.
    """
    if _asked.is_set():
        raise KeyboardInterrupt
    before = dict[signal.Signals, Any]()
    try:
        for number in _ASKING:
            before[number] = signal.signal(number, signal.default_int_handler)
        return work(*given)
    except KeyboardInterrupt:
        _asked.set()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
