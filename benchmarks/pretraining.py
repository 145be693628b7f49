"""From features learnt without labels to a classifier of few: pre-train, then fine-tune, beside plain training.

    python -m benchmarks.pretraining --seeds 10 --out runs/pretraining.jsonl

All rows of a table take the same sample passes in all (forward 1, backward 2): ``plain()`` from a fresh network, and
for each recipe half of them without labels and half for ``plain()`` from there, as ``selfdistill run --init`` does it.
The linear probe is what the features are worth before. A seed draws labels, weights and order; the test split is read
once a training, at its end. A training adds a line to ``--out``; given again, the command goes on. Seeds from 100 on
were used to try things out.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.lines import Lines
from selfdistill.data.dataset import Data, load
from selfdistill.evaluation import linear_probe
from selfdistill.evaluation.predict import score
from selfdistill.evaluation.statistics import interval, paired
from selfdistill.experiments.benchmark.cells import train_within
from selfdistill.experiments.network_run import batch_size_for
from selfdistill.methods.registry import read_method
from selfdistill.models import registry, store
from selfdistill.models.peers import final_model
from selfdistill.models.warm_start import warm_started
from selfdistill.training.fit import Result, fit

ALONE, UNTRAINED = "plain()", "untrained"
METHODS = ("simsiam()", "byol()", "dino()")


def trained(build: registry.Build, data: Data, expression: str, passes: float, seed: int) -> tuple[Result, int]:
    """A training that takes so many passes, and its steps."""
    method = read_method(expression)
    size = batch_size_for(data, method)

    def train(steps: int) -> tuple[Result, float]:
        found = fit(build, data, method, steps=steps, seed=seed, batch_size=size, audit="off", warn=lambda line: None)
        return found, found.passes.cost()

    found: tuple[Result, int] = train_within(train, passes)
    return found


def one(data: Data, expression: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """A line: accuracy on the test split, in points, before fine-tuning (a probe) and after it."""
    build = registry.parse(given.model, data.shape, data.outputs)
    if expression == ALONE:
        result, steps = trained(build, data, ALONE, given.passes, seed)
        return {"accuracy": 100 * score(final_model(result.model), data, data.test)["accuracy"], "steps": steps}
    if expression == UNTRAINED:
        torch.manual_seed(seed)
        return {"probe": 100 * linear_probe.probe(build(), data)["linear"]}
    features, steps = trained(build, data, expression, given.passes / 2, seed)
    bare = final_model(features.model)
    with tempfile.TemporaryDirectory() as folder:
        store.save(bare, Path(folder), build)
        tuned, after = trained(warm_started(build, folder), data, ALONE, given.passes / 2, seed)
    return {
        "probe": 100 * linear_probe.probe(bare, data)["linear"],
        "accuracy": 100 * score(final_model(tuned.model), data, data.test)["accuracy"],
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
    lines, seeds = Lines(given.out, asked), range(given.first, given.first + given.seeds)
    done = {(found["seed"], found["method"]) for found in lines.records}
    for seed in seeds:
        for method in (ALONE, UNTRAINED, *given.methods):
            if (seed, method) in done:
                continue
            data = load(given.data, labels=given.labels, seed=seed)
            lines.add({"seed": seed, "method": method, **one(data, method, seed, given)})
    table([found for found in lines.records if found["seed"] in seeds])


if __name__ == "__main__":
    main()
