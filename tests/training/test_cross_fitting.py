"""Cross-fitted audits: folds by counting, choices by hand, runs that use every label and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.data.dataset import load
from selfdistill.errors import DataError
from selfdistill.evaluation.audit import Audit
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.methods import reweight
from selfdistill.models.networks import mlp
from selfdistill.models.store import load_model, model_card
from selfdistill.training.cross_fitting import all_labels, choose, parts, train_without_fold


def test_every_class_is_spread_over_the_folds() -> None:
    y = torch.tensor([0] * 7 + [1] * 8 + [2] * 5)[torch.randperm(20, generator=torch.Generator().manual_seed(0))]
    fold = parts(y, 5, seed=1)
    assert fold.bincount().tolist() == [4] * 5
    for label in range(3):
        counts = fold[y == label].bincount(minlength=5)
        assert int(counts.max() - counts.min()) <= 1
    assert fold.equal(parts(y, 5, seed=1))
    assert not fold.equal(parts(y, 5, seed=2))


def test_folds_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match="2 or more"):
        parts(torch.tensor([0, 0]), 1, seed=0)
    with pytest.raises(DataError, match="class 1 has one"):
        parts(torch.tensor([0, 0, 1]), 2, seed=0)


def test_the_folds_choose_the_best_generation_before_a_roll_back() -> None:
    good, better, poor = [1.0] * 20 + [0.0] * 80, [0.0] * 100, [1.0] * 100
    audit = Audit(planned=3)
    assert choose(audit, [good, better, poor, better])[0] == 2  # what follows a roll-back is not looked at
    assert [d.accepted for d in choose(audit, [good, better, poor, better])[1]] == [True, False]
    assert choose(audit, [better, poor])[0] == 1


def test_all_labels_teach_in_the_end() -> None:
    data = load("digits", labels=60)
    whole = all_labels(data)
    assert len(data.audit) == 60
    assert sorted(whole.labelled.tolist()) == sorted([*data.labelled.tolist(), *data.audit.tolist()])
    assert not len(whole.audit)


METHOD = "born_again(generations=2)"
ARGUMENTS: dict[str, Any] = {"labels": 60, "steps": 12, "audit_folds": 3, "method": METHOD}


def test_a_folded_run_reports_what_the_folds_chose(tmp_path: Path) -> None:
    said: list[str] = []
    result = Run.create(Request("digits", **ARGUMENTS), tmp_path / "run").execute(tell=said.append)
    folds = result["folds"]
    assert folds["rows"] == 120
    assert len(folds["decisions"]) == 1
    assert folds["decisions"][0]["rows"] == 120
    assert len(result["generations"]) == folds["generations"]
    assert result["chosen"] == ("plain" if folds["plain"] else "method")
    assert any("3 folds choose" in line for line in said)
    assert folds["passes"]["backward"] > result["passes"]["backward"]
    described = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["data"]
    assert (described["rows"]["labelled"], described["rows"]["audit"]) == (120, 0)


def test_a_refused_folded_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="leave one of them out"):
        Run.create(Request("digits", **ARGUMENTS, training=(("audit", "off"),)), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


def test_a_folded_run_killed_in_its_folds_ends_the_same(tmp_path: Path) -> None:
    flags = ["--labels=60", "--steps=12", "--audit-folds=3", "--quiet", "--save-steps=5"]
    whole = Run.create(Request("digits", **ARGUMENTS, training=(("save_steps", 5),)), tmp_path / "whole").execute()
    command = [
        sys.executable,
        "-m",
        "selfdistill",
        "run",
        "digits",
        *flags,
        "--method",
        METHOD,
        "--out",
        str(tmp_path / "cut"),
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (tmp_path / "cut" / "folds" / "1" / "checkpoints").exists():
        pass
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    again = Run.open(tmp_path / "cut").execute()
    for varies in ("run", "seconds"):
        whole.pop(varies), again.pop(varies)
    for one in (whole, again):
        one["plain"].pop("seconds")
        one["folds"].pop("seconds")
    assert again == whole


def test_the_plain_control_is_the_product_where_the_audit_prefers_it(tmp_path: Path) -> None:
    """A teacher of weight 1 from a generation of 10 steps: the plain model, at 20 steps, is better."""
    request = Request("digits", steps=10, method="born_again(generations=2)", training=(("lr", 0.003),))
    result = Run.create(request, tmp_path / "run").execute()
    assert result["chosen"] == "plain"
    assert result["test"] == result["plain"]["end"]
    card = model_card(tmp_path / "run")
    assert card["method"] == "plain()"
    x, y = (part := load("digits")).rows(part.test), part.y[part.test]
    hits = load_model(tmp_path / "run")(x).argmax(-1) == y
    assert float(hits.double().mean()) == pytest.approx(result["test"]["accuracy"])
    assert "the final model" in (tmp_path / "run" / "README.md").read_text()


def test_values_are_cut_into_folds_and_a_class_too_small_is_refused_by_its_name(tmp_path: Path) -> None:
    table = tmp_path / "values.csv"
    table.write_text("a,y\n" + "".join(f"{i * 37 % 101},{i * 1.37}\n" for i in range(100)))
    request = Request(str(table), target="y", audit_folds=3, steps=2, model="mlp", method="born_again()", batch_size=8)
    result = Run.create(request, tmp_path / "out").execute()
    assert result["folds"]["rows"] == 80
    assert result["test"]["rmse"] > 0
    with pytest.raises(DataError, match="class dog has one"):
        parts(torch.tensor([0, 0, 1]), 2, seed=0, classes=("cat", "dog"))


def test_no_fold_weighs_its_training_rows_by_the_rows_that_judge(tmp_path: Path) -> None:
    """Clean rows are set apart before the folds; of rows that a person checked each fold keeps the others."""
    data, seen = load("digits", labels=60), list[set[int]]()
    checked = replace(data, clean=data.labelled[:20])

    def watch(clock: Any, batches: list[Any], loss: float) -> None:
        seen.append({i for batch in batches for i in batch["clean"].id.tolist()})

    for given in (data, checked):
        ids = [torch.zeros(0)] * 2
        for fold in range(2):
            seen.clear()
            options = {"steps": 3, "batch_size": 20, "watch": watch, "device": "cpu"}
            build = partial(mlp, data.shape, data.outputs)
            train_without_fold(build, given, reweight(), fold, 2, tmp_path / f"{given is data}{fold}", **options)
            ids[fold] = torch.tensor(sorted(set().union(*seen)))
        apart = torch.isin(ids[0], ids[1])
        assert bool(apart.all()) if given is data else not bool(apart.any())
        assert bool(torch.isin(torch.cat(ids), given.audit if given is data else given.clean).all())
    few = replace(data, clean=data.labelled[:1])

    def each_fold() -> None:
        for fold in range(2):
            train_without_fold(build, few, reweight(), fold, 2, tmp_path / f"few{fold}", steps=3, batch_size=20)

    with pytest.raises(DataError, match="a fold holds all rows with clean labels"):
        each_fold()
