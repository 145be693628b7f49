"""Two processes under DDP: what does not depend on who writes agrees with one process, and everybody ends alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from selfdistill.errors import DataError
from selfdistill.language.recipes import sft
from selfdistill.language.rollouts import export
from selfdistill.language.trainer import fit
from selfdistill.serialization import read_tensors
from tests.language.tiny import prompts, student
from tests.test_distributed import _torchrun
from tests.workers.spoken import CASES, train


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("two")
    _torchrun(base / "log.txt", "tests.workers.spoken", str(base), "all")
    with pytest.raises(AssertionError, match="PowerError"):
        _torchrun(base / "failed.txt", "tests.workers.spoken", str(base), "fail")
    _torchrun(base / "resumed.txt", "tests.workers.spoken", str(base), "resume")
    return base


@pytest.mark.parametrize("case", [*CASES, "cut"])
def test_all_processes_end_with_the_same_weights(two: Path, case: str) -> None:
    assert (two / case / "digest-0").read_text() == (two / case / "digest-1").read_text()


@pytest.mark.parametrize("case", ["sft", "sft-lora", "rft"])
def test_two_processes_learn_what_one_learns(two: Path, case: str, tmp_path: Path) -> None:
    """Demonstrations, and completions that are written once for all, do not depend on how prompts are spread."""
    train(tmp_path, case)
    one, both = read_tensors(tmp_path / "weights.safetensors"), read_tensors(two / case / "weights.safetensors")
    assert one.keys() == both.keys()
    start = student(CASES[case][1]).state_dict()
    assert max(float((one[n] - start[n]).abs().max()) for n in one) > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(both[name], value, rtol=0, atol=2e-5)


def test_a_run_that_was_cut_ends_as_if_it_had_not_been(two: Path) -> None:
    whole, cut = (read_tensors(two / name / "weights.safetensors") for name in ("sdft-lora", "cut"))
    assert all(cut[name].equal(value) for name, value in whole.items())


def test_the_command_trains_and_writes_once(tmp_path: Path) -> None:
    """The answers, the table and the product are the first process's; the other one writes and says nothing."""
    export(student(), tmp_path / "tiny")
    rows = [{"prompt": f"say {i}", "demonstration": f"{i}", "answer": f"{i}", "checker": "exact"} for i in range(30)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    said = _torchrun(
        tmp_path / "log.txt", "selfdistill", "run", str(tmp_path / "p.jsonl"), "--model", str(tmp_path / "tiny"),
        "--method", "sdft(max_tokens=4)", "--max-tokens", "4", "--steps", "2", "--batch-size", "6", "--device", "cpu",
        "--out", str(tmp_path / "run"), "--quiet",
    )  # fmt: skip
    assert said.count("One seed is an anecdote") == 1
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["generations"][0]["test"]
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_too_few_prompts_for_the_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.language.trainer.ranks.size", lambda: 9)
    monkeypatch.setattr("selfdistill.language.trainer.LanguageTrainer._wrap", lambda self: None)
    with pytest.raises(DataError, match="4 prompts a step are too few for 9 processes; raise --batch-size"):
        fit(student, prompts(30), sft(), device="cpu", batch_size=6, steps=1)
