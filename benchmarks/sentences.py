"""MiniLM fine-tuned on rated sentences: the plain model against three recipes, at equal steps, paired over seeds.

    python -m benchmarks.sentences FOLDER --seeds 5 --out runs/sentences.jsonl

FOLDER has ``sentiment-amazon.csv.gz`` with the columns ``text`` and ``rating``, the mean of 20 raters from -4 to 4
(sentences of VADER, Hutto and Gilbert, ICWSM 2014). Two tasks: the rating as a value, and its sign as a class, without
the sentences rated 0. A seed draws the labels that teach, the heads and the order; the test split is the same for all.
A training adds a line to ``--out``; given again, the command goes on where it was cut.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lines import Lines
from selfdistill.data import text
from selfdistill.data.dataset import Data, load
from selfdistill.evaluation.predict import score
from selfdistill.evaluation.statistics import interval, paired
from selfdistill.methods.registry import read_method
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit

METHODS = ("plain()", "ps_kd()", "dlb()", "byot()")
METRICS = {"rating": ("rmse", "r2"), "sign": ("accuracy", "nll")}
FEWER = {"rmse", "nll"}  # less is better
LENGTH = 32  # tokens; 9 in 10 of the sentences are shorter
AUDIT = 0.05  # of what the test split leaves: it chooses nothing here


def rated(folder: Path, name: str, task: str, labels: int, seed: int) -> Data:
    """The sentences of one source, with so many labels: their rating, or its sign."""
    import pandas

    frame = pandas.read_csv(folder / f"sentiment-{name}.csv.gz")
    if task == "sign":
        frame = frame[frame["rating"] != 0]
        frame = frame.assign(sign=frame["rating"].gt(0).map({True: "above 0", False: "below 0"}))
    reader = text.reader(f"gt-minilm(length={LENGTH})", "text")
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / f"{name}.csv"
        frame[["text", task]].to_csv(path, index=False)
        return load(str(path), target=task, reader=reader, labels=labels, audit=AUDIT, seed=seed)


def train(data: Data, method: str, seed: int, given: argparse.Namespace) -> dict[str, Any]:
    """One training, scored on the test split at its end."""
    build = parse(f"gt-minilm(length={LENGTH})", data.shape, data.outputs)
    settings = {**text.SETTINGS, "lr": given.lr, "steps": given.steps, "batch_size": given.batch}
    result = fit(build, data, read_method(method), seed=seed, warn=lambda line: None, **settings)
    return {
        "test": score(result.model, data, data.test),
        "steps": result.steps,
        "loss": result.history[-1]["loss"],
        "passes": result.passes._asdict(),
        "seconds": round(result.seconds, 1),
    }


def line(task: str, metric: str, method: str, rows: dict[str, dict[int, float]]) -> str:
    """One line of the table: means, and the paired difference with half of its 95 % interval."""
    scale, digits = (100, 1) if metric == "accuracy" else (1, 3)
    ours, theirs = ({seed: scale * value for seed, value in rows[name].items()} for name in (method, "plain()"))
    shared = ours.keys() & theirs.keys()
    mean, half = interval(paired(*({seed: side[seed] for seed in shared} for side in (ours, theirs))))
    better = -mean if metric in FEWER else mean
    verdict = "ties" if abs(mean) <= half else "better" if better > 0 else "worse"
    sides = " | ".join(f"{statistics.fmean(side[seed] for seed in shared):.{digits}f}" for side in (theirs, ours))
    difference = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"| {task} | {metric} | `{method}` | {sides} | {difference} | {verdict} | {len(shared)} |"


def table(records: list[dict[str, Any]]) -> None:
    print(
        "| target | on test | method | plain | method | difference, 95 % | | seeds |\n|---|---|---|---|---|---|---|---|"
    )
    for task, metrics in METRICS.items():
        for metric in metrics:
            rows: dict[str, dict[int, float]] = {}
            for one in (one for one in records if one["task"] == task):
                rows.setdefault(one["method"], {})[one["seed"]] = one["test"][metric]
            for method in (name for name in METHODS[1:] if name in rows and "plain()" in rows):
                print(line(task, metric, method, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with sentiment-NAME.csv.gz")
    parser.add_argument("--name", default="amazon", help="the source of the sentences")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--labels", type=int, default=300, help="that teach")
    parser.add_argument("--steps", type=int, default=80, help="of the optimizer, for every method")
    parser.add_argument("--batch", type=int, default=16, help="sentences in a step")
    parser.add_argument("--lr", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--tasks", nargs="*", default=list(METRICS), choices=list(METRICS), metavar="TASK")
    parser.add_argument("--out", type=Path, default=Path("runs/sentences.jsonl"), help="results")
    given = parser.parse_args()
    asked = {key: getattr(given, key) for key in ("name", "labels", "steps", "batch", "lr")}
    lines = Lines(given.out, asked)
    done = {(one["task"], one["method"], one["seed"]) for one in lines.records}
    for seed in range(given.first, given.first + given.seeds):
        for task in given.tasks:
            data = None
            for method in METHODS:
                if (task, method, seed) in done:
                    continue
                data = data or rated(given.folder, given.name, task, given.labels, seed)
                lines.add({"task": task, "method": method, "seed": seed, **train(data, method, seed, given)})
    table(lines.records)


if __name__ == "__main__":
    main()
