"""Cross-fitted scores: every row is predicted by a training without it, and the final model learns from all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from tests.terminal import invoke, passed, refused


def write(path: Path, values: bool, rows: int = 60, seed: int = 105) -> Path:
    """A small table: a line with noise, as two classes or as values."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    z = x @ np.array([1.5, 0.7, 0.0]) + 0.5 * random.normal(size=rows)
    cells = [f"{value:.4f}" for value in z] if values else ["yes" if value > 0 else "no" for value in z]
    lines = [",".join([*(f"{number:.4f}" for number in row), cell]) for row, cell in zip(x, cells, strict=True)]
    path.write_text("a,b,c,out\n" + "\n".join(lines) + "\n")
    return path


def result_of(run: Path) -> dict[str, Any]:
    record = json.loads((run / "run.json").read_text())
    return dict(record["result"])


def test_a_learner_has_the_scores_of_scikit_learns_cross_validation(tmp_path: Path) -> None:
    """The same folds, the same learner: pooled accuracy and label errors are those of a loop of one's own."""
    import pandas as pd
    import torch
    from sklearn.base import clone

    from selfdistill.estimators.base_learners import learner
    from selfdistill.training.cross_fitting import parts

    table, run = write(tmp_path / "t.csv", values=False), tmp_path / "run"
    told = passed(
        "run", table, "--target", "out", "--model", "linear", "--method", "plain()", "--test", "cross-fit",
        "--folds", 4, "--out", run,
    )  # fmt: skip
    frame = pd.read_csv(table)
    x, y = frame[["a", "b", "c"]], (frame["out"] == "yes").astype(int)
    fold = parts(torch.tensor(y.tolist()), 4, 0).numpy()
    own = clone(learner("linear", True, x, len(x)))
    answers = np.concatenate([own.fit(x[fold != k], y[fold != k]).predict(x[fold == k]) for k in range(4)])
    truth = np.concatenate([y[fold == k] for k in range(4)])
    result = result_of(run)
    assert result["test"]["accuracy"] == pytest.approx((answers == truth).mean())
    assert result["plain"]["end"]["accuracy"] == pytest.approx((answers == truth).mean())
    cross = result["cross_fit"]
    assert cross["low"] < result["test"]["accuracy"] < cross["high"]
    assert (cross["rows"], cross["folds"]) == (60, 4)
    assert result["data"]["rows"] == {"labelled": 60, "unlabelled": 0, "test": 0, "audit": 0}
    assert result["label_errors"]["splits"]["train"]["examined"] == 60
    assert not (run / "cross").exists()
    assert "cross-fitted (60 rows, 4 folds)" in told.stdout
    assert "4 trainings without a fold" in told.stderr
    page = (run / "report.html").read_text()
    assert "Models that did not learn a row are right on" in page
    assert "95 % interval" in page
    assert "cross-fitted, on all labelled rows" in (run / "README.md").read_text()
    assert len(passed("predict", run, table).stdout.splitlines()) == 61
    assert "Cross-fitted" in passed("label-errors", run).stdout or result["label_errors"]["noise"]["low"] < 0.01


@pytest.mark.parametrize("values", [False, True])
def test_a_network_learns_all_rows_and_is_scored_by_those_left_out(values: bool, tmp_path: Path) -> None:
    table, run = write(tmp_path / "t.csv", values), tmp_path / "run"
    passed(
        "run", table, "--target", "out", "--model", "mlp", "--method", "plain()", "--steps", 60, "--test", "cross-fit",
        "--folds", 3, "--quiet", "--out", run,
    )  # fmt: skip
    result = result_of(run)
    assert result["refit"]["rows"] == 60
    assert result["cross_fit"]["rows"] == 60
    if values:
        assert 0.3 < result["test"]["rmse"] < 1.2, "noise of .5, and none of the constant's 1.7"
        config = json.loads((run / "model" / "config.json").read_text())
        assert config["half"] > 0, "the interval of predictions comes from rows left out"
        with np.errstate(all="ignore"):
            assert result["plain"]["end"]["rmse"] == pytest.approx(result["test"]["rmse"])
    else:
        assert result["test"]["accuracy"] > 0.75
        with np.load(run / "probabilities.npz") as stored:
            assert (stored["pred_probs"].argmax(1) == stored["labels"]).mean() == pytest.approx(
                result["test"]["accuracy"]
            )


def test_a_fold_that_was_finished_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut after two folds goes on with the third, and ends as one that was not cut."""
    from selfdistill.estimators.run import TableRun

    table, trained, whole = write(tmp_path / "t.csv", values=False), list[int](), TableRun.without
    arguments = ["run", table, "--target", "out", "--model", "linear", "--method", "plain()", "--test", "cross-fit",
                 "--quiet", "--out"]  # fmt: skip

    def cut(self: TableRun, held: Tensor) -> TableRun:
        trained.append(1)
        if len(trained) == 3:
            raise KeyboardInterrupt
        return whole(self, held)

    monkeypatch.setattr(TableRun, "without", cut)
    assert invoke(*arguments, tmp_path / "cut").exit_code == 130
    assert sorted(path.name for path in (tmp_path / "cut" / "cross").glob("*.json")) == ["0.json", "1.json"]
    passed(*arguments, tmp_path / "cut")
    assert len(trained) == 6
    passed(*arguments, tmp_path / "straight")
    assert result_of(tmp_path / "cut")["test"] == result_of(tmp_path / "straight")["test"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--budget", "1min"], "does not go with --budget"),
        (["--label-noise", "0.2"], "does not go with --label-noise"),
        (["--time", "a"], "does not go with --time"),
    ],
)
def test_what_does_not_fit_is_refused(more: list[str], message: str, tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", values=False)
    assert message in refused("run", table, "--target", "out", "--test", "cross-fit", *more, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_few_test_rows_are_told_and_comparisons_need_some(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", values=False)
    told = passed(
        "run", table, "--target", "out", "--model", "linear", "--method", "plain()", "--out", tmp_path / "run"
    )
    assert "the test split has 12 rows, and a score on it is uncertain; `run --test cross-fit`" in told.stderr
    assert "a comparison pairs scores on test rows" in refused(
        "compare", table, "--target", "out", "--methods", "plain()", "--test", "cross-fit", "--out", tmp_path / "c"
    )
    assert "not for language models" in refused("run", "reasoning-gym:chain_sum", "--test", "cross-fit")
