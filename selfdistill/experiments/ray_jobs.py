"""Jobs on a Ray cluster: what a worker or a machine that was lost was doing is begun again, and nothing is done twice.

All machines see the folder of the results and the data under the same paths, and have the same versions installed. A
job holds a lock while it runs and looks for its result first: a worker that was believed dead ends before another one
begins its job. Ray pickles what it sends, between processes of one user that trust each other; nothing of it is kept.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..errors import CheckpointError, DataError
from ..io.expressions import one_line
from ..io.files import cores
from ..io.run_record import versions
from .folder import locked
from .processes import stopped_by_sigterm

J = TypeVar("J")
T = TypeVar("T")

PREFIX = "ray"  # of --on
LOCKS = ".locks"  # in the folder of the results, while jobs run
TRIES = 5  # of a job whose worker is lost: one that ends each of them, by its memory perhaps, is given up
_PATIENCE = 30.0  # seconds that workers get to save and stop
_POLL = 1.0  # seconds after which machines that came are seen


class Work(NamedTuple):
    """A job as a worker gets it: functions of the top level of modules, and their arguments."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    known: Callable[..., Sequence[Any]]  # of ``known_by``: what an earlier worker left, or nothing
    known_by: tuple[Any, ...]


class Surroundings(NamedTuple):
    """What a worker must find on its machine."""

    folder: str
    place: str  # the working directory
    versions: dict[str, str]


def check_address(on: str) -> str | None:
    """The address in ``ray:ADDRESS``; None for ``ray``, which is a cluster that RAY_ADDRESS names or a new one here.

    Raises:
        DataError: it is neither.

    >>> check_address("ray:10.0.0.1:6379"), check_address("ray")
    ('10.0.0.1:6379', None)
    """
    name, _, address = on.partition(":")
    if name != PREFIX or (":" in on and not address):
        raise DataError(f"--on {one_line(on, 40)} names no place for trainings; give ray or ray:ADDRESS")
    return address or None


@contextmanager
def connected(on: str) -> Iterator[Any]:
    """The module of Ray, connected to a cluster; a connection or cluster that was made here ends with it.

    Raises:
        DataError: Ray is not installed, or there is no such cluster.
    """
    address = check_address(on)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise DataError(f"--on {on} needs Ray: pip install 'selfdistill[ray]'") from None
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if address is None and "RAY_ADDRESS" not in os.environ:
        options["num_cpus"] = cores()
    elif address is not None:
        options["address"] = address
    try:
        ray.init(**options)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise DataError(f"--on {on}: no cluster answers ({one_line(error, 120)}); see `ray status`") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def work(job: Work, around: Surroundings) -> Any:
    """Do a job on this machine, unless its result is there; runs in a worker of Ray.

    Raises:
        DataError: the machine does not see the folder, or has other versions.
    """
    if not (Path(around.folder, LOCKS).is_dir() and Path(around.place).is_dir()):
        raise DataError(
            f"{os.uname().nodename} does not see {around.folder} and {around.place}; give an --out on a disk that all "
            "machines share, and start there"
        )
    if versions() != around.versions:
        raise DataError(
            f"{os.uname().nodename} has {versions()} and this machine {around.versions}; install the same versions"
        )
    os.chdir(around.place)
    lock = Path(around.folder, LOCKS, hashlib.sha256(job.key.encode()).hexdigest()[:16])
    lock.mkdir(exist_ok=True)
    with locked(lock):
        for found in job.known(*job.known_by):
            return found
        return job.function(*job.arguments)


class _Running(NamedTuple):
    job: Any
    work: Work


def run_on_ray(
    jobs: Sequence[J],
    call: Callable[[J], Work],
    finished: Callable[[J, Any], None],
    choose: Callable[[Sequence[J], Sequence[J]], J | None],
    *,
    on: str,
    folder: Path,
    threads: int = 1,
) -> None:
    """Run jobs on all processors of a cluster; the first that fails, or Ctrl-C, ends all.

    Args:
        jobs: What is to be done.
        call: A job as a worker gets it.
        finished: Called here with a job and what its function returned.
        choose: The next job, from those left and those running; None: none of those left may begin now.
        on: ``ray`` or ``ray:ADDRESS``.
        folder: Where the results are kept.
        threads: Processors that a job takes.

    Raises:
        CheckpointError: a job lost its worker `TRIES` times.
        DataError: there is no cluster, or a machine cannot do the job.
        KeyboardInterrupt: asked to stop.
    """
    locks = folder.resolve() / LOCKS
    locks.mkdir(parents=True, exist_ok=True)
    around = Surroundings(str(folder.resolve()), str(Path.cwd()), versions())
    queue, running, lost = list(jobs), dict[Any, _Running](), Counter[str]()
    with stopped_by_sigterm(), connected(on) as ray:
        remote = ray.remote(num_cpus=threads, max_retries=0)(work)
        try:
            while True:
                slots = max(1, int(ray.cluster_resources().get("CPU", 0)) // threads)
                while len(running) < slots and (job := choose(queue, [r.job for r in running.values()])) is not None:
                    queue.remove(job)
                    given = call(job)
                    running[remote.remote(given, around)] = _Running(job, given)
                if not running:
                    break
                ended, _ = ray.wait(list(running), timeout=_POLL)
                for reference in ended:
                    done = running.pop(reference)
                    try:
                        result = ray.get(reference)
                    except ray.exceptions.RayTaskError as error:  # of the job itself
                        raise error.cause from None
                    except ray.exceptions.RayError as error:  # the worker or its machine is gone
                        lost[done.work.key] += 1
                        _refuse_loss(done.work.key, lost, error, folder)
                        running[remote.remote(done.work, around)] = done
                        continue
                    finished(done.job, result)
        except BaseException:
            _stop(ray, list(running))
            raise
    shutil.rmtree(locks, ignore_errors=True)


def _refuse_loss(key: str, lost: Counter[str], error: Exception, folder: Path) -> None:
    if lost[key] >= TRIES:
        raise CheckpointError(
            f"{key} lost its worker {TRIES} times ({one_line(error, 80)}; out of memory?); finished trainings are "
            f"kept in {folder}: give the same command again to resume"
        ) from None


def _stop(ray: Any, references: list[Any]) -> None:
    """Interrupt the workers, as Ctrl-C does, and end those that do not stop."""
    for reference in references:
        ray.cancel(reference)
    if references:
        _, left = ray.wait(references, num_returns=len(references), timeout=_PATIENCE)
        for reference in left:
            ray.cancel(reference, force=True)
