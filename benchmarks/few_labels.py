"""Fashion-MNIST, 100 labels, 59,900 unlabelled rows: a semi-supervised recipe beside plain controls at equal passes.

    python -m benchmarks.few_labels --seeds 5 --out runs/few_labels.jsonl

Every network takes ``--passes`` sample passes (forward 1, backward 2), from the same first weights and on the same
labels of a seed, ten of each class. scikit-learn's SelfTrainingClassifier has the same labels, pixels as features and
``--rows`` of the unlabelled rows. The test split is read once a training, at its end; with ``--tuning`` 10,000 training
rows that teach nothing are read in its place. A training adds a line to ``--out``; given again, the command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.lines import Lines
from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.data.dataset import Data, load
from selfdistill.data.sources import read_source
from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import interval
from selfdistill.experiments.benchmark.cells import train_within
from selfdistill.methods.registry import read_method
from selfdistill.models.registry import parse
from selfdistill.teachers import ClassAligned
from selfdistill.training.fit import Result, fit

DATA, HELD_OUT = "fashion-mnist", 10_000
Took = dict[str, float]  # the steps and passes of a training
LEARNER = "SelfTrainingClassifier(LogisticRegression())"


class Setup(NamedTuple):
    """An expression, other augmentations of its views, how these are forwarded, the labelled rows of a batch, and what
    the mean keeps by which pseudo-labels are made to have all classes alike, 0 for none."""

    expression: str
    looks: dict[str, str]
    forward: str = "fused"
    batch_size: int = 100
    aligned: float = 0.0


SOFT = "uda(ratio=3.0, confidence=0.0, temperature=0.5)"
OURS = {
    "uda": Setup(SOFT, {"labelled": "strong"}, "separate", 32, aligned=0.99),
    "softmatch": Setup("softmatch(ratio=2.0)", {"labelled": "strong"}, "separate", 32),
}
CONTROLS = {
    "plain, strong augmentation": Setup("plain()", {"x": "strong"}),
    "label smoothing, strong augmentation": Setup("label_smoothing()", {"x": "strong"}),
    "plain, weak augmentation": Setup("plain()", {"x": "weak"}),
}
BEST, RATE = "plain, strong augmentation", 3e-3  # of the controls on the tuning seeds; of AdamW


def rows_of(seed: int, tuning: bool) -> tuple[Data, Tensor]:
    """What teaches, and the ids that are scored: the test split, or training rows that then teach nothing."""
    data = load(DATA, labels=100, audit=0, seed=seed)
    order = rng.permutation((seed, "held out"), len(data.unlabelled))
    held, rest = data.unlabelled[order[:HELD_OUT]], data.unlabelled[order[HELD_OUT:]]
    return (replace(data, unlabelled=rest.sort().values), held) if tuning else (data, data.test)


def method_of(setup: Setup) -> Method:
    """The recipe with other augmentations of its views, forwarded together or each by itself, and aligned classes."""
    method = read_method(setup.expression)
    looks = tuple(replace(look, augment=setup.looks.get(look.name, look.augment)) for look in method.views.views)
    terms = dict(method.terms)
    for name, term in terms.items():
        if setup.aligned and isinstance(term, Term) and term.view == "strong":
            terms[name] = replace(term, teacher=ClassAligned(term.teacher, setup.aligned))
    return replace(method, terms=terms, views=replace(method.views, views=looks), forward=setup.forward)


def network(data: Data, scored: Tensor, setup: Setup, seed: int, given: argparse.Namespace) -> tuple[Tensor, Took]:
    """Classes (rows,) that a network trained for all passes gives the scored rows; and what it took."""
    build = parse(given.model, data.shape, data.outputs)
    settings: dict[str, Any] = {"seed": seed, "lr": RATE, "batch_size": setup.batch_size, "audit": "off"}

    def train(steps: int) -> tuple[Result, float]:
        found = fit(build, data, method_of(setup), steps=steps, warn=lambda line: None, **settings)
        return found, found.passes.cost()

    result = train_within(train, given.passes)[0]
    said = predict_rows(result.model, data, scored, data.head).argmax(-1)
    return said, {"steps": result.steps, "taken": result.passes.cost()}


def learner(data: Data, scored: Tensor, seed: int, given: argparse.Namespace) -> Tensor:
    """Classes (rows,) that scikit-learn's self-training gives the scored rows."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.semi_supervised import SelfTrainingClassifier

    some = data.unlabelled[rng.permutation((seed, "sample"), len(data.unlabelled))[: given.rows]]
    taught, found = torch.cat([data.labelled, some]), SelfTrainingClassifier(LogisticRegression(max_iter=500))
    found.fit(data.rows(taught).flatten(1).numpy(), data.y[taught].numpy())
    return torch.from_numpy(found.predict(data.rows(scored).flatten(1).numpy()))


def one(name: str, seed: int, truth: Tensor, given: argparse.Namespace) -> dict[str, Any]:
    """The record of a training."""
    data, scored = rows_of(seed, given.tuning)
    begun, setup = time.process_time(), {**OURS, **CONTROLS}.get(name)
    said, took = network(data, scored, setup, seed, given) if setup else (learner(data, scored, seed, given), {})
    accuracy = 100 * float((said == truth[scored]).double().mean())
    return {"seed": seed, "method": name, "accuracy": accuracy, "seconds": round(time.process_time() - begun), **took}


def table(records: list[dict[str, Any]], ours: str) -> None:
    """Accuracy, and how far ours is above each row: paired over the seeds that both have, with 95 % intervals."""
    found: dict[str, dict[int, float]] = {}
    for record in records:
        found.setdefault(record["method"], {})[record["seed"]] = record["accuracy"]
    print(f"| trained | accuracy | {ours} over it, points, 95 % | seeds |\n|---|---|---|---|")
    for name, by_seed in found.items():
        both, said = sorted(by_seed.keys() & found.get(ours, {}).keys()), ""
        if both and name != ours:
            gain, half = interval([found[ours][seed] - by_seed[seed] for seed in both])
            said = f"{gain:+.1f} ± {half:.1f}"
        mark = " (the best control in tuning)" if name == BEST else ""
        print(f"| {name}{mark} | {statistics.fmean(by_seed.values()):.1f} | {said} | {len(by_seed)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--ours", choices=list(OURS), default="uda", help="the recipe that is compared")
    parser.add_argument("--methods", nargs="*", help="those to train; left open, ours and every control")
    parser.add_argument("--model", default="cnn(width=8, stem=2)")
    parser.add_argument("--passes", type=int, default=2_000_000, help="sample passes of every network")
    parser.add_argument("--rows", type=int, default=5_000, help="unlabelled rows of scikit-learn's")
    parser.add_argument("--tuning", action="store_true", help="score training rows, never the test split")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels.jsonl"), help="results")
    given = parser.parse_args()
    truth = read_source(DATA, target=None, unlabelled=None, image_size=None).y
    asked = {key: getattr(given, key) for key in ("model", "passes", "rows", "tuning")}
    lines, methods = Lines(given.out, asked), given.methods or [given.ours, *CONTROLS, LEARNER]
    done = {(record["seed"], record["method"]) for record in lines.records}
    for seed in range(given.first, given.first + given.seeds):
        for name in (name for name in methods if (seed, name) not in done):
            lines.add(one(name, seed, truth, given))
    table([found for found in lines.records if given.first <= found["seed"] < given.first + given.seeds], given.ours)


if __name__ == "__main__":
    main()
