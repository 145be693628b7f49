"""What logging costs: a step whose record goes to a logger, against the same step whose record goes to its file alone.

A record follows every step, as language models write them. Networks write one an epoch, so their share is that of a
step divided by the steps of an epoch. What a process of the tool's own takes, as that of Weights & Biases, is in the
wall clock alone.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.timing import Call, in_turns, ratio
from benchmarks.speed.workloads import Workload, each_workload, objective_of
from selfdistill.experiments.run_log import logged
from selfdistill.io.loggers import LOGGERS
from selfdistill.io.record_stream import heard_by
from selfdistill.training.state import MetricsLog

TARGET = 1.01  # of the time of a step, with a record an epoch
EPOCH = 20  # steps; an epoch of digits has 18
OFF, CLOCK = "off", "cpu"


def run(repeats: int = 30, quick: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each takes a step of every kind.
        quick: three rounds of tiny steps, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
    """
    rounds = 3 if quick else repeats
    os.environ.setdefault("WANDB_MODE", "offline")
    tools = [name for name in LOGGERS if importlib.util.find_spec(name)]
    models = each_workload(partial(_measure, tools), rounds, quick, progress)
    worst = max(model["figures"][tool]["epoch"] for model in models.values() for tool in tools)
    return {
        "target": TARGET, "epoch": EPOCH, "repeats": rounds, "quick": quick, "torch": torch.__version__,
        "tools": tools, "models": models, "met": worst <= TARGET,
    }  # fmt: skip


def _measure(tools: list[str], work: Workload, rounds: int, tell: Callable[[int], None]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        os.environ["TRACKIO_DIR"] = os.environ.get("TRACKIO_DIR", f"{folder}/trackio")  # it is read on import
        calls = {tool: _step(work, Path(folder, tool), tool, stack) for tool in (OFF, *tools)}
        taken = in_turns([calls], rounds, warm_up=2, progress=tell)
        spreads = {tool: ratio(taken, tool, OFF)[CLOCK] for tool in tools}
    figures = {
        tool: {
            "step": round(spread.median, 4), "low": round(spread.low, 4), "high": round(spread.high, 4),
            "epoch": round(1 + (spread.median - 1) / EPOCH, 5),
        }
        for tool, spread in spreads.items()
    }  # fmt: skip
    return {"about": work.about, "figures": figures}


def _step(work: Workload, folder: Path, tool: str, stack: ExitStack) -> Call:
    """A step with its record, which goes to the file, and to the tool if it is one."""
    folder.mkdir()
    model = work.build().train()
    optimizer = work.optimizer(model)
    objective, batches = objective_of(work, "plain", model)
    log = stack.enter_context(logged(folder, () if tool == OFF else (tool,), {}))
    file = MetricsLog(folder)

    def step(i: int) -> None:
        with heard_by(log):
            objective.clock = objective.clock.at(98)  # between looks of the vitals
            optimizer.zero_grad(set_to_none=True)
            loss = objective(batches[i % len(batches)])
            loss.backward()
            optimizer.step()
            objective.update()
            file.append(_record(i + 1, float(loss.detach())))

    return step


def _record(step: int, loss: float) -> dict[str, Any]:
    """A record as a training of one term writes it, with its audit."""
    term = {"loss": loss, "weight": 1.0, "kept": 1.0}
    audit = {"accuracy": 0.5, "nll": loss, "ece": 0.1, "brier": 0.2}
    return {"generation": 0, "epoch": 0, "step": step, "loss": loss, "terms": {"label": term}, "audit": audit}


def render(result: dict[str, Any]) -> str:
    """The result in words and a table."""
    lines = []
    for name, model in result["models"].items():
        lines += [f"{name}: {model['about']}", f"  {'logger':<16}{'a record a step':<28}a record an epoch"]
        for tool, figure in model["figures"].items():
            step = f"{figure['step']:.3f} ({figure['low']:.3f}-{figure['high']:.3f})"
            lines.append(f"  {tool:<16}{step:<28}{figure['epoch']:.4f} {_verdict(figure, result['target'])}")
    lines += [
        "Ratios of processor time to the step without a logger in the same round: median (quartiles)",
        f"of {result['repeats']} rounds, one thread, torch {result['torch']}. An epoch of {result['epoch']} steps;",
        f"at most {result['target']} with a record an epoch.",
    ]
    if result["quick"]:
        lines.append("Quick: tiny steps, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)


def _verdict(figure: dict[str, float], target: float) -> str:
    return "met" if figure["epoch"] <= target else "missed"
