"""A budget plans, bounds and reports; a run that it cuts hands over its best model, and resumes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.errors import CheckpointError, DataError
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.models.store import load_model
from selfdistill.training.budget import Allowance, Budget, Cost, Meter, parse_budget
from selfdistill.training.fit import Stopped
from selfdistill.training.trainer import Trainer
from tests.terminal import passed, refused

PLAIN = Request(method="plain()", steps=200, batch_size=32)


def done(request: Request, out: Path, lines: list[str] | None = None) -> dict[str, Any]:
    return Run.create(request, out).execute(warn=(lines if lines is not None else []).append)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", Budget(seconds=90.0)),
        ("1.5 h, 512MiB", Budget(seconds=5400.0, memory=2.0**29)),
        ("2e4passes|10min", Budget(seconds=600.0, passes=20000.0)),
    ],
)
def test_numbers_with_units_are_bounds(text: str, expected: Budget) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("10", "no known unit"), ("10m", "no known unit"), ("min", "no known unit"), ("", "no known unit"),
        ("10min|", "no known unit"), ("-3s", "no known unit"), ("1.2.3s", "no known unit"), ("nans", "no known unit"),
        ("0s", "bounds nothing"), ("1e999s", "bounds nothing"), ("10min|2h", "bounds the time twice"),
        ("passes", "no known unit"), ("4GiB,1MiB", "bounds the memory twice"),
    ],
)  # fmt: skip
def test_what_is_no_budget_is_refused_in_one_line_before_training(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=part):
        Run.create(Request(budget=text), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_budget_of_passes_holds_and_control_and_method_take_equal_steps(tmp_path: Path) -> None:
    lines: list[str] = []
    result = done(Request(method="elr()", steps=200, budget="9000passes"), tmp_path / "run", lines)
    assert result["steps"] == result["plain"]["steps"] == 23  # two first steps aside, 9000 / (2 * 61 rows * 3)
    assert result["budget"]["passes"] <= 9000
    assert result["budget"]["cut"] == ["23 steps in place of 200: no more fit"]
    assert lines == ["--budget 9000passes: 23 steps in place of 200: no more fit"]
    assert "cut by the budget: 23 steps in place of 200" in (tmp_path / "run/README.md").read_text()
    assert "23 steps in place of 200" in (tmp_path / "run/report.html").read_text()


def test_a_planned_run_has_the_weights_of_a_run_of_so_many_steps(tmp_path: Path) -> None:
    bounded = done(Request(method="plain()", steps=200, budget="5000passes"), tmp_path / "bounded")
    usual = done(Request(method="plain()", steps=bounded["steps"]), tmp_path / "usual")
    assert 1 < bounded["steps"] < 200
    first, second = (load_model(tmp_path / name / "model").state_dict() for name in ("bounded", "usual"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert bounded["test"] == usual["test"]


def test_a_budget_that_is_large_enough_changes_and_cuts_nothing(tmp_path: Path) -> None:
    bounded = done(Request(method="plain()", steps=5, budget="10h|1000GiB|1e12passes"), tmp_path / "a")
    usual = done(Request(method="plain()", steps=5), tmp_path / "b")
    assert bounded["budget"]["cut"] == []
    assert bounded["test"] == usual["test"]


@pytest.mark.parametrize(("budget", "part"), [("1MiB", "the process alone takes"), ("150passes", "no room for a step")])
def test_what_does_not_fit_is_refused_before_training_and_leaves_nothing(
    budget: str, part: str, tmp_path: Path
) -> None:
    line = refused("run", "digits", "--method", "plain()", "--budget", budget, "--out", tmp_path / "run")
    assert part in line
    assert not (tmp_path / "run").exists()


def meter_at(seconds: float, budget: str = "100s") -> Meter:
    meter = Meter(budget, None, lambda line: None)
    meter._earlier = seconds
    return meter


def test_generations_share_a_budget_and_the_last_ones_are_left_out() -> None:
    step = Cost(0.09, 0.0)  # 0.1 s with the margin
    allowance = meter_at(0.0).allowance(None, "method")
    assert allowance.plan(0, 2, step, 10_000, 100) == pytest.approx(499, abs=1)
    allowance = meter_at(0.0).allowance(None, "method")
    assert allowance.plan(0, 50, step, 10_000, 100) == pytest.approx(110, abs=2)  # nine of an epoch or more
    allowance = meter_at(99.0).allowance(None, "method")
    assert allowance.plan(3, 5, step, 10_000, 100) == 0


def test_what_follows_has_its_share_reserved() -> None:
    meter = meter_at(0.0)
    meter.trainings, meter.beside = 4, Cost(0.09, 0.0)
    allowance = meter.allowance(None, "method")
    assert allowance.until.seconds == pytest.approx(25, abs=0.1)
    assert allowance.plan(0, 1, Cost(0.09, 0.0), 10_000, 10) == pytest.approx(125, abs=2)


def test_the_guard_ends_a_training_for_time_passes_and_memory() -> None:
    allowance = meter_at(0.0).allowance(None, "m")
    assert allowance.over(10.0, 1, 10.0) is None
    allowance.meter._earlier = 101.0
    assert allowance.over(10.0, 1, 10.0) == "the time is over"
    assert meter_at(0.0, "100passes").allowance(None, "m").over(95.0, 1, 10.0) == "the passes are used up"
    meter = meter_at(0.0, "100GiB")
    meter.highest = 101 * 2.0**30
    assert "the memory has grown" in str(meter.allowance(None, "m").over(1.0, 1, 1.0))


def test_a_guarded_run_hands_over_its_model_and_is_the_same_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def over(self: Allowance, passes: float, steps: int, step: float) -> str | None:
        self.spend(passes, due=False)
        return "the time is over" if steps >= 7 and not self.meter.follows else None

    monkeypatch.setattr(Allowance, "over", over)
    lines: list[str] = []
    request = Request(method="born_again()", steps=20, budget="1h")
    result = done(request, tmp_path / "run", lines)
    assert [len(result["generations"]), result["steps"], result["plain"]["steps"]] == [1, 7, 7]
    assert lines == ["--budget 1h: 7 steps in place of 20: the time is over"]

    train = Trainer._train_generation

    def killed(self: Trainer, stop: Any, progress: Any) -> bool:
        if self.allowance and self.allowance.meter.follows:  # the method has been cut, the control begins
            raise Stopped("killed")
        return train(self, stop, progress)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_generation", killed)
        with pytest.raises(Stopped):
            done(request, tmp_path / "again", [])
    saved = json.loads((tmp_path / "again/budget.json").read_text())
    saved["seconds"] += 50.0  # spent before the kill
    (tmp_path / "again/budget.json").write_text(json.dumps(saved))
    again = done(request, tmp_path / "again", [])
    assert again["test"] == result["test"]
    assert again["budget"]["seconds"] > 50.0
    assert again["budget"]["passes"] == result["budget"]["passes"]
    assert again["budget"]["cut"] == result["budget"]["cut"]


def test_another_budget_for_a_run_that_was_begun_is_refused_in_one_line(tmp_path: Path) -> None:
    done(Request(method="plain()", steps=2, budget="1h"), tmp_path / "run")
    line = refused("run", "digits", "--method", "plain()", "--steps", 2, "--budget", "2h", "--out", tmp_path / "run")
    assert "budget '1h', now '2h'" in line


@pytest.mark.parametrize("text", ["{", "[]", '{"seconds": "x"}', '{"seconds": NaN}'])
def test_a_damaged_record_of_the_budget_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "budget.json").write_text(text)
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        Meter("1h", tmp_path)


def test_folds_share_the_budget(tmp_path: Path) -> None:
    request = Request(method="born_again()", labels=60, audit_folds=2, steps=500, budget="30000passes")
    result = done(request, tmp_path / "run")
    assert result["budget"]["passes"] <= 30000
    assert result["budget"]["cut"]
    assert math.isfinite(result["test"]["accuracy"])


def test_several_bounds_may_be_given(tmp_path: Path) -> None:
    passed(
        "run", "digits", "--method", "plain()", "--steps", 2, "--budget", "1h", "--budget", "9000passes",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert json.loads((tmp_path / "run/run.json").read_text())["request"]["budget"] == "1h|9000passes"


def test_every_task_of_a_stream_is_learnt_and_naive_training_takes_its_steps(tmp_path: Path) -> None:
    result = done(Request(tasks=5, budget="40000passes"), tmp_path / "run")
    assert len(result["generations"]) == len(result["stream"]["naive"]["matrix"]) == 5
    assert result["budget"]["passes"] <= 40000
    saved = json.loads((tmp_path / "run/budget.json").read_text())["steps"]
    assert min(saved.values()) >= 1
