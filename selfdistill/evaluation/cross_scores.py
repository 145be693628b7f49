"""Cross-fitted scores: each labelled row was predicted by a model that did not learn it, and no test split is kept.

The rows are cut into folds, and the whole procedure (its choices on validation rows too) is trained once without each.
The score is of all their predictions together. It belongs to models that learnt from fewer rows than the final one,
which is trained on all of them, so it is rather too low than too high. Its interval takes the rows as independent
draws and is a little too narrow, since the models share most of their rows.

Sources: Stone, Cross-validatory choice and assessment of statistical predictions, JRSS B 36, 1974; Bates, Hastie and
Tibshirani, Cross-validation: what does it estimate and how well does it do it?, JASA 119, 2024.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.annotators import AnnotatorLabels
from ..data.decisions import RowNames
from .label_errors import CROSS, TRAIN, Examination
from .metrics import breakdown, reliability
from .predict import halfwidth, points, scored
from .statistics import share_interval

CROSS_FIT = "cross-fit"  # in place of a test split
SAMPLES, LEVEL = 1000, 0.95  # of the bootstrap of an error of values
MEANS = ("accuracy", "nll", "brier", "mae")  # metrics that are means over rows


@dataclass(frozen=True)
class CrossScores:
    """The predictions for all labelled rows, and what the trainings without a fold say of themselves.

    ``ids``, ``y`` and ``outputs`` are the sample ids (rows,), the labels (rows,), and logits (rows, classes) or values
    (rows,) of rows, fold by fold. ``results`` has the result of each fold's training, and ``sizes`` the rows of it.
    """

    ids: Tensor
    y: Tensor
    outputs: Tensor
    results: Sequence[Mapping[str, Any]]
    sizes: Sequence[int]

    def result(self, final: Mapping[str, Any], classes: Sequence[str], names: RowNames) -> dict[str, Any]:
        """The result of the final model's training with these scores, since it has no test split of its own."""
        test = scored(self.outputs, self.y, "classify" if classes else "regress")
        half = math.inf if classes else halfwidth(self.outputs - self.y)
        test |= {"width": 2 * half} if half < math.inf else {}
        rows = [names.name(row) for row in self.ids.tolist()]
        shown = reliability(self.outputs, self.y) if classes else points(self.outputs, self.y)
        result = {
            **final, "test": test, "cross_fit": self.describe(test, self.interval(test)),
            "breakdown": breakdown(self.outputs, self.y, classes, rows, self.ids),
            "reliability" if classes else "predicted": {"cross-fitted": shown},
        }  # fmt: skip
        if all(one.get("plain") for one in self.results) and final.get("plain"):
            result["plain"] = {**final["plain"], "end": self.mean([one["plain"]["end"] for one in self.results])}
            early = [one["plain"].get("early_stopped") for one in self.results]
            if all(early):
                epoch = round(statistics.median(one["epoch"] for one in early))
                result["plain"]["early_stopped"] = {"epoch": epoch, **self.mean(early)}
        own = self.mean([one["generations"][one["final_generation"]].get("test", {}) for one in self.results])
        result["generations"] = [
            {**one, "test": own if number == final["final_generation"] else {}} if "test" in one else one
            for number, one in enumerate(final["generations"])
        ]
        return {**result, **self.importance()}

    def mean(self, figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The metrics of all rows by those of each fold, as far as they are means over rows; RMSE and R2 too."""
        weights = np.array(self.sizes) / sum(self.sizes)

        def of(name: str, power: int = 1) -> float:
            return float(weights @ np.array([one[name] for one in figures]) ** power)

        common = set(figures[0]).intersection(*figures[1:])
        found = {name: of(name) for name in MEANS if name in common}
        if "rmse" in common:
            square = float(weights @ (np.array([one["rmse"] for one in figures]) ** 2))
            spread = float(self.y.double().var(correction=0))
            found = {"rmse": math.sqrt(square), **found, **({"r2": 1 - square / spread} if spread else {})}
        return found

    def interval(self, test: Mapping[str, float]) -> tuple[str, float, float]:
        """The metric of the score and its interval of 95 %: Wilson's of an accuracy, by bootstrap of an RMSE."""
        rows = len(self.y)
        if "accuracy" in test:
            return "accuracy", *share_interval(round(test["accuracy"] * rows), rows)
        squares, random = (self.outputs - self.y).double().square().numpy(), np.random.default_rng(0)
        draws = [math.sqrt(squares[random.integers(rows, size=rows)].mean()) for _ in range(SAMPLES)]
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return "rmse", float(min(low, test["rmse"])), float(max(high, test["rmse"]))

    def describe(self, test: Mapping[str, float], interval: tuple[str, float, float]) -> dict[str, Any]:
        """The entry ``cross_fit`` of run.json: folds, rows, and what the score belongs to."""
        (metric, low, high), folds, rows = interval, len(self.results), len(self.y)
        about = (
            f"Scores are cross-fitted: each of the {rows:,} labelled rows was predicted by one of {folds} trainings, "
            "the one that did not learn it. The final model learnt from all of them, so it is rather a little better."
        )
        return {"folds": folds, "rows": rows, "metric": metric, "low": low, "high": high, "about": about}

    def importance(self) -> dict[str, Any]:
        """The mean of the folds' importance of columns, and its deviation over the folds; empty without any."""
        tables = [{row["name"]: row["mean"] for row in one.get("importance", [])} for one in self.results]
        names = set(tables[0]).intersection(*tables[1:])
        rows = [
            {"name": name, "mean": statistics.fmean(values), "deviation": statistics.pstdev(values)}
            for name in sorted(names)
            if (values := [table[name] for table in tables])
        ]
        return {"importance": sorted(rows, key=lambda row: -float(row["mean"]))} if rows else {}

    def examination(
        self, y: Tensor, classes: tuple[str, ...], names: RowNames, votes: AnnotatorLabels | None
    ) -> Examination:
        """The rows as of label errors: all of them teach.

        Args:
            y: the labels of all rows of the data.
            classes, names, votes: of the data.
        """
        predictions = torch.softmax(self.outputs.double(), -1) if classes else self.outputs.double()
        splits = np.full(len(self.ids), TRAIN, dtype="<U10")
        own = votes and votes.of_rows(self.ids)
        labels = y[self.ids].numpy()
        return Examination(self.ids.numpy(), splits, labels, predictions.numpy(), classes, names, CROSS, own)
