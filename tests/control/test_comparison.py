"""Comparisons of policies: their jobs, their controls, and the verdicts on returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO

from selfdistill.control import SelfDistil, kickstart, policy_distillation, restarted, self_imitation
from selfdistill.control.comparison import PolicyDesign, extra_steps, train_job
from selfdistill.control.recipes import CONTINUED, MATCHED, RESTARTED, PolicyMethod
from selfdistill.errors import DataError, RecipeError
from selfdistill.evaluation.statistics import interquartile_mean
from selfdistill.experiments.compare.verdicts import judge
from selfdistill.io.run_record import Request
from selfdistill.training.comparison import ComparisonSettings

STEPS = 256


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "teacher.zip"
    PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, seed=3, device="cpu").save(path)
    return str(path)


@pytest.mark.parametrize("method", [kickstart(steps=7), policy_distillation(steps=3), self_imitation(), restarted()])
def test_the_planned_extra_steps_are_those_that_are_taken(method: PolicyMethod) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    teacher = PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu") if method.needs_teacher else None
    callback = SelfDistil(method, teacher)
    model.learn(320, callback=callback)
    assert callback.extra_steps == extra_steps(method, 10)


def test_jobs_have_equal_environment_steps_and_one_control_has_the_gradient_steps(teacher: str, tmp_path: Path) -> None:
    method = f"kickstart({teacher!r}, steps=40, release=1.0)"
    request = Request("gym:CartPole-v1", steps=2048, episodes=2)
    settings = ComparisonSettings((method,), (0, 1, 2), "steps")
    design = PolicyDesign.load(PolicyDesign.shared(request, settings), settings)
    design.check()
    assert design.control(print)
    steps, jobs = design.planned({})
    assert steps == 2048
    assert [job.name for job in jobs] == [method, RESTARTED, MATCHED, CONTINUED]
    assert {job.steps for job in jobs} == {2048}
    # 2 rollouts of 4 batches in 10 epochs are 80 steps, and the method takes 20 + 0 more: 13 epochs are 104
    assert [job.count for job in jobs] == [1, 1, 13, 1]


def test_a_job_is_trained_and_scored(teacher: str, tmp_path: Path) -> None:
    request = Request("gym:CartPole-v1", steps=STEPS, episodes=2)
    settings = ComparisonSettings((f"kickstart({teacher!r}, steps=2)",), (0, 1, 2), "steps")
    jobs = PolicyDesign.load(request, settings).planned({})[1]
    rows: dict[str, Any] = {}
    for job in jobs:
        record = train_job(job, request, tmp_path / job.key)
        rows |= record["rows"]
    assert {row["steps"] for row in rows.values()} == {STEPS}
    assert all(row["metrics"]["return"] >= 1 and row["audit"]["return"] >= 1 for row in rows.values())
    assert rows[RESTARTED]["with_teacher_training"] is None
    assert [round(point["step"]) for point in rows[RESTARTED]["curve"]] == [STEPS]


def test_other_budgets_and_controls_among_the_methods_are_refused() -> None:
    request = Request("gym:CartPole-v1", steps=STEPS)
    with pytest.raises(DataError, match="--match of policies is steps"):
        PolicyDesign.shared(request, ComparisonSettings(("self_imitation()",), (0, 1, 2), "passes"))
    with pytest.raises(RecipeError, match=r"restarted\(\) is a control"):
        PolicyDesign.shared(request, ComparisonSettings(("restarted()",), (0, 1, 2), "steps"))


def test_returns_are_judged_and_summarised() -> None:
    returns = {"method": [10.0, 20.0, 30.0, 40.0], RESTARTED: [1.0, 2.0, 3.0, 4.0]}
    row = {"passes": {"total": 1.0}, "with_teacher_training": None, "steps": 1, "generations": 1, "decisions": None}
    cells = {
        name: {
            seed: row | {"curve": [{"step": 1, "score": v, "generation": 0}], "audit": {"return": v}}
            | {"metrics": {"return": v, "updates": 1.0, "teacher_steps": 0.0}}
            for seed, v in enumerate(values)
        }
        for name, values in returns.items()
    }  # fmt: skip
    result = judge(cells, ["method"], task="control", plain=RESTARTED)
    (best,) = [one for one in result["rows"] if one["name"] == "method"]
    assert best["against"]["plain"]["return"]["difference"] == pytest.approx(22.5)
    assert best["robust"]["iqm"] == interquartile_mean(returns["method"]) == 25.0
    assert best["robust"]["improvement"] == 1.0
    assert result["best_control"]["name"] == RESTARTED
    assert best["steps_to_plain"] == 1


def test_a_teacher_of_the_command_goes_on_in_its_control_and_teaches_no_other(teacher: str, tmp_path: Path) -> None:
    request = Request("gym:CartPole-v1", steps=STEPS, episodes=2, teacher=teacher.removesuffix(".zip"))
    settings = ComparisonSettings(("kickstart(steps=2)",), (0, 1, 2), "steps")
    jobs = PolicyDesign.load(request, settings).planned({})[1]
    assert [job.name for job in jobs] == ["kickstart(steps=2)", RESTARTED, CONTINUED]
    rows = [train_job(job, request, tmp_path / job.key)["rows"][job.name] for job in jobs]
    assert [row["with_teacher_training"] is None for row in rows] == [False, True, False]
