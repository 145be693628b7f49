"""Comparisons of learners on tables: controls, matched trainings, verdicts of values, cut and continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfdistill.estimators import comparison
from selfdistill.estimators.run import TableRun, prepare
from selfdistill.experiments.compare import Comparison, runner
from selfdistill.io.run_record import Request
from selfdistill.training.comparison import BOTH, OWN, ComparisonSettings, Job
from tests.terminal import passed, refused

FLAGS = ["diabetes", "--labels", "40", "--model", "linear", "--seeds", "3", "--methods", "peer_taught()"]


@pytest.fixture(autouse=True, scope="module")
def one_core() -> Iterator[None]:
    """Small trainings take less time than the start of processes for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "cores", lambda: 1)
        patch.setattr(comparison, "find_spec", lambda name: None)  # CatBoost is a control where it is installed
        yield


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare")
    said = passed("compare", *FLAGS, "--out", folder / "c", "--json", folder / "out.json")
    (folder / "said.txt").write_text(said.stdout)
    return folder


def test_the_table_has_the_metrics_of_values_and_the_controls_of_learners(compared: Path) -> None:
    found: dict[str, Any] = json.loads((compared / "out.json").read_text())
    assert set(found["metrics"]) == {"rmse", "mae", "r2", "width", "coverage", "rmse_gap"}
    names = [row["name"] for row in found["rows"]]
    assert names[0] == "peer_taught()"
    assert set(names[1:]) == {
        "plain", "tuned", "bagged", "peers, averaged", "ExtraTreesRegressor alone", "RidgeCV alone", "stack",
        "picked by folds",
    }  # fmt: skip
    row = found["rows"][0]
    assert "coverage" not in row["against"]["plain"]  # no verdict: neither more nor less is better
    assert 0.5 < row["metrics"]["coverage"]["mean"] <= 1.0
    assert found["budget"]["unit"] == "trainings"
    assert row["ensemble_gain_retained"] is None or "mean" in row["ensemble_gain_retained"]
    said = (compared / "said.txt").read_text()
    assert "TIES" in said
    page = (compared / "c/report.html").read_text()
    assert "scikit-learn" not in page or "self-training" in page
    assert "the learner and the usual peers on the labels, averaged, undistilled" in page


def test_tuning_and_bagging_get_as_many_trainings_as_the_dearest_method(compared: Path) -> None:
    found = json.loads((compared / "out.json").read_text())
    cost = {row["name"]: row["passes"]["total"] for row in found["rows"]}
    assert cost["bagged"] == found["budget"]["amount"] >= 20
    assert found["budget"]["amount"] - 5 <= cost["tuned"] <= found["budget"]["amount"] + 1
    assert cost["peers, averaged"] == 3
    assert cost["plain"] == cost["RidgeCV alone"] == 1


def test_the_plain_row_by_hand(compared: Path) -> None:
    """Test errors of the learner alone, by scikit-learn on the frame."""
    found = json.loads((compared / "out.json").read_text())
    plain = next(row for row in found["rows"] if row["name"] == "plain")
    for seed in range(3):
        choice = prepare(Request("diabetes", labels=40, model="linear", seed=seed))
        data = choice.data
        model = choice.learner(seed).fit(data.rows(data.labelled), data.y[data.labelled])
        error = np.sqrt(np.mean((model.predict(data.rows(data.test)) - data.y[data.test]) ** 2))
        assert plain["metrics"]["rmse"]["values"][seed] == pytest.approx(error)


def test_a_comparison_that_was_cut_goes_on_and_trains_nothing_twice(compared: Path) -> None:
    cells = sorted((compared / "c/cells").glob("*/*/cell.json"))
    before = json.loads((compared / "c/comparison.json").read_text())
    times = {path: path.stat().st_mtime_ns for path in cells}
    cells[3].unlink()
    passed("compare", *FLAGS, "--out", compared / "c", "--quiet")
    after = json.loads((compared / "c/comparison.json").read_text())
    assert {k: v for k, v in before.items() if k != "times"} == {k: v for k, v in after.items() if k != "times"}
    assert sum(times[path] != path.stat().st_mtime_ns for path in cells) == 1


def test_classes_have_scikit_learns_self_training_among_the_controls() -> None:
    request = Request("iris", labels=30, model="forest(trees=5)")
    settings = ComparisonSettings(("self_trained()",), (0, 1, 2), "trainings")
    choice = prepare(request)
    _, jobs = comparison.planned(settings, choice, {"self_trained()": 30.0})
    assert [job.name for job in jobs][-1] == "SelfTrainingClassifier"
    assert [job.count for job in jobs if job.name == "bagged"] == [30]
    record = comparison.train_job(jobs[-1], request, Path())
    row = record["rows"]["SelfTrainingClassifier"]
    assert row["metrics"].keys() == {"accuracy", "nll", "ece", "brier", "aurc", "gap"}
    assert row["audit"]["accuracy"] > 0.5


def test_an_audit_on_a_share_has_errors_of_that_share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in tables of more than 20,000 labels, of which 5,000 are left out once."""
    whole = TableRun.estimator

    def shared(self: TableRun, seed: int, **more: Any) -> Any:
        self.settings["audit_folds"] = 0.2
        return whole(self, seed, **more)

    monkeypatch.setattr(TableRun, "estimator", shared)
    name = "self_distilled(xi=0.5)"
    job = Job(name, comparison.METHOD, 0, 0, expression=name)
    row = comparison.train_job(job, Request("diabetes", model="linear"), Path())["rows"][name]
    assert 0.5 < row["metrics"]["coverage"] <= 1.0
    assert row["audit"]["rmse"] > 0


@pytest.mark.parametrize(
    ("data", "method"),
    [("diabetes", "peer_taught()"), ("diabetes", "self_distilled(xi=0.5)"), ("iris", "self_trained(peers=2)")],
)
def test_an_ablation_is_taught_by_the_learner_itself_or_by_all(data: str, method: str) -> None:
    labelled_by = []
    for kind in (comparison.METHOD, OWN, BOTH):
        job = Job(method, kind, 0, 0, expression=method)
        request = Request(data, labels=30, model="linear")
        work = comparison.TableJob(job, request)
        if kind != comparison.METHOD:
            ablated = work.prepared.recipe.ablated(both=kind == BOTH)
            assert ablated is not None
            work.prepared.recipe = ablated
        model = work.prepared.estimator(0)
        labelled_by.append((model.peers is None, model.include_self, model.xi))
        if method == "peer_taught()" and kind == OWN:
            row = comparison.train_job(job, request, Path())["rows"][method]
            assert not row["peers"]
            assert row["metrics"]["rmse"] > 0
    xi = labelled_by[0][2]
    assert labelled_by == [(False, False, xi), (True, False, xi), (False, True, xi)]


def test_networks_compare_on_values_too(tmp_path: Path) -> None:
    request = Request("diabetes", model="mlp(width=8)", steps=6)
    ask = ComparisonSettings(("born_again(xi=0.5)",), (0, 1, 2))
    found = Comparison.create(request, ask, tmp_path / "c").execute()
    names = {row["name"] for row in found["rows"]}
    assert "label smoothing" not in names
    assert {"early stopping", "EMA weights", "weight decay", "distil from larger"} <= names
    assert next(iter(found["metrics"])) == "rmse"
    assert all(np.isfinite(row["metrics"]["rmse"]["mean"]) for row in found["rows"])


def test_mixed_kinds_and_budgets_of_networks_are_refused(tmp_path: Path) -> None:
    said = refused("compare", "diabetes", "--methods", "born_again()", "self_distilled()", "--out", tmp_path / "c")
    assert "born_again() is for networks and self_distilled() for learners" in said
    assert "leave it out" in refused("compare", *FLAGS, "--budget", "steps", "--out", tmp_path / "c")
