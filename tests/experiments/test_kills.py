"""A run killed anywhere and resumed ends bit for bit as if nothing had happened (SIGKILL, SIGTERM, SIGINT).

The method is `workers.runs.everything`: two generations with every kind of teacher state, dropout, augmentation, batch
norm. Each kill comes after real progress, which is checked; many come at a place inside the writing of a checkpoint,
the log or a generation's weights, where the run announces itself and waits for its end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas
import pytest

from selfdistill.estimators.io import load as load_estimator
from selfdistill.experiments.run import Run
from selfdistill.io import checkpoint
from selfdistill.io.files import is_temporary
from selfdistill.io.run_record import Request
from tests.language.tiny import write_prompts
from tests.terminal import write_tables
from tests.workers.runs import GENERATIONS, STEPS, bits, differences, flat, leaf_bits, run
from tests.workers.train import PLACES, STOPPED

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("SELFDISTILL_KILLS", "40"))
SAVING = [place for place in PLACES if place != "log cut"]


class Server:
    """The process that trains in forked children."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.workers.train"], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def _ask(self, line: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, **order: Any) -> int:
        """Begin or go on with a run; its pid, which stays its own until `end`."""
        return self._ask(json.dumps(order))

    def warm(self, **order: Any) -> int:
        """Run a command in the server itself; its exit code."""
        return self._ask(json.dumps({**order, "warm": True}))

    def end(self) -> int:
        """Wait for the child: its exit code, or minus the signal that ended it."""
        return os.waitstatus_to_exitcode(self._ask("end"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    served = Server()
    yield served
    assert served.process.stdin is not None
    served.process.stdin.close()
    served.process.wait(30)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = run(folder)
    assert result.steps == GENERATIONS * STEPS
    return bits(folder)


class Life:
    """One child of the server from its start to its end, read through the file it announces itself in."""

    def __init__(self, server: Server, out: Path, announce: Path, **order: Any) -> None:
        self.server, self.announce = server, announce
        self.announce.unlink(missing_ok=True)
        self.pid: int = server.start(out=str(out), announce=str(announce), **order)

    def lines(self) -> list[str]:
        return self.announce.read_text().splitlines() if self.announce.exists() else []

    def saved(self) -> list[int]:
        """Generation and step of the last checkpoint that this life completed."""
        places = [line.split()[1:] for line in self.lines() if line.startswith("saved")]
        return [int(number) for number in places[-1]] if places else [-1, 0]

    def alive(self) -> bool:
        return " Z " not in Path(f"/proc/{self.pid}/stat").read_text()

    def wait_until(self, reached: Callable[[], bool], seconds: float = 60) -> bool:
        """Wait for the child to get somewhere; False if it ended first."""
        deadline = time.monotonic() + seconds
        while not reached():
            if not self.alive():
                return reached()
            assert time.monotonic() < deadline, f"not there within {seconds} s, only {self.lines()}"
            time.sleep(0.001)
        return True

    def held(self) -> bool:
        """Does it wait at its place for the end?"""
        return any(line.startswith("held") for line in self.lines())

    def kill(self, number: int = signal.SIGKILL) -> int:
        os.kill(self.pid, number)
        return self.server.end()


def _kill_until_done(server: Server, folder: Path, rng: random.Random, kills: int) -> tuple[list[list[int]], list[str]]:
    """Kill a run up to ``kills`` times, half of them at a place inside a save, then let it end.

    Every life must save beyond the one before it, before it is killed. Returns the last checkpoint (generation, step)
    at each kill, and the places at which the run was held.
    """
    saved: list[list[int]] = []
    places: list[str] = []
    rotation = [place for _ in range(kills) for place in rng.sample(SAVING, len(SAVING))]
    for i in range(kills):
        inside, beyond = i % 2 == 1, saved[-1] if saved else [-1, 0]
        hold: dict[str, Any] = {"hold": rotation.pop(), "beyond": beyond, "at": 1} if inside else {}
        if inside and "checkpoint" in hold["hold"]:
            hold["at"] = rng.randint(1, 3)
        life = Life(server, folder / "run", folder / "announced", **hold)
        reached = life.held if inside else lambda: life.saved() > beyond  # noqa: B023
        if not life.wait_until(reached):
            assert server.end() == 0
            return saved, places
        time.sleep(0.0 if inside else rng.uniform(0.0, 0.05))
        ended = life.kill()
        if ended == 0:  # it was done before the signal came
            return saved, places
        assert ended == -signal.SIGKILL
        saved.append(life.saved())
        assert saved[-1] > beyond, "no progress between two kills"
        places += [hold["hold"]] if inside else []
    Life(server, folder / "run", folder / "announced")
    assert server.end() == 0
    return saved, places


def _kill_often(
    server: Server, folder: Path, uninterrupted: dict[str, str], wanted: int, seed: int
) -> tuple[int, list[str]]:
    """Runs, each killed until it ends, until there were enough kills; every one must end bit-equal."""
    rng, kills, places = random.Random(seed), 0, list[str]()
    for attempt in range(wanted):
        inner = folder / str(attempt)
        inner.mkdir()
        saved, held = _kill_until_done(server, inner, rng, min(14, wanted - kills))
        assert differences(uninterrupted, bits(inner / "run")) == []
        kills, places = kills + len(saved), places + held
        if kills >= wanted:
            return kills, places
    raise AssertionError(f"only {kills} kills in {wanted} runs")


def test_killed_at_random_moments_and_inside_saves(
    server: Server, uninterrupted: dict[str, str], tmp_path: Path
) -> None:
    """At least 20 SIGKILLs, at least 5 of them inside a save: student, teachers, optimizer, log bit-equal."""
    kills, places = _kill_often(server, tmp_path, uninterrupted, wanted=22, seed=1)
    assert kills >= 20
    assert len(places) >= 5


@pytest.mark.slow
def test_killed_200_times(server: Server, uninterrupted: dict[str, str], tmp_path: Path) -> None:
    """200 SIGKILLs, every place in turn."""
    kills, places = _kill_often(server, tmp_path, uninterrupted, wanted=200, seed=2)
    assert kills >= 200
    assert set(places) == set(SAVING)


@pytest.mark.parametrize("place", SAVING)
def test_killed_once_at_every_place(server: Server, uninterrupted: dict[str, str], tmp_path: Path, place: str) -> None:
    """Each place of a save, once: torn files are on the disk when the run goes on."""
    every = {"options": {"save_steps": 5}}
    life = Life(server, tmp_path / "run", tmp_path / "announced", hold=place, beyond=[0, 0], **every)
    assert life.wait_until(life.held)
    assert life.kill() == -signal.SIGKILL
    life = Life(server, tmp_path / "run", tmp_path / "announced", **every)
    assert life.server.end() == 0
    assert differences(uninterrupted, bits(tmp_path / "run")) == []


def test_killed_while_the_log_is_cut(server: Server, uninterrupted: dict[str, str], tmp_path: Path) -> None:
    """Going on is itself safe: the log is longer than the checkpoint knows, and the run dies as it cuts it."""
    every = {"options": {"save_steps": 5}}
    life = Life(server, tmp_path / "run", tmp_path / "announced", hold="log flushed", beyond=[0, 5], **every)
    assert life.wait_until(life.held)
    assert life.kill() == -signal.SIGKILL
    life = Life(server, tmp_path / "run", tmp_path / "announced", hold="log cut", beyond=[-1, -1], **every)
    assert life.wait_until(life.held)
    assert life.kill() == -signal.SIGKILL
    life = Life(server, tmp_path / "run", tmp_path / "announced", **every)
    assert life.server.end() == 0
    assert differences(uninterrupted, bits(tmp_path / "run")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_saves_and_goes_on(
    server: Server, uninterrupted: dict[str, str], tmp_path: Path, number: int
) -> None:
    """A polite signal ends in `Stopped` with everything saved, although no checkpoint was due."""
    rare = {"options": {"save_steps": 7}}
    life = Life(server, tmp_path / "run", tmp_path / "announced", **rare)
    assert life.wait_until(lambda: life.saved() > [0, 0])
    assert life.kill(number) == STOPPED
    assert life.saved() < [GENERATIONS - 1, STEPS]
    life = Life(server, tmp_path / "run", tmp_path / "announced", **rare)
    assert life.server.end() == 0
    assert differences(uninterrupted, bits(tmp_path / "run")) == []


# ---- whole commands ------------------------------------------------------------------------------------------------

LENGTH = ["--steps", "8", "--save-steps", "1", "--quiet", "--out", "out"]
TABLE = ["t.csv", "--target", "outcome"]
COMMANDS = {
    "network": ["run", *TABLE, "--model", "mlp(width=8)", "--method", "born_again(generations=2)", *LENGTH],
    "learner": ["run", *TABLE, "--model", "linear", "--method", "self_distilled()", "--quiet", "--out", "out"],
    "language": ["run", "p.jsonl", "--model", "tiny", "--method", "sdft(max_tokens=4)", "--batch-size", "4", *LENGTH],
    "default": ["run", *TABLE, "--quiet", "--out", "out"],
    "stream": ["run", *TABLE, "--tasks", "kind", "--method", "der_pp(memory=9, count=4)", *LENGTH],
    "update": ["update", "base", "t.csv", "--target", "outcome", *LENGTH],
    "adapt": ["adapt", "base", "t.csv", "--target", "outcome", "--domains", "3", *LENGTH],
    "python": ["tests.workers.runs:distil", "out"],
    "compare": ["compare", *TABLE, "--model", "mlp(width=4)", "--methods", "elr()", "--seeds", "3", *LENGTH],
    "benchmark": [
        *("benchmark", "methods", "--quick", "--settings", "digits-100", "--methods", "plain()", "--seeds", "2"),
        *("--workers", "2", "--out", "out/cells", "--page", "page.md", "--quiet"),
    ],
}
TIMES = {"seconds", "elapsed", "wall_seconds", "times", "sha256"}  # what no two runs share; the digests cover the times


def _timeless(node: Any) -> Any:
    """JSON without the times in it."""
    if isinstance(node, dict):
        return {key: _timeless(value) for key, value in node.items() if key not in TIMES}
    return [_timeless(value) for value in node] if isinstance(node, list) else node


def _content(path: Path) -> str:
    """A file without its times; the lines of two workers come in any order."""
    if path.suffix == ".json":
        return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)
    if path.parent.name == "cells":
        lines = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        return "\n".join(sorted(json.dumps(line, sort_keys=True) for line in lines))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remains(place: Path) -> dict[str, str]:
    """Everything that a command left, by file: figures, weights, records, checkpoints, predictions."""
    found = dict[str, str]()
    for path in sorted((place / "out").rglob("*")):
        name = str(path.relative_to(place))
        if path.name == "checkpoints":
            newest = checkpoint.newest(path)
            assert newest is not None
            leaves = flat(checkpoint.read(newest)).items()
            found |= {f"{name} {leaf}": leaf_bits(value) for leaf, value in leaves if leaf != "progress/elapsed"}
        elif path.name == "model" and (path / "estimator.skops").exists():  # its file holds addresses
            model = load_estimator(path / "estimator.skops")
            found[name] = repr(model.predict_proba(pandas.read_csv(place / "t.csv").drop(columns="outcome")).tolist())
        elif path.is_file() and "checkpoints" not in path.parts and path.suffix not in (".md", ".html", ".skops"):
            found |= {} if path.name == "times.json" else {name: _content(path)}
    return found


def _session(leader: int) -> list[int]:
    """The processes that are left of a session."""
    left = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                left.append(int(stat.parent.name))
    return left


class Kitchen:
    """Folders with the same inputs in each, and the server that runs a command there."""

    def __init__(self, server: Server, folder: Path, words: list[str]) -> None:
        self.server, self.folder, self.words = server, folder, words
        (folder / "inputs").mkdir()
        write_tables(folder / "inputs")
        if "tiny" in words:
            write_prompts(folder / "inputs")
        if "base" in words:
            inputs = str(folder / "inputs" / "t.csv")
            request = Request(inputs, target="outcome", model="mlp(width=8)", steps=4, control=False, device="cpu")
            Run.create(request, folder / "inputs" / "base").execute()

    def fresh(self, name: str) -> Path:
        shutil.copytree(self.folder / "inputs", self.folder / name)
        return self.folder / name

    def live(self, place: Path, seconds: float | None, group: bool = True) -> int:
        """Run the command, and kill it after some seconds; its exit code. No process may be left."""
        pid = self.server.start(words=self.words, place=str(place))
        deadline = time.monotonic() + (600 if seconds is None else seconds)
        while time.monotonic() < deadline and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(pid, signal.SIGKILL)
        patience = time.monotonic() + 10
        while (left := _session(pid)) and time.monotonic() < patience:
            time.sleep(0.05)
        code = self.server.end()
        assert left == [], f"{len(left)} processes are left"
        return code


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_40_times_ends_as_if_it_had_not_been(name: str, server: Server, tmp_path: Path) -> None:
    """SIGKILL at random moments, to the process or to all of its group; the same command completes every folder."""
    rng, kitchen = random.Random(f"kills {name}"), Kitchen(server, tmp_path, COMMANDS[name])
    if name not in ("compare", "benchmark"):
        assert server.warm(words=COMMANDS[name], place=str(kitchen.fresh("warm"))) == 0
    place, begun = kitchen.fresh("uninterrupted"), time.monotonic()
    assert kitchen.live(place, None) == 0
    span, expected, kills, attempt = time.monotonic() - begun, remains(place), 0, 0
    assert expected
    while kills < KILLS:
        attempt += 1
        place = kitchen.fresh(str(attempt))
        for _ in range(rng.randint(2, 6)):
            code = kitchen.live(place, rng.uniform(0, 1.05) * span, rng.random() < 0.5)
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert kitchen.live(place, None) == 0, f"{place} cannot be completed"
        assert differences(expected, remains(place)) == []
        assert [path for path in place.rglob(".*") if is_temporary(path)] == []
        shutil.rmtree(place)
    print(f"{name}: {kills} kills in {attempt} runs of {span:.1f} s")
