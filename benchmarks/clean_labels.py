"""What do 100 clean labels buy beside 1,097 of which 40 % are wrong? Digits, an MLP, equal gradient steps.

    python -m benchmarks.clean_labels --seeds 6

The clean rows are validation rows. Nothing was tuned on these seeds and nothing is chosen, so the 500 test rows are
scored once. Fine-tuning takes the last quarter of the steps, from the weights so far, at a tenth of the rate.
Each row: mean accuracy; its paired difference to `plain()` with half of the 95 % interval (Student's t); sample passes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.data.dataset import Data, load, with_clean_rows
from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import interval
from selfdistill.methods import elr, plain, reweight
from selfdistill.models.networks import mlp
from selfdistill.training import threads
from selfdistill.training.fit import Result, fit

NOISE, CLEAN, RATE, FIRST = 0.4, 100, 0.1, 100
Arm = tuple[float, float]  # accuracy in per cent, sample passes


def train(data: Data, method: Method, steps: int, seed: int, model: nn.Module | None = None) -> Result:
    """A training of so many steps; from a model it goes on at a tenth of the rate."""
    build: Callable[[], Any] = lambda: copy.deepcopy(model) if model else mlp(data.shape, data.outputs)  # noqa: E731
    rate = RATE / 10 if model else RATE
    options: dict[str, Any] = {"audit": "off", "vitals": False, "device": "cpu", "warn": lambda line: None}
    return fit(build, data, method, steps=steps, seed=seed, optimizer="sgd", lr=rate, **options)


def arms(seed: int, steps: int) -> dict[str, Arm]:
    """Every arm with one seed."""
    data = with_clean_rows(load("digits", label_noise=NOISE, seed=seed), reweight(CLEAN).views, seed)
    alone = replace(data, labelled=data.clean)
    both = replace(data, labelled=torch.cat([data.labelled, data.clean]).sort().values)

    def score(*trainings: Result) -> Arm:
        predicted = predict_rows(trainings[-1].model, data, data.test, data.head).argmax(-1)
        accuracy = 100 * float((predicted == data.y[data.test]).double().mean())
        return accuracy, sum(training.passes.cost() for training in trainings)

    def tuned(method: Method) -> Arm:
        first = train(data, method, steps - steps // 4, seed)
        return score(first, train(alone, plain(), steps // 4, seed, first.model))

    return {
        "`plain()`": score(train(data, plain(), steps, seed)),
        "`plain()` on the clean rows alone": score(train(alone, plain(), steps, seed)),
        "`plain()` on both together": score(train(both, plain(), steps, seed)),
        "`plain()`, then fine-tuned on the clean rows": tuned(plain()),
        "`reweight(clean=100)`": score(train(data, reweight(CLEAN), steps, seed)),
        "`reweight()`, the clean rows teach too": score(train(both, reweight(), steps, seed)),
        "`elr()`, without any clean row": score(train(data, elr(), steps, seed)),
        "`elr()` on both together": score(train(both, elr(), steps, seed)),
        "`elr()`, then fine-tuned on the clean rows": tuned(elr()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=6, help="how many, from 100 on")
    parser.add_argument("--steps", type=int, default=640)
    request = parser.parse_args()
    runs = [arms(seed, request.steps) for seed in range(FIRST, FIRST + request.seeds)]
    print("| | accuracy | less `plain()` | sample passes |\n|---|---|---|---|")
    for name in runs[0]:
        mean, half = interval([run[name][0] - run["`plain()`"][0] for run in runs])
        accuracy, passes = (statistics.fmean(run[name][k] for run in runs) for k in (0, 1))
        print(f"| {name} | {accuracy:.1f} | {mean:+.1f} ± {half:.1f} | {passes / 1000:.0f}k |")


if __name__ == "__main__":
    with threads.limited_to(1):
        main()
