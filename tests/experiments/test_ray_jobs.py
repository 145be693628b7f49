"""Trainings on a Ray cluster of two nodes here: equal to those of processes, though workers and nodes end."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError, DataError, RecipeError
from selfdistill.experiments import ray_jobs
from selfdistill.experiments.benchmark.cells import plan, read, run_cells
from selfdistill.experiments.benchmark.settings import QUICK, Cell, Setting
from selfdistill.experiments.compare import compare
from selfdistill.experiments.ray_jobs import Work, run_on_ray
from selfdistill.io.run_record import Request, versions
from tests.terminal import refused
from tests.workers.jobs import end, fail, kept, note

ray = pytest.importorskip("ray", reason="Ray is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of a head without processors and two nodes of one each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    made.nodes = [made.add_node(num_cpus=1) for _ in range(2)]
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


def jobs_on(folder: Path, count: int, seconds: float = 0.0, function: Any = note) -> dict[int, int]:
    found = dict[int, int]()

    def call(number: int) -> Work:
        return Work(str(number), function, (folder, number, seconds), kept, (folder, number))

    def choose(queue: Any, running: Any) -> int | None:
        return queue[0] if queue else None

    folder.mkdir(exist_ok=True)
    run_on_ray(range(count), call, found.__setitem__, choose, on="ray", folder=folder)
    return found


def test_a_place_for_trainings_is_checked_before_anything_is_trained(tmp_path: Path) -> None:
    assert "give ray or ray:ADDRESS" in refused("compare", "digits", "--on", "slurm", "--out", tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_worker_does_nothing_twice_and_refuses_another_disk_or_version(tmp_path: Path) -> None:
    (tmp_path / ray_jobs.LOCKS).mkdir()
    here = ray_jobs.Surroundings(str(tmp_path), str(Path.cwd()), versions())
    job = Work("3", note, (tmp_path, 3, 0.0), kept, (tmp_path, 3))
    assert [ray_jobs.work(job, here) for _ in range(2)] == [9, 9]
    assert (tmp_path / "3.done").read_text() == "x"
    with pytest.raises(DataError, match="does not see /nowhere"):
        ray_jobs.work(job, here._replace(folder="/nowhere"))
    with pytest.raises(DataError, match="install the same versions"):
        ray_jobs.work(job, here._replace(versions={"torch": "0"}))


@pytest.mark.slow
def test_what_fails_or_ends_its_workers_ends_all(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^job \d fails"):
        jobs_on(tmp_path / "f", 3, function=fail)
    with pytest.raises(CheckpointError, match=r"lost its worker 5 times .* give the same command again"):
        jobs_on(tmp_path / "e", 1, function=end)
    assert jobs_on(tmp_path / "n", 5) == {n: n * n for n in range(5)}
    assert not (tmp_path / "n" / ray_jobs.LOCKS).exists()


@pytest.mark.slow
def test_ten_kills_lose_nothing_and_finish_nothing_twice(cluster: Any, tmp_path: Path) -> None:
    """Nine workers are killed as they work, and a node with all of its processes; another node comes."""
    folder, drawn, killed = tmp_path / "k", random.Random(1), list[int]()
    folder.mkdir()

    def kill() -> None:
        while len(killed) < 9 and len(list(folder.glob("*.done"))) < 40:
            time.sleep(0.4)
            busy = [p for p in folder.glob("*.begun") if not p.with_suffix(".done").exists()]
            for path in drawn.sample(busy, min(1, len(busy))):
                number = int(path.read_text().split()[-1])
                if number not in killed:
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)
        cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
        cluster.nodes.append(cluster.add_node(num_cpus=1))

    killer = threading.Thread(target=kill)
    killer.start()
    found = jobs_on(folder, 40, 0.6)
    killer.join()
    assert found == {n: n * n for n in range(40)}
    assert {p.read_text() for p in folder.glob("*.done")} == {"x"}, "each is finished once"
    begun = sum(len(p.read_text().split()) for p in folder.glob("*.begun"))
    assert len(killed) == 9
    assert 40 + 9 <= begun <= 40 + 10


def one_setting() -> Setting:
    (setting, *_) = QUICK.values()
    return setting


@pytest.mark.slow
def test_cells_are_those_of_processes_bit_for_bit_though_a_worker_and_a_node_end(cluster: Any, tmp_path: Path) -> None:
    wanted = plan([one_setting()], ["elr()", "ps_kd()"], 3)
    assert run_cells(wanted, tmp_path / "here", workers=2) == 0
    killed = threading.Event()

    def kill() -> None:
        path = one_setting().path(tmp_path / "there")
        while not path.exists() or path.read_text().count("\n") < 2:
            time.sleep(0.02)
        cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
        killed.set()
        cluster.nodes.append(cluster.add_node(num_cpus=1))

    killer = threading.Thread(target=kill)
    killer.start()
    assert run_cells(wanted, tmp_path / "there", on="ray") == 0
    killer.join()
    assert killed.is_set()
    assert len(one_setting().path(tmp_path / "there").read_text().splitlines()) == len(wanted), "none twice"
    for cell in wanted:
        same(cell, tmp_path)


def same(cell: Cell, place: Path) -> None:
    one, two = (read(cell, place / name) for name in ("here", "there"))
    assert one is not None
    assert two is not None
    assert {**one, "seconds": 0} == {**two, "seconds": 0}


@pytest.mark.slow
def test_a_comparison_is_that_of_processes(cluster: Any, tmp_path: Path) -> None:
    request = Request("digits", labels=60, steps=12)
    found = [
        compare(replace(request), ["elr()"], seeds=3, match="steps", out=tmp_path / (on or "here"), on=on)
        for on in (None, "ray")
    ]
    for one in found:
        del one["times"], one["command"]
    assert found[0] == found[1]
