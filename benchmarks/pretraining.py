"""From features learnt without labels to a classifier of few: pre-train, then fine-tune, beside plain training.

    python benchmarks/pretraining.py --seeds 10 --out runs/pretraining.jsonl

All rows of a table take the same sample passes in all (forward 1, backward 2): ``plain()`` from a fresh network, and
for each recipe half of them without labels and half for ``plain()`` from there, as ``selfdistill run --init`` does it.
The linear probe is what the features are worth before. A seed draws labels, weights and order; the test split is read
once a training, at its end. A training adds a line to ``--out``; given again, the command goes on. Seeds from 100 on
were used to try things out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from selfdistill import models, probes
from selfdistill.benchmark.cells import matched
from selfdistill.evaluate import score
from selfdistill.finished import product
from selfdistill.initial import started
from selfdistill.loop import Result, fit
from selfdistill.prepared import batch_size_for, read_method
from selfdistill.stats import interval, paired
from selfdistill.tasks.data import Data, load

ALONE, UNTRAINED = "plain()", "untrained"
METHODS = ("simsiam()", "byol()", "dino()")


def trained(build: models.Build, data: Data, expression: str, passes: float, seed: int) -> tuple[Result, int]:
    """A training that takes so many passes, and its steps."""
    method = read_method(expression)
    size = batch_size_for(data, method)

    def train(steps: int) -> tuple[Result, float]:
        found = fit(
            build, data, method, steps=steps, seed=seed, batch_size=size, audit="off", warn=lambda line: None
        )  # fmt: skip
        return found, found.passes.cost()

    found: tuple[Result, int] = matched(train, passes)
    return found


def one(data: Data, expression: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """A line: accuracy on the test split, in points, before fine-tuning (a probe) and after it."""
    build = models.parse(given.model, data.shape, data.outputs)
    if expression == ALONE:
        result, steps = trained(build, data, ALONE, given.passes, seed)
        return {"accuracy": 100 * score(product(result.model), data, data.test)["accuracy"], "steps": steps}
    if expression == UNTRAINED:
        torch.manual_seed(seed)
        return {"probe": 100 * probes.probe(build(), data)["linear"]}
    features, steps = trained(build, data, expression, given.passes / 2, seed)
    bare = product(features.model)
    with tempfile.TemporaryDirectory() as folder:
        models.save(bare, Path(folder), build)
        tuned, after = trained(started(build, folder), data, ALONE, given.passes / 2, seed)
    return {
        "probe": 100 * probes.probe(bare, data)["linear"],
        "accuracy": 100 * score(product(tuned.model), data, data.test)["accuracy"],
        "steps": [steps, after],
    }


def table(records: list[dict[str, Any]]) -> None:
    rows: dict[str, dict[int, dict[str, float]]] = {}
    for record in records:
        rows.setdefault(record["method"], {})[record["seed"]] = record
    print("| | linear probe | fine-tuned | over plain, points, 95 % | seeds |\n|---|---|---|---|---|")
    alone = {seed: record["accuracy"] for seed, record in rows[ALONE].items()}
    for method, found in rows.items():
        probe, end = (
            f"{statistics.fmean(one[key] for one in found.values()):.1f}"
            if all(key in r for r in found.values())
            else ""
            for key in ("probe", "accuracy")
        )
        gain = ""
        if end and method != ALONE:
            mean, half = interval(paired({seed: one["accuracy"] for seed, one in found.items()}, alone))
            gain = f"{mean:+.1f} ± {half:.1f}"
        print(f"| `{method}` | {probe} | {end} | {gain} | {len(found)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--model", default="cnn(width=8)")
    parser.add_argument("--passes", type=float, default=300_000, help="of samples, in all")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path("runs/pretraining.jsonl"), help="results")
    given = parser.parse_args()
    asked = {key: getattr(given, key) for key in ("data", "labels", "model", "passes")}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    records = [found for line in lines if (found := json.loads(line))["asked"] == asked]
    done = {(found["seed"], found["method"]) for found in records}
    seeds = range(given.first, given.first + given.seeds)
    for seed in seeds:
        for method in (ALONE, UNTRAINED, *given.methods):
            if (seed, method) in done:
                continue
            data = load(given.data, labels=given.labels, seed=seed)
            records.append({"asked": asked, "seed": seed, "method": method, **one(data, method, seed, given)})
            with given.out.open("a") as out:
                out.write(json.dumps(records[-1]) + "\n")
    table([found for found in records if found["seed"] in seeds])


if __name__ == "__main__":
    main()
