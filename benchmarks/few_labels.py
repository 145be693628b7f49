"""Fashion-MNIST with 100 labels and 59,900 unlabelled rows: a semi-supervised recipe beside plain controls, equal passes.

    python benchmarks/few_labels.py --seeds 5 --out runs/few_labels.jsonl

Every network takes ``--passes`` sample passes (forward 1, backward 2, a teacher's forward 1), from the same first weights
and on the same labels of a seed, ten of each class. scikit-learn's SelfTrainingClassifier has the same labels, pixels as
features, and ``--rows`` of the unlabelled rows. The test split is read once a training, at its end; with ``--tuning`` it is
not: 10,000 training rows that then teach nothing are scored in its place. A training adds a line to ``--out``; given again,
the command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfdistill import draws
from selfdistill.benchmark.cells import matched
from selfdistill.core import Method
from selfdistill.evaluate import predict_rows
from selfdistill.loop import Result, fit
from selfdistill.models import parse
from selfdistill.prepared import read_method
from selfdistill.stats import interval, paired
from selfdistill.tasks.data import Data, load
from selfdistill.tasks.sources import find

DATA, HELD_OUT = "fashion-mnist", 10_000
LEARNER = "SelfTrainingClassifier(LogisticRegression())"
# What is trained: an expression, how its views are augmented, and fields of `Settings`.
CONTROLS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "plain, weak augmentation": ("plain()", {"x": "weak"}, {}),
    "plain, strong augmentation": ("plain()", {"x": "strong"}, {}),
    "label smoothing, strong augmentation": ("label_smoothing()", {"x": "strong"}, {}),
}
OURS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "noisy_student(generations=2)": ("noisy_student(generations=2)", {}, {}),
}
BEST = "plain, strong augmentation"  # of the controls, on the tuning seeds


def rows_of(seed: int, tuning: bool) -> tuple[Data, Tensor]:
    """What teaches, and the ids that are scored: the test split, or training rows that then teach nothing."""
    data = load(DATA, labels=100, audit=0, seed=seed)
    if not tuning:
        return data, data.test
    order = draws.permutation((seed, "held out"), len(data.unlabelled))
    held, rest = data.unlabelled[order[:HELD_OUT]], data.unlabelled[order[HELD_OUT:]]
    return replace(data, unlabelled=rest.sort().values, test=data.test[:0]), held


def shown(method: Method, how: dict[str, str]) -> Method:
    """The method with other augmentations of its views."""
    looks = tuple(replace(look, augment=how.get(look.name, look.augment)) for look in method.views.looks)
    return replace(method, views=replace(method.views, looks=looks))


def network(data: Data, scored: Tensor, name: str, seed: int, given: argparse.Namespace) -> tuple[Tensor, int, float]:
    """Classes (rows,) that a network trained for all passes gives the scored rows; its steps, and the passes taken."""
    expression, how, settings = {**CONTROLS, **OURS}[name]
    build, method = parse(given.model, data.shape, data.outputs), shown(read_method(expression), how)

    def train(steps: int) -> tuple[Result, float]:
        result = fit(build, data, method, seed=seed, steps=steps, audit="off", warn=lambda line: None, **settings)
        return result, result.passes.cost()

    result, _ = matched(train, given.passes)
    return predict_rows(result.model, data, scored, data.head).argmax(-1), result.steps, result.passes.cost()


def learner(data: Data, scored: Tensor, seed: int, given: argparse.Namespace) -> Tensor:
    """Classes (rows,) that scikit-learn's self-training gives the scored rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    some = data.unlabelled[draws.permutation((seed, "sample"), len(data.unlabelled))[: given.rows]]
    taught = torch.cat([data.labelled, some])
    found = SelfTrainingClassifier(LogisticRegression(max_iter=500))
    found.fit(data.rows(taught).flatten(1).numpy(), data.y[taught].numpy())
    return torch.from_numpy(found.predict(data.rows(scored).flatten(1).numpy()))


def one(name: str, seed: int, truth: Tensor, given: argparse.Namespace) -> dict[str, Any]:
    """The record of a training."""
    data, scored = rows_of(seed, given.tuning)
    begun, steps, passes = time.process_time(), 0, 0.0
    if name == LEARNER:
        said = learner(data, scored, seed, given)
    else:
        said, steps, passes = network(data, scored, name, seed, given)
    accuracy = 100 * float((said == truth[scored]).double().mean())
    seconds = round(time.process_time() - begun)
    return {"seed": seed, "method": name, "accuracy": accuracy, "steps": steps, "taken": passes, "seconds": seconds}


def table(records: list[dict[str, Any]]) -> None:
    """Accuracy, and paired differences of ours to every other row, with 95 % intervals."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        found.setdefault(record["method"], {})[record["seed"]] = record["accuracy"]
    ours = [name for name in OURS if name in found]
    heads = "".join(f" `{name}` over it, points, 95 % |" for name in ours)
    print(f"| | accuracy |{heads} seeds |\n|---|---|{'---|' * len(ours)}---|")
    for name, by_seed in found.items():
        cells = ""
        for mine in ours:
            seeds = by_seed.keys() & found[mine].keys()
            if name == mine or not seeds:
                cells += " |"
                continue
            gain, half = interval(paired({s: found[mine][s] for s in seeds}, {s: by_seed[s] for s in seeds}))
            cells += f" {gain:+.1f} ± {half:.1f} |"
        best = " (best control)" if name == BEST else ""
        print(f"| {name}{best} | {statistics.fmean(by_seed.values()):.1f} |{cells} {len(by_seed)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--methods", nargs="*", default=[*OURS, *CONTROLS, LEARNER])
    parser.add_argument("--model", default="cnn(width=8, stem=2)")
    parser.add_argument("--passes", type=int, default=1_500_000, help="sample passes of every network")
    parser.add_argument("--rows", type=int, default=5_000, help="unlabelled rows of scikit-learn's")
    parser.add_argument("--tuning", action="store_true", help="score training rows, never the test split")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels.jsonl"), help="results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    truth = find(DATA, target=None, unlabelled=None, image_size=None).y
    asked = {key: getattr(given, key) for key in ("model", "passes", "rows", "tuning")}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    records = [record for line in lines if (record := json.loads(line))["asked"] == asked]
    done = {(record["seed"], record["method"]) for record in records}
    for seed in range(given.first, given.first + given.seeds):
        for name in (name for name in given.methods if (seed, name) not in done):
            records.append({"asked": asked, **one(name, seed, truth, given)})
            with given.out.open("a") as out:
                out.write(json.dumps(records[-1]) + "\n")
    table([record for record in records if given.first <= record["seed"] < given.first + given.seeds])


if __name__ == "__main__":
    main()
