"""What the vitals cost, as a share of training time: a step that is looked at, against one that is not.

Looks come at steps 1, 2, 4, ... 32 and at every fiftieth, so the share follows from the cost of a look, of a step
between looks, and of a step without vitals, all timed in turns on one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.timing import Call, Taken, in_turns, ratio
from benchmarks.speed.workloads import BATCHES, Workload, each_workload, objective_of
from selfdistill.core.step import TrainingClock

TARGET = 0.02  # of run time
MODES = ("plain", "average as teacher, online")
RUN = 500  # steps of a short run, whose first 32 have six looks
WITHOUT, BETWEEN, LOOK = "without vitals", "between looks", "at a look"
CLOCK = "cpu"


def run(repeats: int = 30, quick: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each takes one step of every kind.
        quick: three rounds of tiny steps, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
    """
    rounds = 3 if quick else repeats
    models = each_workload(_measure, rounds, quick, progress)
    shares = [mode["share"] for model in models.values() for mode in model["modes"].values()]
    return {
        "target": TARGET, "steps": RUN, "repeats": rounds, "quick": quick, "torch": torch.__version__, "models": models,
        "met": max(shares) <= TARGET,
    }  # fmt: skip


def _measure(work: Workload, rounds: int, tell: Callable[[int], None]) -> dict[str, Any]:
    groups = [{f"{mode} {kind}": _step(work, mode, kind) for kind in (WITHOUT, BETWEEN, LOOK)} for mode in MODES]
    taken = in_turns(groups, rounds, warm_up=BATCHES + 1, progress=tell)
    return {"about": work.about, "modes": {mode: _share(taken, mode) for mode in MODES}}


def _step(work: Workload, mode: str, kind: str) -> Call:
    """A step at a place of the run where the vitals look, or do not."""
    model = work.build().train()
    optimizer = work.optimizer(model)
    objective, batches = objective_of(work, mode, model, vitals=kind != WITHOUT)
    place = 99 if kind == LOOK else 98

    def step(i: int) -> None:
        objective.clock = objective.clock.at(place)
        optimizer.zero_grad(set_to_none=True)
        objective(batches[i % len(batches)]).backward()
        optimizer.step()
        objective.update()

    assert TrainingClock(step=place).observed == (kind == LOOK)
    return step


def _share(taken: Taken, mode: str) -> dict[str, float]:
    """What the vitals add to a run of `RUN` steps, as a share of what it takes without them."""
    look = ratio(taken, f"{mode} {LOOK}", f"{mode} {WITHOUT}")[CLOCK]
    between = ratio(taken, f"{mode} {BETWEEN}", f"{mode} {WITHOUT}")[CLOCK]
    looks = sum(TrainingClock(step=step).observed for step in range(RUN))
    share = (looks * look.median + (RUN - looks) * between.median) / RUN - 1
    return {
        "look": round(look.median, 4), "look_low": round(look.low, 4), "look_high": round(look.high, 4),
        "between": round(between.median, 4), "share": round(share, 5),
    }  # fmt: skip


def render(result: dict[str, Any]) -> str:
    """The result in words and a table."""
    lines = []
    for name, model in result["models"].items():
        lines += [f"{name}: {model['about']}", f"  {'method':<28}{'a look':<22}{'between':<10}of a run"]
        for mode, m in model["modes"].items():
            look = f"{m['look']:.3f} ({m['look_low']:.3f}-{m['look_high']:.3f})"
            verdict = "met" if m["share"] <= result["target"] else "missed"
            lines.append(f"  {mode:<28}{look:<22}{m['between']:<10.3f}{100 * m['share']:+.2f} % {verdict}")
    lines += [
        "Ratios of processor time to the step without vitals in the same round: median (quartiles)",
        f"of {result['repeats']} rounds, one thread, torch {result['torch']}. The last column is the share of a run of",
        f"{result['steps']} steps, at most {100 * result['target']:.0f} %.",
    ]
    if result["quick"]:
        lines.append("Quick: tiny steps, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)
