"""Two processes under DDP and FSDP2: what does not depend on who writes agrees with one process, and all end alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfdistill.errors import DataError
from selfdistill.io.tensors import read_tensors
from selfdistill.language.recipes import sft
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from tests.language.tiny import prompts, student
from tests.training.test_distributed import _torchrun
from tests.workers.spoken import CASES, ENGINES, train


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("two")
    for what in ("all", "fail", "resume"):
        _torchrun(base / f"{what}.txt", "tests.workers.spoken", str(base), what)
    return base


def moved(weights: dict[str, Tensor], case: str) -> bool:
    """Is that what training has made, and not what it began with?"""
    start = student(CASES[case][1]).state_dict()
    return max(float((value - start[name]).abs().max()) for name, value in weights.items()) > 1e-3


def close(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", [*CASES, "cut"])
def test_all_processes_end_with_the_same_weights(two: Path, case: str, engine: str) -> None:
    place = two / engine / case
    assert (place / "digest-0").read_text() == (place / "digest-1").read_text()


@pytest.mark.parametrize("case", [*CASES, "cut"])
def test_processes_share_what_learns_under_fsdp_alone(two: Path, case: str) -> None:
    each, parts = ([int((two / engine / case / f"held-{i}").read_text()) for i in range(2)] for engine in ENGINES)
    assert each[0] == each[1] == sum(parts)
    assert max(parts) < 0.51 * sum(parts)


@pytest.mark.parametrize("case", ["sft", "sft-lora", "rft"])
def test_two_processes_learn_what_one_learns(two: Path, case: str, tmp_path: Path) -> None:
    """Demonstrations, and completions that are written once for all, do not depend on how prompts are spread."""
    train(tmp_path, case)
    one = read_tensors(tmp_path / "weights.safetensors")
    assert moved(one, case)
    for engine in ENGINES:
        close(read_tensors(two / engine / case / "weights.safetensors"), one)


@pytest.mark.parametrize("case", ["sdft", "sdft-lora", "sdpo", "opsd-lora", "spin-lora"])
def test_shards_learn_what_copies_learn(two: Path, case: str) -> None:
    """Averages, adapters switched off and answers written on the way are of the weights in one piece."""
    ddp, fsdp = (read_tensors(two / engine / case / "weights.safetensors") for engine in ENGINES)
    assert moved(ddp, case)
    close(fsdp, ddp)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_cut_ends_as_if_it_had_not_been(two: Path, engine: str) -> None:
    whole, cut = (read_tensors(two / engine / name / "weights.safetensors") for name in ("sdft-lora", "cut"))
    assert all(cut[name].equal(value) for name, value in whole.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_trains_and_writes_once(tmp_path: Path, engine: str) -> None:
    """The answers, the table and the product are the first process's; the other one writes and says nothing."""
    export(student(), tmp_path / "tiny")
    rows = [{"prompt": f"say {i}", "demonstration": f"{i}", "answer": f"{i}", "checker": "exact"} for i in range(30)]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    _torchrun(
        tmp_path / "log.txt", "selfdistill", "run", str(tmp_path / "p.jsonl"), "--model", str(tmp_path / "tiny"),
        "--method", "sdft(max_tokens=4)", "--max-tokens", "4", "--steps", "2", "--batch-size", "6", "--device", "cpu",
        "--out", str(tmp_path / "run"), "--quiet", "--parallel", engine, "--audit", "off", "--lr", "0.01",
    )  # fmt: skip
    assert (tmp_path / "log.txt").read_text().count("One seed proves little") == 1
    result = json.loads((tmp_path / "run" / "run.json").read_text())["result"]
    assert result["generations"][0]["test"]
    product = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").state_dict()
    learnt = read_tensors(tmp_path / "run" / "generations" / "0-final.safetensors")
    assert all(product[name.removeprefix("lm.")].equal(value) for name, value in learnt.items())
    assert moved(learnt, "sft")


def test_too_few_prompts_for_the_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.language.trainer.distributed.size", lambda: 9)
    monkeypatch.setattr("selfdistill.language.trainer.distributed.rank", lambda: 0)
    monkeypatch.setattr("selfdistill.language.trainer.LanguageTask.wrap", lambda self, state: state.model)
    with pytest.raises(DataError, match="4 prompts a step are too few for 9 processes; raise --batch-size"):
        fit(student, prompts(30), sft(), device="cpu", batch_size=6, steps=1)
