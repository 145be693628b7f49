"""Peers on digits with 40 % wrong labels: one model taught by its peers, one alone, and as many alone together.

    python -m benchmarks.peers --seeds 12 --out runs/peers.jsonl

All networks take the same number of steps on the same labels. ``alone`` is the plain network; ``together`` is the mean
probability of as many plain networks as there are peers; a recipe's row is the single network that it leaves. The share
of the gain that is retained is (recipe - alone) / (together - alone). A seed draws wrong labels, weights and order; the
test split is clean and the same for all. A training adds a line to ``--out``; given again, the command goes on.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.lines import Lines
from selfdistill.data.dataset import Data, load
from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import interval, paired
from selfdistill.methods.registry import read_method
from selfdistill.models.peers import PeerModels
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit

ALONE, TOGETHER = "alone", "together"
METHODS = ("ensemble_distil(members=4)", "mutual(peers=4)")


def train(data: Data, method: str, seed: int, given: argparse.Namespace) -> tuple[Tensor, Any]:
    """Probabilities (rows, classes) of the network that a training leaves, on the test split; and what it took."""
    build = parse(given.model, data.shape, data.outputs)
    result = fit(build, data, read_method(method), seed=seed, steps=given.steps, audit="off", warn=lambda line: None)
    model = result.model.final_model() if isinstance(result.model, PeerModels) else result.model
    return torch.softmax(predict_rows(model, data, data.test, data.head).float(), -1), result


def accuracy(said: Tensor, data: Data) -> float:
    return 100 * float((said.argmax(-1) == data.targets[data.test]).double().mean())


def one_seed(seed: int, given: argparse.Namespace, methods: list[str]) -> list[dict[str, Any]]:
    """The records of a seed: the networks alone, together, and each recipe."""
    data = load("digits", label_noise=given.noise, labels=given.labels, seed=seed)
    data = replace(data, unlabelled=data.unlabelled[:0])
    records, alone = list[dict[str, Any]](), list[Tensor]()
    if ALONE in methods:
        alone = [train(data, "plain()", 1000 * k + seed, given)[0] for k in range(given.peers)]
        records.append({"method": ALONE, "accuracy": accuracy(alone[0], data)})
        records.append({"method": TOGETHER, "accuracy": accuracy(torch.stack(alone).mean(0), data)})
    for method in (one for one in methods if one not in (ALONE, TOGETHER)):
        said, result = train(data, method, seed, given)
        records.append({"method": method, "accuracy": accuracy(said, data), "steps": result.steps})
    return [{"seed": seed, **record} for record in records]


def table(records: list[dict[str, Any]]) -> None:
    rows: dict[str, dict[int, float]] = {}
    for one in records:
        rows.setdefault(one["method"], {})[one["seed"]] = one["accuracy"]
    print("| network | accuracy | over alone, points, 95 % | of the ensemble's gain | seeds |\n|---|---|---|---|---|")
    alone, whole = rows[ALONE], rows[TOGETHER]
    for method, found in rows.items():
        seeds = sorted(found.keys() & alone.keys())
        mean = statistics.fmean(found[s] for s in seeds)
        if method == ALONE:
            print(f"| {method} | {mean:.1f} | | | {len(seeds)} |")
            continue
        gain, half = interval(paired({s: found[s] for s in seeds}, {s: alone[s] for s in seeds}))
        share = gain / statistics.fmean(whole[s] - alone[s] for s in seeds)
        print(f"| {method} | {mean:.1f} | {gain:+.1f} ± {half:.1f} | {share:.0%} | {len(seeds)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=12, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--peers", type=int, default=4, help="networks that are together")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--model", default="mlp(width=128, dropout=0)")
    parser.add_argument("--noise", type=float, default=0.4, help="share of wrong labels")
    parser.add_argument("--labels", type=int, default=600, help="rows that teach")
    parser.add_argument("--steps", type=int, default=1000, help="of the optimizer, for every network")
    parser.add_argument("--out", type=Path, default=Path("runs/peers.jsonl"), help="results")
    given = parser.parse_args()
    asked = {key: getattr(given, key) for key in ("peers", "model", "noise", "labels", "steps")}
    lines = Lines(given.out, asked)
    done = {(one["seed"], one["method"]) for one in lines.records}
    for seed in range(given.first, given.first + given.seeds):
        missing = [method for method in (ALONE, *given.methods) if (seed, method) not in done]
        for record in one_seed(seed, given, missing) if missing else []:
            lines.add(record)
    table([one for one in lines.records if given.first <= one["seed"] < given.first + given.seeds])


if __name__ == "__main__":
    main()
