"""Repeated self-training on digits: what replacing, accumulating and anchoring do, and when the alarm is raised.

    python -m benchmarks.repeated --seeds 8 --out runs/repeated.jsonl

60 labels, 120 fresh unlabelled rows a generation, 10 generations after the first. A training adds a line to ``--out``;
given again, the command goes on where it was cut. Every generation is scored on the test split after the training; the
alarm never sees that split. Two processes with different --variants share the work if they have an --out each.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from selfdistill.data.dataset import load
from selfdistill.evaluation.predict import score
from selfdistill.evaluation.statistics import interval, mcnemar
from selfdistill.methods.generations import self_training
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit

VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "accumulate, audited (default)": ({}, "safe"),
    "accumulate": ({}, "off"),
    "anchor": ({"keep": "anchor"}, "off"),
    "replace": ({"keep": "replace"}, "off"),
    "replace, hard": ({"keep": "replace", "hard": True}, "off"),
    "replace, hard, audited": ({"keep": "replace", "hard": True}, "safe"),
}


def train(variant: str, seed: int, steps: int) -> dict[str, Any]:
    """One chain of generations: test accuracy of each, its drift, and what the audit made of it."""
    options, audit = VARIANTS[variant]
    data = load("digits", labels=60, seed=seed)
    build = parse("mlp", data.shape, len(data.classes))
    said: list[str] = []
    result = fit(build, data, self_training(**options), steps=steps, seed=seed, audit=audit, warn=said.append)
    accuracy = []
    for one in result.generations:
        result.model.load_state_dict(one.weights)
        accuracy.append(score(result.model, data, data.test)["accuracy"])
    drift = [one.drift for one in result.generations[1:]]
    return {
        "variant": variant,
        "seed": seed,
        "steps": steps,
        "accuracy": accuracy,
        "product": result.final_generation,
        "accepted": [one.decision["accepted"] for one in result.generations],
        "alarm": next((one["generation"] for one in drift if one["alarm"]), None),
        "drift": drift,
        "warned": said,
        "seconds": round(result.seconds, 1),
    }


def points(rows: list[dict[str, Any]], end: str) -> str:
    """Product or last generation against the first, in points: mean and half of the 95 % interval."""
    gains = [100 * (r["accuracy"][r["product"] if end == "product" else -1] - r["accuracy"][0]) for r in rows]
    mean, half = interval(gains)
    return f"{mean:+.1f} ± {half:.1f} (worst {min(gains):+.1f})"


def pooled(drift: list[dict[str, Any]]) -> int | None:
    """The generation at which McNemar's test on all real labels together would have raised an alarm: labels that teach
    and audit rows. Generation 0 misses none of the former, so that none can be won."""
    return next((d["generation"] for d in drift if mcnemar(d["missed"] + d["lost"], d["won"]) <= d["level"]), None)


def table(rows: list[dict[str, Any]]) -> None:
    """A line for each variant."""
    names = (
        "generations",
        "first",
        "last - first",
        "product - first",
        "alarm at generation",
        "McNemar",
        "nearer to replace",
    )
    print(f"| {' | '.join(names)} | seeds |\n{'|---' * (len(names) + 1)}|")
    for variant in VARIANTS:
        own = sorted((r for r in rows if r["variant"] == variant), key=lambda r: r["seed"])
        if not own:
            continue
        first = f"{100 * statistics.fmean(r['accuracy'][0] for r in own):.1f}"
        alarms, plainly = (
            ", ".join("-" if g is None else str(g) for g in found)
            for found in ([r["alarm"] for r in own], [pooled(r["drift"]) for r in own])
        )
        near = sum(r["drift"][-1]["follows"] == "replace" for r in own)
        gains = f"{points(own, 'last')} | {points(own, 'product')}"
        print(f"| {variant} | {first} | {gains} | {alarms} | {plainly} | {near} | {len(own)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=8, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of each generation")
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS), metavar="NAME")
    parser.add_argument(
        "--out", type=Path, nargs="+", default=[Path("runs/repeated.jsonl")], help="results; the first file is written"
    )
    given = parser.parse_args()
    given.out[0].parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for path in given.out if path.exists() for line in path.read_text().splitlines()]
    rows = [r for r in rows if r["steps"] == given.steps]
    done = {(r["variant"], r["seed"]) for r in rows}
    for seed in range(given.first, given.first + given.seeds):
        for variant in given.variants:
            if (variant, seed) not in done:
                rows.append(train(variant, seed, given.steps))
                with given.out[0].open("a") as out:
                    out.write(json.dumps(rows[-1]) + "\n")
    table(rows)


if __name__ == "__main__":
    main()
