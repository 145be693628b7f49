"""A run of a policy from the command line: trained, tested, resumed, played and reported."""

from __future__ import annotations

import json
import os
import shutil
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

ROOT = Path(__file__).parents[2]
BRIEF = ["--steps", "300", "--episodes", "4"]


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
        (["run", "digits", "--net", "8,8"], "--net has a meaning for environments (gym:ID) alone"),
        (["run", "digits", "--sampled"], "--sampled has a meaning for environments (gym:ID) alone"),
        (["run", "digits", "--episodes", "8"], "--episodes has a meaning for environments (gym:ID) alone"),
        (["compare", "gym:CartPole-v1"], "`compare` does not serve environments"),
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
write, left = checkpoint.write, [int(sys.argv[2])]
def deadly(folder, components, **options):
    left[0] -= 1
    if left[0] < 0:
        os._exit(9)
    return write(folder, components, **options)
checkpoint.write = deadly
from selfdistill.cli import main
main(sys.argv[3:])
"""


KILLED = ["run", "gym:CartPole-v1", "--steps", "3000", "--episodes", "4", "--save-steps", "1", "--quiet", "--out"]


def _kill(folder: Path, after: int) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), str(after), *KILLED, str(folder)]
    return subprocess.run(command, env=environment, cwd=folder.parent, check=False, capture_output=True).returncode


def _final(folder: Path) -> tuple[bytes, Any]:
    record = json.loads((folder / "run.json").read_text())
    return (folder / "model" / "policy.safetensors").read_bytes(), record["result"]["test"]


def test_a_run_that_was_killed_twice_ends_bit_for_bit(tmp_path: Path) -> None:
    assert call(*KILLED, tmp_path / "whole").exit_code == 0
    for after in (1, 1):
        assert _kill(tmp_path / "cut", after) == 9
    result = call("resume", tmp_path / "cut", "--quiet")
    assert result.exit_code == 0, result.output
    assert _final(tmp_path / "cut") == _final(tmp_path / "whole")
    shutil.rmtree(tmp_path / "cut")


def test_nothing_of_gymnasium_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, selfdistill.control, selfdistill.control.task, selfdistill.experiments.task_types; "
        "assert not {'gymnasium', 'stable_baselines3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
