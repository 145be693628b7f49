"""Ctrl-C ends a job and those behind it, says nothing of its own, and loses no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfdistill.experiments import processes


def finishes(place: Path) -> None:
    place.write_text("done")


def is_stopped(place: Path) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    place.write_text("not stopped")


def exits(place: Path) -> None:
    raise ValueError(str(place))


def ignores(place: Path) -> None:
    """What Ctrl-C does between two jobs, asked of the process itself."""
    handler = signal.getsignal(signal.SIGINT)
    place.write_text("ends jobs" if handler is signal.default_int_handler else "is noted")


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Ctrl-C is heard here: whoever started the tests may ignore it, as a shell does for what runs behind it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here() -> Iterator[None]:
    """This process as a worker; it is itself again afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    processes.listen()
    yield
    processes._asked.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("here")
def test_between_two_jobs_it_is_noted_and_no_other_is_begun(tmp_path: Path) -> None:
    processes.alone(finishes, tmp_path / "a")
    signal.raise_signal(signal.SIGINT)  # raises nothing
    with pytest.raises(KeyboardInterrupt):
        processes.alone(finishes, tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.usefixtures("here")
def test_within_a_job_it_ends_that_and_those_behind_it(tmp_path: Path) -> None:
    for work in (is_stopped, finishes):
        with pytest.raises(KeyboardInterrupt):
            processes.alone(work, tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("here")
def test_an_error_is_no_wish_to_stop(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a"):
        processes.alone(exits, tmp_path / "a")
    processes.alone(finishes, tmp_path / "b")
    assert (tmp_path / "b").read_text() == "done"


def test_while_processes_are_started_it_waits() -> None:
    with pytest.raises(KeyboardInterrupt), processes.started():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached


def test_while_processes_are_started_it_waits_though_another_thread_hears_it() -> None:
    """A signal for the process goes to any thread that does not hold it back."""
    over = threading.Event()
    threading.Thread(target=over.wait).start()
    try:
        with pytest.raises(KeyboardInterrupt), processes.started():  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.05)
            reached = True
        assert reached
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        over.set()


def waits(place: Path) -> None:
    place.write_text(str(os.getpid()))
    time.sleep(60)


def alive(number: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False


def started_jobs(folder: Path) -> list[int]:
    """The workers of two jobs, when both are at work."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pids = [path.read_text() for path in folder.glob("*")]
        if len(pids) == 2 and all(pids):
            return [int(pid) for pid in pids]
        time.sleep(0.05)
    raise AssertionError("the jobs did not begin")


def run_two(folder: Path) -> None:
    processes.run_jobs(
        ["a", "b"], lambda job: (waits, (folder / job,)), lambda job, result: None, workers=2, folder=folder
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_the_process_that_started_it(tmp_path: Path, number: int) -> None:
    """The signal reaches that process alone, as `kill` sends it."""
    code = (
        "import pathlib, sys; from tests.experiments.test_processes import run_two; run_two(pathlib.Path(sys.argv[1]))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    workers = started_jobs(tmp_path)
    parent.send_signal(number)
    assert parent.wait(30) != 0
    deadline = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [pid for pid in workers if alive(pid)] == []


def test_a_process_says_nothing_when_it_is_stopped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Idle, in a job, and with jobs waiting; none of them prints a traceback."""
    with processes.pool(1) as pool:
        with processes.started():
            asked = [pool.submit(processes.alone, work, tmp_path / work.__name__) for work in (ignores, is_stopped)]
            asked.append(pool.submit(processes.alone, finishes, tmp_path / "behind"))
        asked[0].result()
        for future in asked[1:]:
            with pytest.raises(KeyboardInterrupt):
                future.result()
        for process in pool._processes.values():
            assert process.pid is not None
            os.kill(process.pid, signal.SIGINT)
    assert [p.name for p in tmp_path.iterdir()] == ["ignores"]
    assert capfd.readouterr().err == ""
