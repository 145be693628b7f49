"""``--log``: what the tools have, read back from their own files, is what the run's logs have, also after a kill."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from selfdistill.experiments.run import Run
from selfdistill.experiments.run_log import RunLog, log_comparison, logged
from selfdistill.io.loggers import Marks, WeightsAndBiases
from selfdistill.io.run_record import Request
from selfdistill.training.state import MetricsLog
from tests.terminal import refused

REQUEST = Request(method="born_again(generations=2)", labels=60, epochs=3, training=(("save_steps", 1),))

Curve = list[tuple[int, Any]]


def events(folder: Path) -> dict[str, Curve]:
    """The curves that TensorBoard itself finds."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def offline(folder: Path) -> dict[str, Curve]:
    """The curves in the files that `wandb sync` would send: records of LevelDB's log, read by W&B's own messages."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    curves = dict[str, Curve]()
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, whole = path.read_bytes(), b""
        assert content[:4] == b":W&B"
        blocks = [content[7:32768], *(content[i : i + 32768] for i in range(32768, len(content), 32768))]
        for block in blocks:
            place = 0
            while len(block) - place > 7:
                length, kind = struct.unpack_from("<HB", block, place + 4)
                whole, place = whole + block[place + 7 : place + 7 + length], place + 7 + length
                if kind not in (1, 4):
                    continue
                record = messages.Record.FromString(whole)
                whole = b""
                row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                axis = next((name for name in row if name.endswith("/step")), None)
                for name in [name for name in row if axis and name.startswith(axis[:-4]) and name != axis]:
                    curves.setdefault(name, []).append((int(row[str(axis)]), row[name]))
    return curves


def expected(folder: Path) -> dict[str, Curve]:
    """The losses in the logs of the run, under the names of the curves."""
    curves = dict[str, Curve]()
    for place, name in ((folder, "method"), (folder / "control", "control")):
        for line in map(json.loads, (place / "metrics.jsonl").read_text().splitlines()):
            own = f"{name} generation {line['generation']}" if line["generation"] else name
            curves.setdefault(f"{own}/loss", []).append((line["step"], pytest.approx(line["loss"], rel=1e-6)))
    return curves


def run(out: Path, log: tuple[str, ...] = ()) -> dict[str, Any]:
    return Run.create(REQUEST, out).execute(warn=lambda line: None, log=log)


def test_a_killed_run_goes_on_with_every_point_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    tools = tuple(name for name in ("tensorboard", "wandb") if importlib.util.find_spec(name))
    assert tools, "the extra dev has both"
    out, append, calls = tmp_path / "run", MetricsLog.append, 0

    def killed(log: MetricsLog, entry: Mapping[str, Any]) -> None:
        nonlocal calls
        append(log, entry)
        calls += 1
        if calls == 5:  # in the second generation, after its line and before its checkpoint
            os._exit(9)

    if (child := os.fork()) == 0:
        monkeypatch.setattr(MetricsLog, "append", killed)
        run(out, tools)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    result = Run.open(out).execute(warn=lambda line: None)
    for read in (events, offline):
        curves = read(out)
        assert {name: curves[name] for name in expected(out)} == expected(out)
        assert curves["test/accuracy"] == [(0, pytest.approx(result["test"]["accuracy"], rel=1e-6))]
        assert [step for step, _ in curves["generations/test/nll"]] == [0, 1]
    assert not [path for path in (out / "wandb").rglob("debug-core.log") if not path.resolve().is_relative_to(out)][1:]
    plain = run(tmp_path / "plain")
    assert plain["test"] == result["test"]
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "plain" / weights).read_bytes()


def test_trackio_keeps_a_run_in_its_own_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="trackio 0.43 needs pillow below 13, which the pinned packages are not")
    from trackio import sqlite_storage, utils

    for module in (sqlite_storage, utils):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    out = tmp_path / "run"
    for _ in range(2):  # the second one finds the run finished, and sends nothing twice
        result = run(out, ("trackio",))
    name = f"run-{json.loads((out / 'log.json').read_text())['id']}"
    rows = sqlite_storage.SQLiteStorage.get_logs("selfdistill", name)
    for curve, points in expected(out).items():
        assert [(row["step"], row[curve]) for row in rows if curve in row] == points
    assert [row["test/accuracy"] for row in rows if "test/accuracy" in row] == [result["test"]["accuracy"]]


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tool_that_is_missing_is_one_line_before_training(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda given, *rest: None if given == name else find(given, *rest))
    for command in (("run", "digits", "--method", "plain()"), ("compare", "digits", "--methods", "elr()")):
        line = refused(*command, "--log", name, "--out", tmp_path / "run")
        assert f"--log {name} needs {name}; install it by `pip install 'selfdistill[{name}]'`" in line
    assert not (tmp_path / "run").exists()


class Kept:
    """A tool that keeps what it hears."""

    def __init__(self) -> None:
        self.marks, self.heard = Marks(), list[tuple[str, int, dict[str, float]]]()

    def write(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        self.heard.append((prefix, step, dict(points)))

    def close(self) -> None:
        pass


def test_steps_and_generations_have_curves_of_their_own(tmp_path: Path) -> None:
    kept = Kept()
    log = RunLog(tmp_path, [kept])
    line = {"generation": 0, "epoch": 0, "step": 4, "loss": 0.5, "terms": {}, "audit": {"nll": 2}, "warnings": ["w"]}
    for place, entry in (
        ("metrics.jsonl", line),
        ("steps.jsonl", {**line, "loss": float("nan")}),
        ("folds/1/metrics.jsonl", {**line, "generation": 2}),
        ("metrics.jsonl", line),
    ):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        with (tmp_path / place).open("a") as file:
            file.write(json.dumps(entry) + "\n")
        log(tmp_path / place, entry)
    log.catch_up()
    assert kept.heard == [
        ("method", 4, {"method/loss": 0.5, "method/audit/nll": 2.0}),
        ("method steps", 4, {"method steps/audit/nll": 2.0}),
        ("folds/1 generation 2", 4, {"folds/1 generation 2/loss": 0.5, "folds/1 generation 2/audit/nll": 2.0}),
    ]


def test_a_comparison_is_a_curve_over_seeds_for_each_row(tmp_path: Path) -> None:
    for seed in (10, 9):
        place = tmp_path / "cells" / "elr" / str(seed)
        place.mkdir(parents=True)
        cell = {"job": {"name": "elr()", "seed": seed}, "rows": {"elr()": {"metrics": {"accuracy": seed / 16}}}}
        (place / "cell.json").write_text(json.dumps(cell))
    for _ in range(2):
        log_comparison(tmp_path, ("tensorboard",), {"data": "digits"})
    assert events(tmp_path) == {"elr()/metrics/accuracy": [(9, 9 / 16), (10, 10 / 16)]}
    with logged(tmp_path / "other", (), {}) as log:
        assert log is None


@pytest.mark.parametrize(("age", "wait"), [(0.25, 0.75), (5.0, 0.0), (-60.0, 1.0)])
def test_a_run_that_goes_on_within_a_second_waits(
    age: float, wait: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases names folders by the second; a second one of the same name would write over the first."""
    wandb = pytest.importorskip("wandb")
    file = tmp_path / "wandb/offline-run-20260101_000000-abcd1234/run-abcd1234.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(b":W&B" + bytes(3))
    now, order = time.time(), list[Any]()
    os.utime(file.parent, (now - age, now - age))
    monkeypatch.setattr("selfdistill.io.loggers.time.time", lambda: now)
    monkeypatch.setattr("selfdistill.io.loggers.time.sleep", order.append)
    monkeypatch.setattr(wandb, "init", lambda **options: order.append(options["id"]))
    WeightsAndBiases(tmp_path, "abcd1234", {})
    assert order == [pytest.approx(wait, abs=1e-3), "abcd1234"]
