"""Digits, 100 labels: every recipe that learns from unlabelled rows beside `plain()`, in short and in long runs.

    python -m benchmarks.run_length --steps 100 1000 10000 --seeds 3 --out runs/run_length.jsonl

A row of the table is a recipe at its defaults, a column a number of steps of each generation; all else is as
`selfdistill run digits --labels 100 --steps N` has it. The test split is read once a training, at its end; with
``--tuning`` 300 unlabelled rows that teach nothing are read in its place. A training adds a line to ``--out``; given
again, the command goes on. A recipe that says before it starts that the run is too short is marked.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lines import Lines
from selfdistill import rng
from selfdistill.data.dataset import Data, load
from selfdistill.data.sources import read_source
from selfdistill.evaluation.predict import predict_rows
from selfdistill.experiments.network_run import batch_size_for
from selfdistill.methods.cards import card
from selfdistill.methods.registry import read_method, recipes
from selfdistill.models.peers import final_model
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit

DATA, LABELS, HELD_OUT = "digits", 100, 300
PLAIN, WORSE, CHANCE = "plain()", 3.0, 20.0  # points below plain that are few; the accuracy that is near to guessing
PARTLY_LABELLED = ("mean_teacher", "pi_model", "temporal_ensembling")  # learn from unlabelled rows, and need none


def semi_supervised() -> list[str]:
    """The recipes of classes that learn from unlabelled rows."""
    names = [name for name, recipe in recipes().items() if recipe().views.need_unlabelled()]
    return [f"{n}()" for n in sorted([*names, *PARTLY_LABELLED]) if "classes" in str(card(n)["targets"])]


def rows_of(seed: int, tuning: bool) -> tuple[Data, Tensor]:
    """The data, and the ids that are scored: the test split, or unlabelled rows that then teach nothing."""
    data = load(DATA, labels=LABELS, seed=seed)
    order = rng.permutation((seed, "held out"), len(data.unlabelled))
    held, rest = data.unlabelled[order[:HELD_OUT]], data.unlabelled[order[HELD_OUT:]]
    return (replace(data, unlabelled=rest.sort().values), held) if tuning else (data, data.test)


def train(expression: str, steps: int, seed: int, truth: Tensor, tuning: bool) -> dict[str, Any]:
    """The record of a training: its accuracy, and what it warned of before its first step."""
    data, scored = rows_of(seed, tuning)
    begun, method = time.process_time(), read_method(expression)
    model = "mlp(dropout=0.3)" if "dropout" in card(expression.partition("(")[0])["needs"] else "mlp"
    warnings, started = list[str](), list[int]()
    result = fit(
        parse(model, data.shape, data.outputs), data, method, steps=steps, seed=seed,
        batch_size=batch_size_for(data, method), watch=lambda *step: started.append(1) if not started else None,
        warn=lambda line: None if started else warnings.append(line),
    )  # fmt: skip
    predicted = predict_rows(final_model(result.model), data, scored, data.head).argmax(-1)
    accuracy = 100 * float((predicted == truth[scored]).double().mean())
    short = any("() needs about" in line for line in warnings)
    spent = round(time.process_time() - begun, 1)
    return {"seed": seed, "method": expression, "steps": steps, "accuracy": accuracy, "warned": short, "cpu": spent}


def table(records: list[dict[str, Any]], lengths: list[int]) -> None:
    """Mean accuracy by recipe and length, and points to plain over the seeds that both have; ``!`` where it warned."""
    scores: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for record in records:
        scores.setdefault((record["method"], record["steps"]), {})[record["seed"]] = record
    print("| recipe | " + " | ".join(f"{n:,} steps" for n in lengths) + " |\n|---" * 1 + "|---" * len(lengths) + "|")
    faults = list[str]()
    for name in sorted({record["method"] for record in records}, key=lambda name: (name != PLAIN, name)):
        cells = []
        for length in lengths:
            own, plain = scores.get((name, length), {}), scores.get((PLAIN, length), {})
            both = sorted(own.keys() & plain.keys())
            if not both:
                cells.append("")
                continue
            accuracy = statistics.fmean(own[seed]["accuracy"] for seed in both)
            gap = accuracy - statistics.fmean(plain[seed]["accuracy"] for seed in both)
            warned = all(own[seed]["warned"] for seed in both)
            cells.append(f"{accuracy:.1f} ({gap:+.1f}){' !' if warned else ''}" if name != PLAIN else f"{accuracy:.1f}")
            if accuracy < CHANCE or (gap < -WORSE and not warned):
                faults.append(f"{name} at {length:,}")
        print(f"| `{name}` | {' | '.join(cells)} |")
    print(f"at chance, or more than {WORSE:g} points below plain without a warning: {', '.join(faults) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[100, 1000, 10_000], help="of each generation")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--methods", nargs="*", help="those to train; left open, all that read unlabelled rows")
    parser.add_argument("--tuning", action="store_true", help="score unlabelled rows, never the test split")
    parser.add_argument("--out", type=Path, default=Path("runs/run_length.jsonl"), help="results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    truth = read_source(DATA, target=None, unlabelled=None, image_size=None).y
    lines = Lines(given.out, {"tuning": given.tuning})
    done = {(record["seed"], record["method"], record["steps"]) for record in lines.records}
    for length in given.steps:
        for seed in range(given.first, given.first + given.seeds):
            for name in [PLAIN, *(given.methods or semi_supervised())]:
                if (seed, name, length) not in done:
                    lines.add(train(name, length, seed, truth, given.tuning))
                    done.add((seed, name, length))
    table([r for r in lines.records if given.first <= r["seed"] < given.first + given.seeds], given.steps)


if __name__ == "__main__":
    main()
