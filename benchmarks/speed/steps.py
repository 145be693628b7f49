"""What a step of each kind of method costs, against a plain step and against a loop written by hand.

Every mode is timed twice, by hand and through an `Objective`, in turns with all others and on one thread. Its figure
is the median, over the rounds, of its time divided by that of the plain step by hand in the same round. Judged by
processor time, because the wall clock also counts what other processes do; both are reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed.timing import Spread, Taken, in_turns, one_thread, ratio, seconds
from benchmarks.speed.workloads import BATCHES, METHODS, WORKLOADS, Workload, bare_costs, by_hand, through_objective
from selfdistill.errors import RecipeError

__all__ = ["AGAINST_HAND", "TARGETS", "render", "run"]

#: mode -> what its step may cost at most, as a ratio to the plain step; None where the teacher's own cost decides.
TARGETS: dict[str, float | None] = {
    "plain": None,
    "average kept": 1.03,
    "frozen teacher, cached": 1.05,
    "frozen teacher, online": 1.32,
    "average as teacher, online": None,
}
#: Through the objective, against the loop by hand of the same mode.
AGAINST_HAND = 1.02
JUDGED = "cpu"
HAND, OBJECTIVE, AGAIN = "by hand", "objective", "plain by hand again"


def run(
    repeats: int = 40,
    models: tuple[str, ...] = ("cnn", "transformer"),
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each one calls every variant once.
        models: which of "cnn" and "transformer".
        quick: three rounds of tiny steps, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.

    Raises:
        RecipeError: no such model, or fewer than three repeats.
    """
    unknown = [name for name in models if name not in WORKLOADS]
    if unknown:
        raise RecipeError(f"bench steps has no model {unknown[0]!r}; it has: {', '.join(WORKLOADS)}")
    if repeats < 3:
        raise RecipeError(f"bench steps needs 3 repeats or more for a median and a spread, not {repeats}")
    rounds = 3 if quick else repeats
    result: dict[str, Any] = {
        "device": "cpu",
        "threads": 1,
        "torch": torch.__version__,
        "judged_by": JUDGED,
        "repeats": rounds,
        "quick": quick,
        "against_hand": {"target": AGAINST_HAND, "floor": 1.0},
        "models": {},
    }
    with one_thread(), torch.random.fork_rng(devices=[]):
        for name in models:
            torch.manual_seed(0)
            result["models"][name] = _measure(name, WORKLOADS[name](quick), rounds, progress)
    result["met"] = all(
        mode["met"] and mode["against_hand"]["met"] for m in result["models"].values() for mode in m["modes"]
    )
    return result


def _measure(name: str, work: Workload, rounds: int, progress: Callable[[str], None] | None) -> dict[str, Any]:
    groups = [
        {f"{mode} {HAND}": by_hand(work, mode), f"{mode} {OBJECTIVE}": through_objective(work, mode)}
        for mode in METHODS
    ]
    groups[0][AGAIN] = by_hand(work, "plain")  # the same loop twice: what it is away from 1 is noise
    bare = bare_costs(work)

    def tell(done: int) -> None:
        if progress and (done == rounds or done % 10 == 0):
            progress(f"{name}: {done} of {rounds} rounds")

    # every row must have been seen once, so that the cache has an answer for it
    taken = in_turns([*groups, bare], rounds, warm_up=BATCHES + 1, progress=tell)
    base = f"plain {HAND}"
    share = {cost: ratio(taken, cost, base)[JUDGED].median for cost in bare}
    return {
        "about": work.about,
        "parameters": sum(p.numel() for p in work.build().parameters()),
        "plain_milliseconds": {clock: _round(s, 1e3) for clock, s in seconds(taken, base).items()},
        "teacher_forward_share": round(share["teacher forward"], 4),
        "noise": _clocks(ratio(taken, AGAIN, base)),
        "modes": [_mode(taken, mode, _floor(mode, share)) for mode in METHODS],
    }


def _floor(mode: str, share: dict[str, float]) -> float:
    """The plain step and what the mode must do beside it, whoever writes it."""
    floor = 1.0
    if mode.endswith("online"):
        floor += share["teacher forward"]
    if mode.startswith("average"):
        floor += share["pass over the weights"]
    return floor


def _mode(taken: Taken, mode: str, floor: float) -> dict[str, Any]:
    hand, ours, base = f"{mode} {HAND}", f"{mode} {OBJECTIVE}", f"plain {HAND}"
    cost, against, target = ratio(taken, ours, base), ratio(taken, ours, hand), TARGETS[mode]
    extra = [row[ours] - row[hand] for row in taken[JUDGED]]
    return {
        "mode": mode,
        "objective": _clocks(cost),
        "by_hand": _clocks(ratio(taken, hand, base)),
        "target": target,
        "floor": round(floor, 4),
        "reachable": target is None or round(floor, 4) <= target,  # judged by the figures that are told
        "met": target is None or round(cost[JUDGED].median, 4) <= target,
        "against_hand": {
            **_clocks(against),
            "extra_microseconds": _round(Spread.of(extra), 1e6, 1),
            "met": round(against[JUDGED].median, 4) <= AGAINST_HAND,
        },
    }


def _round(spread: Spread, scale: float = 1.0, digits: int = 4) -> dict[str, float]:
    return {name: round(value * scale, digits) for name, value in spread._asdict().items()}


def _clocks(figures: dict[str, Spread]) -> dict[str, dict[str, float]]:
    return {clock: _round(spread) for clock, spread in figures.items()}


def render(result: dict[str, Any]) -> str:
    """The result as one table per model: measured, target, floor, met or missed."""
    lines, clock = [], "processor time" if JUDGED == "cpu" else "wall time"
    for name, model in result["models"].items():
        lines += [*_table(name, model), ""]
    lines += [
        f"Ratios of {clock} to the plain step by hand in the same round: median (quartiles) of {result['repeats']}",
        f"rounds, one process, {result['threads']} thread, torch {result['torch']}. The floor is the plain step with",
        "the teacher's forward pass and one pass over the weights, where the method needs them.",
    ]
    if result["quick"]:
        lines.append("Quick: tiny steps, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)


def _table(name: str, model: dict[str, Any]) -> list[str]:
    plain = model["plain_milliseconds"][JUDGED]["median"]
    lines = [
        f"{name}: {model['about']}; {model['parameters']:,} weights",
        f"plain step by hand {plain:.1f} ms; the same loop again {_shown(model['noise'][JUDGED])}, which is the noise",
        _row("mode", "by hand", "objective", "floor", "at most", "objective / by hand", "at most"),
    ]
    for mode in model["modes"]:
        against, target = mode["against_hand"], mode["target"]
        lines.append(
            _row(
                mode["mode"],
                f"{mode['by_hand'][JUDGED]['median']:.3f}",
                _shown(mode["objective"][JUDGED]),
                f"{mode['floor']:.3f}",
                "" if target is None else f"{target:.2f} {_verdict(mode['met'])}",
                _shown(against[JUDGED]),
                f"{AGAINST_HAND:.2f} {_verdict(against['met'])}",
            )
        )
    beyond = [m for m in model["modes"] if not m["reachable"]]
    lines += [f"  {m['mode']}: {m['target']:.2f} is below the floor of this model, {m['floor']:.3f}" for m in beyond]
    return lines


def _row(mode: str, hand: str, ours: str, floor: str, target: str, against: str, limit: str) -> str:
    return f"  {mode:<26}{hand:>8}  {ours:<21}{floor:>7}  {target:<12}{against:<21}{limit}".rstrip()


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}-{spread['high']:.3f})"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"
