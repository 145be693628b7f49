"""`auto()` for tables on public tables, beside the learner alone, the stack and the control that folds prefer.

``python -m benchmarks.auto_tables --seeds 6 --first 10`` trains everything and prints a line of JSON for each table and
seed; ``--summary FILE`` reads such lines and prints the tables of docs/auto.md. ``--noise 0.3`` replaces that share of
the labels by wrong ones. Classes have 150 labelled rows, values 80; at most 700 rows are unlabelled and 1,000 test.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import ttest_1samp
from sklearn.base import clone
from threadpoolctl import threadpool_limits

from selfdistill.estimators import AutoClassifier, AutoRegressor
from selfdistill.estimators.base_learners import ALONE, learner
from selfdistill.estimators.io import file_size
from selfdistill.estimators.wrappers import seeded_clone
from selfdistill.evaluation.predict import halfwidth
from selfdistill.evaluation.statistics import holm, interval

from .public_tables import TABLES

LABELLED = {True: 150, False: 80}
UNLABELLED, TEST = 700, 1_000
PICKED = (ALONE, "boosting", "extra trees", "forest", "linear", "neighbours", "mean")


class Split(NamedTuple):
    """A table's rows: those with a label, those without and those of the test, and all targets."""

    rows: pd.DataFrame
    y: NDArray[Any]
    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    test: NDArray[np.int64]


def split(frame: pd.DataFrame, seed: int, classify: bool) -> Split:
    """Draw the rows; five labelled rows of every class at the least."""
    frame = frame.sample(frac=1, random_state=seed).reset_index(drop=True)
    number = LABELLED[classify]
    y = pd.factorize(frame["target"], sort=True)[0] if classify else frame["target"].to_numpy(dtype=float)
    first = np.concatenate([np.flatnonzero(y == c)[:5] for c in np.unique(y)]) if classify else np.arange(0)
    rest = np.setdiff1d(np.arange(len(y)), first)
    labelled = np.concatenate([first, rest[: max(0, number - len(first))]]).astype(np.int64)
    rest = np.setdiff1d(rest, labelled)
    test = rest[-min(TEST, len(rest) // 2) :]
    return Split(frame.drop(columns="target"), y, labelled, rest[: -len(test)][:UNLABELLED], test)


def wrong_labels(y: NDArray[Any], share: float, seed: int) -> NDArray[Any]:
    """Class numbers (rows,), of which about a share are replaced by another class."""
    random, classes = np.random.RandomState(seed + 1000), int(y.max()) + 1
    flipped = random.random_sample(len(y)) < share
    return np.where(flipped, (y + random.randint(1, classes, len(y))) % classes, y)


def measured(call: Callable[[], Any]) -> tuple[Any, float]:
    """A call's result, and the CPU seconds that it took."""
    begun = time.process_time()
    result = call()
    return result, time.process_time() - begun


def run(name: str, seed: int, noise: float) -> dict[str, Any]:
    """One table and seed: errors of all arms on the test rows, the choice, and what it cost."""
    table = TABLES[name]
    data = split(table.load(), seed, table.classify)
    labels = data.y[data.labelled]
    if noise:
        labels = wrong_labels(labels, noise, seed)
    part = [data.rows.iloc[ids].reset_index(drop=True) for ids in (data.labelled, data.unlabelled, data.test)]
    truth = data.y[data.test]
    base = learner("boosting", table.classify, part[0], len(labels))
    plain = seeded_clone(base, np.random.RandomState(seed))
    plain, seconds = measured(lambda: clone(plain).fit(part[0], labels))
    kind = AutoClassifier if table.classify else AutoRegressor
    model, cost = measured(lambda: kind(base, random_state=seed).fit(part[0], labels, X_unlabeled=part[1]))
    spread = 1.0 if table.classify else float(np.std(truth))

    def error(one: Any) -> float:
        values = one.predict_proba(part[2]).argmax(axis=1) if table.classify else one.predict(part[2])
        return float((values != truth).mean() if table.classify else np.sqrt(((values - truth) ** 2).mean()) / spread)

    stack = model.teacher_ if model.teacher_ is not None else plain
    single = model.student_ if model.student_ is not None else plain
    errors = {"plain": error(plain), "stack": error(stack), "best": error(model), "single": error(single)}
    _, slow = measured(lambda: plain.predict(part[2]))
    _, fast = measured(lambda: single.predict(part[2]))
    record: dict[str, Any] = {
        "table": name, "seed": seed, "classify": table.classify, "noise": noise, "errors": errors,
        "product": next((row["name"] for row in model.candidates_ if row["outcome"] == "product"), None),
        "candidates": model.candidates_, "notes": model.notes_, "cpu": cost / seconds, "plain_seconds": seconds,
        "prediction": fast / max(slow, 1e-9), "file": file_size(single) / file_size(plain),
    }  # fmt: skip
    errors["picked"] = picked(model.candidates_, table.classify, part, labels, seed, error)
    if not table.classify and model.residuals_ is not None:
        half = halfwidth(torch.from_numpy(model.residuals_))
        record["covered"] = float((np.abs(model.predict(part[2]) - truth) <= half).mean())
    return record


def picked(
    candidates: list[dict[str, Any]],
    classify: bool,
    part: list[pd.DataFrame],
    labels: NDArray[Any],
    seed: int,
    error: Callable[[Any], float],
) -> float:
    """The test error of the learner, or of the mean of all, that has the best score on rows held out."""
    from selfdistill.estimators.base_learners import stack_learners
    from selfdistill.estimators.wrappers import MeanEnsemble

    scores = {row["name"]: row["score"] for row in candidates if row["name"] in PICKED and row["score"] is not None}
    best = (max if classify else min)(scores, key=lambda name: scores[name])
    base = learner("boosting", classify, part[0], len(labels))
    random = np.random.RandomState(seed)
    learners = {k: seeded_clone(v, random) for k, v in stack_learners(base, part[0], classify, len(labels)).items()}
    model = MeanEnsemble(list(learners.values())) if best == "mean" else learners[best]
    return error(model.fit(part[0], labels))


# the summary ----------------------------------------------------------------------------------------------------------


def significant(
    records: list[dict[str, Any]], one: str, other: str, level: float = 0.05
) -> tuple[list[str], list[str]]:
    """The tables on which one arm has a lower, and a higher error than the other: paired t-tests over seeds, Holm."""
    tables: dict[str, list[float]] = {}
    for r in records:
        tables.setdefault(r["table"], []).append(r["errors"][one] - r["errors"][other])
    p = {n: 1.0 if np.ptp(v) == 0 else float(ttest_1samp(v, 0.0).pvalue) for n, v in tables.items()}
    corrected = holm(p)
    hits = [name for name in tables if corrected[name] <= level]
    return [n for n in hits if statistics.fmean(tables[n]) < 0], [n for n in hits if statistics.fmean(tables[n]) > 0]


def summary(records: list[dict[str, Any]]) -> None:
    """Print what docs/auto.md says."""
    for classify in (True, False):
        own = [r for r in records if r["classify"] is classify]
        if not own:
            continue
        names = sorted({r["table"] for r in own})
        print(f"\n{'classes' if classify else 'values'}: {len(names)} tables, {len(own) // len(names)} seeds")
        means = {
            arm: {n: statistics.fmean(r["errors"][arm] for r in own if r["table"] == n) for n in names}
            for arm in own[0]["errors"]
        }
        for n in names:
            print(f"  {n:14s} " + "  ".join(f"{arm} {100 * means[arm][n]:6.2f}" for arm in means))

        gains = {
            arm: [100 * (means["plain"][n] - means[arm][n]) / (1.0 if classify else means["plain"][n]) for n in names]
            for arm in means
            if arm != "plain"
        }
        for arm, values in gains.items():
            mean, half = interval(values)
            print(f"  gain over plain, {arm}: {mean:+.2f} ± {half:.2f} {'points' if classify else '%'}")
        whole = statistics.fmean(gains["stack"])
        print(f"  share of the stack's gain kept by single: {100 * statistics.fmean(gains['single']) / whole:.0f} %")
        for one, other in (("best", "picked"), ("best", "stack"), ("best", "plain"), ("single", "plain")):
            lower, higher = significant(own, one, other)
            print(f"  {one} against {other}: better on {len(lower)}, worse on {len(higher)} {higher}")
        either = {n for arm in ("best", "single") for n in significant(own, arm, "plain")[0]}
        print(f"  best or single better than plain: {len(either)}")
        worst = max(own, key=lambda r: r["errors"]["best"] / max(r["errors"]["plain"], 1e-9))
        ratio = worst["errors"]["best"] / max(worst["errors"]["plain"], 1e-9)
        print(f"  worst error over plain's: {ratio:.2f} ({worst['table']}, seed {worst['seed']})")
        for key in ("cpu", "prediction", "file"):
            print(f"  {key} over plain's, median: {statistics.median(r[key] for r in own):.1f}")
        products: dict[str, int] = {}
        for r in own:
            products[r["product"]] = products.get(r["product"], 0) + 1
        print(f"  products: {products}; refusals: {sum(bool(r['notes']) for r in own)}")
        covered = {n: [r["covered"] for r in own if r["table"] == n and "covered" in r] for n in names}
        if any(covered.values()):
            each = {n: statistics.fmean(v) for n, v in covered.items() if v}
            least = min(min(v) for v in covered.values() if v)
            print(f"  90 % intervals: mean {100 * statistics.fmean(each.values()):.1f}, worst table "
                  f"{100 * min(each.values()):.1f}, worst seed {100 * least:.1f}")  # fmt: skip


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--first", type=int, default=10)
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--summary", type=Path)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.summary:
        summary([json.loads(line) for line in options.summary.read_text().splitlines() if line.startswith("{")])
        return
    warnings.simplefilter("ignore")
    names = [n for n in options.tables.split(",") if not options.noise or TABLES[n].classify]
    with threadpool_limits(1):
        for seed in range(options.first, options.first + options.seeds):
            for name in names:
                print(json.dumps(run(name, seed, options.noise)), flush=True)


if __name__ == "__main__":
    main()
