"""What logging costs: a step whose record goes to a logger, against the same step whose record goes to its file alone.

Networks write a record an epoch, language models one a step. Both are measured with the tiny steps of quick runs of the
other benchmarks, about a millisecond each: of a longer step the share is smaller, and those of language models are
longer by two orders. What a process of the tool's own takes, as that of Weights & Biases, is in the wall clock alone.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.timing import Call, in_turns, one_thread, ratio
from benchmarks.speed.workloads import WORKLOADS, Workload, objective_of
from selfdistill.experiments.run_log import logged
from selfdistill.io.loggers import LOGGERS
from selfdistill.io.record_stream import heard_by
from selfdistill.training.state import MetricsLog

TARGET = 1.01  # of the time of a step, with a record an epoch
EPOCH = 20  # steps; an epoch of digits has 18
OFF = "off"


def run(repeats: int = 30, quick: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each takes an epoch of every kind.
        quick: three rounds of tiny steps, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
    """
    rounds = 3 if quick else repeats
    os.environ.setdefault("WANDB_MODE", "offline")
    tools = [name for name in LOGGERS if importlib.util.find_spec(name)]
    models: dict[str, Any] = {}
    with one_thread(), torch.random.fork_rng(devices=[]):
        for name, workload in WORKLOADS.items():
            torch.manual_seed(0)
            models[name] = _measure(name, workload(True), tools, rounds, progress)
    worst = max(model["an epoch"][tool]["cpu"] for model in models.values() for tool in tools)
    return {
        "target": TARGET, "epoch": EPOCH, "repeats": rounds, "quick": quick, "torch": torch.__version__,
        "tools": tools, "models": models, "met": worst <= TARGET,
    }  # fmt: skip


def _measure(
    name: str, work: Workload, tools: list[str], rounds: int, progress: Callable[[str], None] | None
) -> dict[str, Any]:
    def tell(done: int) -> None:
        if progress and (done == rounds or done % 10 == 0):
            progress(f"{name}: {done} of {rounds} rounds")

    figures: dict[str, Any] = {"about": work.about}
    for what, every in (("an epoch", EPOCH), ("a step", 1)):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            os.environ["TRACKIO_DIR"] = os.environ.get("TRACKIO_DIR", f"{folder}/trackio")  # it is read on import
            calls = {tool: _epoch(work, Path(folder, tool), tool, every, stack) for tool in (OFF, *tools)}
            taken = in_turns([calls], rounds, warm_up=2, progress=tell)
            spreads = {tool: ratio(taken, tool, OFF) for tool in tools}
        figures[what] = {
            tool: {clock: round(spread.median, 4) for clock, spread in both.items()} for tool, both in spreads.items()
        }
    return figures


def _epoch(work: Workload, folder: Path, tool: str, every: int, stack: ExitStack) -> Call:
    """The steps of an epoch, with a record to the file, and to the tool if it is one, after so many steps."""
    folder.mkdir()
    model = work.build().train()
    optimizer = work.optimizer(model)
    objective, batches = objective_of(work, "plain", model)
    log = stack.enter_context(logged(folder, () if tool == OFF else (tool,), {}))
    file = MetricsLog(folder)
    done = 0

    def epoch(i: int) -> None:
        nonlocal done
        with heard_by(log):
            for _ in range(EPOCH):
                done += 1
                objective.clock = objective.clock.at(98)  # between looks of the vitals
                optimizer.zero_grad(set_to_none=True)
                loss = objective(batches[done % len(batches)])
                loss.backward()
                optimizer.step()
                objective.update()
                if done % every == 0:
                    file.append(_record(done, float(loss.detach())))

    return epoch


def _record(step: int, loss: float) -> dict[str, Any]:
    """A record as a training of one term writes it, with its audit."""
    term = {"loss": loss, "weight": 1.0, "kept": 1.0}
    audit = {"accuracy": 0.5, "nll": loss, "ece": 0.1, "brier": 0.2}
    return {"generation": 0, "epoch": 0, "step": step, "loss": loss, "terms": {"label": term}, "audit": audit}


def render(result: dict[str, Any]) -> str:
    """The result in words and a table."""
    lines = []
    for name, model in result["models"].items():
        lines += [f"{name}: {model['about']}", f"  {'logger':<16}{'a record an epoch':<22}a record a step"]
        for tool in result["tools"]:
            epoch, step = model["an epoch"][tool], model["a step"][tool]
            verdict = "met" if epoch["cpu"] <= result["target"] else "missed"
            lines.append(f"  {tool:<16}{epoch['cpu']:<8.4f}{verdict:<14}{step['cpu']:.4f}")
    lines += [
        f"Ratios of processor time to the epoch of {result['epoch']} steps without a logger in the same round, medians",
        f"of {result['repeats']} rounds, one thread, torch {result['torch']}. With a record an epoch at most",
        f"{result['target']}.",
    ]
    if result["quick"]:
        lines.append("Quick: tiny steps, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)
