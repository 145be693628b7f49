"""A run of a policy from the command line: trained, tested, resumed, played and reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from selfdistill.cli import main
from selfdistill.errors import DataError
from selfdistill.experiments.run import Run
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request

pytest.importorskip("stable_baselines3")
import gymnasium as gym

from selfdistill.control.store import load_policy, to_sb3

FRAMES = "gym:selfdistill.control.environments:CartPoleFrames-v0"

ROOT = Path(__file__).parents[2]
BRIEF = ["--steps", "300", "--episodes", "4"]
TWO = ["--steps", "2048", "--episodes", "4", "--net", "8,8"]  # rollouts, between which there are extra steps


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "r"
    result = call("run", "gym:CartPole-v1", *BRIEF, "--net", "8,8", "--out", out, "--quiet")
    assert result.exit_code == 0, result.output
    return out


def test_a_run_says_its_return_and_what_could_be_taught(finished: Path) -> None:
    again = call("run", "gym:CartPole-v1", *BRIEF, "--net", "8,8", "--out", finished, "--quiet")
    assert "test split (4 episodes" in again.output
    assert "Nothing taught this policy but its reward" in " ".join(again.output.split())
    readme, page = (finished / "README.md").read_text(), (finished / "report.html").read_text()
    assert "PPO, MlpPolicy of 8,8" in readme
    assert "training return by environment step" in page
    assert "data:image/png;base64," in page or "No pictures were drawn" in page
    assert "environment steps" in page
    assert "MlpPolicy" in (finished / "model" / "README.md").read_text()
    assert not list(finished.rglob("*.zip"))


def test_a_finished_policy_plays_episodes(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    result = call("predict", finished, "--episodes", 1, "--video", tmp_path / "v", "--out", tmp_path / "e.csv")
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "e.csv").read_text().splitlines()
    assert lines[0] == "episode,seed,return,length"
    assert len(lines) == 2
    assert [path.name for path in (tmp_path / "v").iterdir()] == ["episode-1.gif"]
    assert (tmp_path / "v" / "episode-1.gif").read_bytes()[:4] == b"GIF8"
    assert "mean return" in result.output


def test_the_vitals_of_a_policy(finished: Path) -> None:
    assert "dormant units" in call("vitals", finished).output
    assert len(json.loads(call("vitals", finished, "--json").output)["rollouts"]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "gym:CartPole-v1", "--target", "y"], "--target has no meaning for an environment"),
        (["run", "gym:CartPole-v1", "--label-noise", "0.1"], "--label-noise has no meaning for an environment"),
        (["run", "gym:CartPole-v1", "--model", "mlp"], "--model has no meaning for an environment; give --net"),
        (["run", "gym:CartPole-v1", "--epochs", "2"], "--epochs has no meaning for an environment; give --steps"),
        (["run", "gym:CartPole-v1", "--weight-decay", "0.1"], "--weight-decay has no meaning for an environment"),
        (["run", "gym:CartPole-v1", "--memory", "3"], "--memory has no meaning for an environment"),
        (["run", "gym:CartPole-v1", "--net", "8,x"], "--net is sizes of hidden layers"),
        (["run", "gym:CartPole-v1", "--net", "0"], "--net is sizes of hidden layers"),
        (["run", "gym:CartPole-v1", "--engine", "dqn"], "'dqn' is not one of 'ppo', 'a2c'"),
        (["run", "gym:CartPole-v1", "--device", "nowhere"], "cannot be used"),
        (["run", "gym:Cartpole-v1"], "nearest: CartPole-v"),
        (["run", "gym:CartPole-v1", "--method", "kickstart()"], "kickstart() needs a teacher: --teacher ZIP|RUN"),
        (["run", "gym:CartPole-v1", "--method", "elr()"], "elr() is no recipe for policies"),
        (["run", "gym:CartPole-v1", "--method", "kickstrt()"], "nearest: kickstart"),
        (["run", "gym:CartPole-v1", "--teacher", ""], "holds no policy"),
        (["run", "gym:CartPole-v1", "--sees", ""], "has no key ''"),
        (["run", "gym:CartPole-v1", "--teacher", "nowhere.zip"], "nowhere.zip does not exist"),
        (["run", "gym:CartPole-v1", "--method", "self_imitation()", "--teacher", "a"], "leave --teacher out"),
        (["run", "gym:CartPole-v1", "--method", "kickstart('a')", "--teacher", "b"], "name two teachers"),
        (["run", "gym:CartPole-v1", "--method", "restarted(matched=True)"], "is a control beside a method"),
        (["run", FRAMES, "--method", "privileged(sees='frames')", "--sees", "state"], "name two views"),
        (["run", "gym:CartPole-v1", "--method", "privileged()"], "has no key 'state'"),
        (["run", FRAMES, "--sees", "nothing"], "has no key 'nothing'"),
        (["run", "digits", "--method", "kickstart()"], "unknown method 'kickstart'"),
        (["run", "digits", "--net", "8,8"], "--net has a meaning for environments (gym:ID) alone"),
        (["run", "digits", "--sampled"], "--sampled has a meaning for environments (gym:ID) alone"),
        (["run", "digits", "--episodes", "8"], "--episodes has a meaning for environments (gym:ID) alone"),
        (["compare", "gym:CartPole-v1", "--budget", "passes", "--seeds", "3"], "--match of policies is steps"),
    ],
)
def test_what_means_nothing_is_refused_before_training(arguments: list[str], words: str, tmp_path: Path) -> None:
    out = tmp_path / "r"
    result = call(*arguments, "--out", out)
    assert result.exit_code == 2, result.output
    assert words in result.output
    assert result.output.strip().count("\n") == 0
    assert not out.exists()


def test_a_policy_and_other_models_have_other_answers(finished: Path, tmp_path: Path) -> None:
    assert "leave DATA out and give --episodes" in call("predict", finished, "x.csv").output
    other = Run.create(Request("iris", method="plain()", steps=2, control=False, model="mlp"), tmp_path / "i")
    other.execute(warn=lambda line: None)
    assert "give DATA to predict" in call("predict", tmp_path / "i").output
    assert "are for policies" in call("predict", tmp_path / "i", "iris", "--episodes", 3).output


def test_a_teacher_that_sees_everything_is_trained_first_and_controls_stand_beside(tmp_path: Path) -> None:
    result = call("run", FRAMES, "--method", "privileged(release=1.0)", *TWO, "--out", tmp_path / "r", "--json")
    assert result.exit_code == 0, result.output
    assert "a teacher that sees state is trained first" in result.stderr
    outcome = json.loads(result.stdout.splitlines()[-1])
    arms = {arm["name"]: arm["scores"] for arm in outcome["control"]["arms"]}
    assert list(arms) == ["privileged(release=1.0)", "restarted()", "restarted(matched=True)", "its teacher"]
    own, matched = arms["privileged(release=1.0)"], arms["restarted(matched=True)"]
    assert own["teacher_steps"] == own["env_steps"] == arms["restarted()"]["env_steps"] == 2048
    assert arms["restarted()"]["updates"] < own["updates"] <= matched["updates"]
    assert set(outcome["against"]) == {"restarted()", "restarted(matched=True)"}
    assert "teacher's steps" in (tmp_path / "r" / "README.md").read_text()
    page = (tmp_path / "r" / "report.html").read_text()
    assert "restarted(matched=True)" in page
    assert "Privileged teacher" in page
    hidden = load_policy(tmp_path / "r")
    assert list(hidden.observation_space.spaces) == ["frames"]  # type: ignore[attr-defined]


def test_a_run_folder_and_a_zip_kickstart_and_go_on(finished: Path, tmp_path: Path) -> None:
    options = ["--method", "kickstart(release=1.0)", "--teacher", finished, "--out", tmp_path / "r", "--json"]
    result = call("run", "gym:CartPole-v1", *TWO, *options)
    assert result.exit_code == 0, result.output
    arms = {arm["name"]: arm["scores"] for arm in json.loads(result.stdout.splitlines()[-1])["control"]["arms"]}
    assert list(arms) == ["kickstart(release=1.0)", "restarted()", "restarted(matched=True)", "continued()"]
    assert arms["kickstart(release=1.0)"]["teacher_steps"] == arms["continued()"]["teacher_steps"] == 304
    assert arms["continued()"]["return"] != arms["restarted()"]["return"]
    to_sb3(finished, gym.make("CartPole-v1")).save(tmp_path / "teacher.zip")
    method = f'policy_distillation("{tmp_path / "teacher.zip"}")'
    result = call(
        "run", "gym:CartPole-v1", *BRIEF, "--method", method, "--no-control", "--out", tmp_path / "z", "--json"
    )
    assert result.exit_code == 0, result.output
    (arm,) = json.loads(result.stdout.splitlines()[-1])["control"]["arms"]
    assert arm["scores"]["teacher_steps"] == 0  # a fresh one


def test_a_teacher_of_another_network_does_not_go_on(finished: Path, tmp_path: Path) -> None:
    method = f'continued("{finished}")'
    result = call("run", "gym:CartPole-v1", *BRIEF, "--method", method, "--net", "16,16", "--out", tmp_path / "r")
    assert result.exit_code == 2, result.output
    assert "goes on only with its own network, observations and normaliser" in result.output
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("method", ["born_again_policy()", "policy_peers(2)", "iter_policy()", "self_imitation()"])
def test_recipes_without_a_teacher_run(method: str, tmp_path: Path) -> None:
    result = call("run", "gym:CartPole-v1", "--steps", 600, "--episodes", 4, "--method", method, "--no-control",
                  "--quiet", "--out", tmp_path / "r")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert call("vitals", tmp_path / "r").exit_code == 0
    assert "training return" in (tmp_path / "r" / "report.html").read_text()


def test_other_commands_refuse_a_policy_by_name(finished: Path) -> None:
    for command in (
        ["update", finished, "digits"],
        ["adapt", finished, "digits"],
        ["run", "digits", "--init", finished],
    ):
        result = call(*command)
        assert result.exit_code == 2
        assert "holds a policy, which environments alone have a use for" in result.output
    assert "which has no labels" in call("label-errors", finished).output
    assert "--exit is for DATA" in call("predict", finished, "--exit", 1).output


def test_a_missing_package_and_several_processes_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="trained by one process; start it without torchrun"):
        TASK_TYPES.of_request(Request("gym:CartPole-v1")).prepare(Request("gym:CartPole-v1"))
    monkeypatch.setattr("selfdistill.control.task.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"need the package gymnasium; install it by pip install"):
        TASK_TYPES.of_request(Request("gym:CartPole-v1")).prepare(Request("gym:CartPole-v1"))


def test_what_a_strangers_method_names_is_not_imported(finished: Path, tmp_path: Path) -> None:
    task = TASK_TYPES.of_record({"kind": "control"})
    method = 'privileged(sees="tests.control.worlds:Doubled")'
    for request in (Request("gym:CartPole-v1", method=method), Request("gym:tests.control.worlds:Plain-v0")):
        assert [place for place, _ in task.code(request)][:1] == ["tests.control.worlds"]
    assert not task.code(Request(FRAMES, sees="state"))


def test_a_teachers_view_may_be_a_wrapper(tmp_path: Path) -> None:
    options = ["--sees", "tests.control.worlds:Doubled", "--net", "8", "--no-control", "--quiet"]
    result = call("run", "gym:CartPole-v1", *BRIEF, *options, "--out", tmp_path / "r")
    assert result.exit_code == 0, result.output
    assert to_sb3(tmp_path / "r", gym.make("CartPole-v1")).policy.mlp_extractor.policy_net[0].in_features == 4
    assert str(load_policy(tmp_path / "r").observation_space).startswith("Dict('observation'")


@pytest.mark.parametrize("data", ["gym:FrozenLake-v1", "gym:tests.control.worlds:Image-v0", "gym:Pendulum-v1"])
def test_other_spaces_run(data: str, tmp_path: Path) -> None:
    result = call(
        "run", data, "--steps", 1, "--episodes", 2, "--engine", "a2c", "--sampled", "--quiet", "--out", tmp_path / "r"
    )
    assert result.exit_code == 0, result.output
    assert "sampled actions" in " ".join(result.output.split())


def test_requests_without_the_new_fields_are_as_before() -> None:
    new = {"net", "sees", "teacher", "episodes", "engine", "deployment"}
    assert not new & set(Request("digits").to_json())
    request = Request("gym:CartPole-v1", net="8,8", episodes=4, deployment="sampled")
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    with pytest.raises(DataError, match="deployment is greedy or sampled"):
        TASK_TYPES.of_request(request).prepare(Request("gym:CartPole-v1", deployment="wild"))


def test_an_environment_of_another_package_is_trusted_before_a_foreign_run_is_resumed(tmp_path: Path) -> None:
    data = "gym:tests.control.worlds:Plain-v0"
    assert call("run", data, *BRIEF, "--out", tmp_path / "r", "--quiet").exit_code == 0
    refused = call("predict", tmp_path / "r", "--episodes", 2)
    assert refused.exit_code == 2
    assert "names tests.control.worlds:Plain-v0, code that is not part of selfdistill" in refused.output
    assert call("predict", tmp_path / "r", "--episodes", 2, "--trust-code").exit_code == 0
    record = json.loads((tmp_path / "r" / "run.json").read_text())
    assert record["data"]["name"] == data


SCRIPT = """
import os, sys
from selfdistill.io import checkpoint
write, left = checkpoint.write, [int(sys.argv[1])]
def deadly(folder, components, **options):
    left[0] -= 1
    if left[0] < 0:
        os._exit(9)
    return write(folder, components, **options)
checkpoint.write = deadly
from selfdistill.cli import main
main(sys.argv[2:])
"""
KILLED = ["run", FRAMES, "--sees", "state", "--net", "8", "--episodes", "4", "--save-steps", "1", "--quiet", "--steps"]


def _kill(folder: Path, after: int, steps: int) -> int:
    """Run until so many checkpoints were written; the exit code."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(after), *KILLED, str(steps), "--out", str(folder)]
    return subprocess.run(command, env=environment, cwd=folder.parent, check=False, capture_output=True).returncode


def _final(folder: Path) -> tuple[bytes, Any]:
    result = json.loads((folder / "run.json").read_text())["result"]
    return (folder / "model" / "policy.safetensors").read_bytes(), result["control"]["arms"]


def test_a_run_that_was_killed_twice_ends_bit_for_bit(tmp_path: Path) -> None:
    assert call(*KILLED, 2048, "--out", tmp_path / "whole").exit_code == 0
    for after in (1, 3):  # in the teacher's training, and in the method's
        assert _kill(tmp_path / "cut", after, 2048) == 9
    result = call("resume", tmp_path / "cut", "--quiet")
    assert result.exit_code == 0, result.output
    assert _final(tmp_path / "cut") == _final(tmp_path / "whole")


@pytest.mark.slow
def test_a_run_that_was_killed_at_every_checkpoint_ends_bit_for_bit(tmp_path: Path) -> None:
    assert call(*KILLED, 6144, "--out", tmp_path / "whole").exit_code == 0
    kills = 0
    while _kill(tmp_path / "cut", 1, 6144) == 9:
        kills += 1
    assert kills >= 20
    assert _final(tmp_path / "cut") == _final(tmp_path / "whole")


def test_nothing_of_gymnasium_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, selfdistill.control, selfdistill.control.task, selfdistill.experiments.task_types; "
        "assert not {'gymnasium', 'stable_baselines3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_auto_of_policies_is_chosen_by_paired_audit_episodes(tmp_path: Path) -> None:
    line = [
        "run",
        "gym:CartPole-v1",
        *BRIEF,
        "--net",
        "4",
        "--method",
        "auto(most=2)",
        "--out",
        tmp_path / "r",
        "--json",
    ]
    result = call(*line)
    assert result.exit_code == 0, result.output
    assert "auto(): 2 trainings of" in result.stderr
    record = json.loads(result.stdout)
    tried = record["auto"]["tried"]
    assert [trial["method"] for trial in tried] == ["restarted()", "self_imitation()"]
    best = max(tried, key=lambda trial: trial["score"])
    assert (best["chosen"], record["method"]) == (True, best["method"])
    assert (tmp_path / "r" / record["control"]["arms"][0]["log"]).exists()
    refused = call("compare", "gym:CartPole-v1", "--methods", "auto()", "--seeds", 3, *BRIEF)
    assert refused.exit_code == 2
    assert "give its candidates as --methods" in refused.stderr


def test_a_budget_takes_steps_of_the_environment_and_holds(tmp_path: Path) -> None:
    out = tmp_path / "r"
    result = call(
        "run", "gym:CartPole-v1", "--steps", 9000, "--episodes", 2, "--net", "8,8", "--budget", "150000passes",
        "--out", out, "--quiet",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((out / "run.json").read_text())["result"]
    assert found["steps"] < 9000
    assert found["budget"]["passes"] <= 150000
    assert f"cut by the budget: {found['steps']:,} steps of the environment in place of 9,000" in result.output
    refused = call("run", "gym:CartPole-v1", "--budget", "100passes", "--out", tmp_path / "n")
    assert refused.exit_code == 2
    assert "no room for a rollout" in refused.output
