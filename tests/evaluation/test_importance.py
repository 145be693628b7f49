"""Permutation importance against the mean over all pairs of rows, and in the report of a network on a table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from selfdistill.data import tables
from selfdistill.evaluation.importance import permutation_importance
from tests.terminal import passed


def test_the_importance_is_the_mean_over_pairs_of_rows() -> None:
    """A shuffled column is that of another row, each as likely: so the mean fall is known without shuffling."""
    generator = torch.Generator().manual_seed(108)
    x = torch.randn(40, 4, generator=generator)
    weights = torch.tensor([1.0, -2.0, 0.5, 0.0])
    y = (x @ weights + 0.3 * torch.randn(40, generator=generator)) > 0

    def score(inputs: Tensor) -> float:
        return float(((inputs @ weights > 0) == y).double().mean())

    columns = ["a", "b", "b", "c"]
    found = {one["name"]: one for one in permutation_importance(score, x, columns, repeats=400)}
    for name in ("a", "b", "c"):
        own = [i for i, column in enumerate(columns) if column == name]
        right = 0
        for i in range(40):
            for k in range(40):
                row = x[i].clone()
                row[own] = x[k, own]
                right += int((row @ weights > 0) == y[i])
        wanted = score(x) - right / 1600
        error = 4 * found[name]["deviation"] / 20 + 1e-9
        assert found[name]["mean"] == pytest.approx(wanted, abs=error)
    assert found["c"]["mean"] == found["c"]["deviation"] == 0.0


def test_every_feature_belongs_to_the_column_that_changes_it() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "a_b": random.normal(size=60),
            "a": random.choice(["b", "c_d", "e"], 60).astype(object),
            "gap": np.where(random.random(60) < 0.2, np.nan, random.normal(size=60)),
            "a_": random.choice(["x", "y"], 60).astype(object),
        }
    )
    fitted = tables.fit(frame, torch.arange(60))
    columns, before = tables.feature_columns(fitted), tables.transform(fitted, frame)
    assert len(columns) == before.shape[1] == 2 + 1 + 3 + 2
    for name in frame.columns:
        other = frame.copy()
        other[name] = frame[name].sample(frac=1, random_state=1).to_numpy()
        changed = (tables.transform(fitted, other) != before).any(0)
        assert [column == name for column in columns] == changed.tolist()


def test_a_network_on_a_table_reports_the_columns_that_matter(tmp_path: Path) -> None:
    random = np.random.default_rng(109)
    x = random.normal(size=(200, 3))
    frame = pd.DataFrame(x, columns=["much", "none", "less"]).round(4)
    frame["kind"] = np.where(random.random(200) < 0.5, "u", "v")
    frame["y"] = np.where(2 * x[:, 0] + 0.7 * x[:, 2] > 0, "yes", "no")
    frame.to_csv(tmp_path / "t.csv", index=False)
    passed("run", tmp_path / "t.csv", "--target", "y", "--model", "mlp", "--method", "plain()", "--steps", 80,
           "--quiet", "--out", tmp_path / "run")  # fmt: skip
    found = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["importance"]
    assert sorted(one["name"] for one in found) == ["kind", "less", "much", "none"]
    assert found[0]["name"] == "much"
    assert found[0]["mean"] > 0.15
    assert "Columns that matter" in (tmp_path / "run" / "report.html").read_text()
