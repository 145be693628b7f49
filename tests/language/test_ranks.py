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
from tests.workers.spoken import CASES, CUT, ENGINES, train

FULL = ("sdft", "sdpo", "opsd", "spin")  # cases whose teachers have all weights, which are not those of an adapter


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("two")
    export(student(), base / "tiny")
    rows = [{"prompt": f"say {i}", "demonstration": f"{i}", "answer": f"{i}", "checker": "exact"} for i in range(30)]
    (base / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for part in ("first", "second"):
        _torchrun(base / f"{part}.txt", "tests.workers.spoken", str(base), part)
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
@pytest.mark.parametrize("case", [*CASES, *(f"{case}-cut" for case in CUT)])
def test_all_processes_end_with_the_same_weights(two: Path, case: str, engine: str) -> None:
    place = two / engine / case
    assert (place / "digest-0").read_text() == (place / "digest-1").read_text()


@pytest.mark.parametrize("what", ["held", "taught"])
@pytest.mark.parametrize("case", [*CASES, *(f"{case}-cut" for case in CUT)])
def test_processes_share_what_learns_and_what_teaches_under_fsdp_alone(two: Path, case: str, what: str) -> None:
    each, parts = ([int((two / engine / case / f"{what}-{i}").read_text()) for i in range(2)] for engine in ENGINES)
    assert each[0] == each[1] == sum(parts)
    if what == "held" or case.removesuffix("-cut") in FULL:  # an adapter's teachers are in the layers of the model
        assert 0 < max(parts) < 0.51 * sum(parts)
    else:
        assert sum(parts) == 0


@pytest.mark.parametrize("case", ["sft", "sft-lora", "rft", "spin"])
def test_two_processes_learn_what_one_learns(two: Path, case: str, tmp_path: Path) -> None:
    """Demonstrations, and completions that are written once for all, do not depend on how prompts are spread."""
    train(tmp_path, case)
    one = read_tensors(tmp_path / "weights.safetensors")
    assert moved(one, case)
    for engine in ENGINES:
        close(read_tensors(two / engine / case / "weights.safetensors"), one)


@pytest.mark.parametrize("case", ["sdft", "sdft-lora", "sdpo", "opsd", "opsd-lora", "spin", "spin-lora"])
def test_shards_learn_what_copies_learn(two: Path, case: str) -> None:
    """Averages, adapters switched off and answers written on the way are of the weights in one piece."""
    ddp, fsdp = (read_tensors(two / engine / case / "weights.safetensors") for engine in ENGINES)
    assert moved(ddp, case)
    close(fsdp, ddp)


@pytest.mark.parametrize("case", CUT)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_that_was_cut_ends_as_if_it_had_not_been(two: Path, engine: str, case: str) -> None:
    whole, cut = (read_tensors(two / engine / name / "weights.safetensors") for name in (case, f"{case}-cut"))
    assert all(cut[name].equal(value) for name, value in whole.items())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_trains_and_writes_once(two: Path, engine: str) -> None:
    """The answers, the table and the product are the first process's; the other one writes and says nothing."""
    assert (two / "second.txt").read_text().count("One seed proves little") == len(ENGINES)
    place = two / engine / "command"
    result = json.loads((place / "run.json").read_text())["result"]
    assert result["generations"][0]["test"]
    product = AutoModelForCausalLM.from_pretrained(place / "model").state_dict()
    learnt = read_tensors(place / "generations" / "0-final.safetensors")
    assert all(product[name.removeprefix("lm.")].equal(value) for name, value in learnt.items())
    assert moved(learnt, "sft")


def test_too_few_prompts_for_the_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfdistill.language.trainer.distributed.size", lambda: 9)
    monkeypatch.setattr("selfdistill.language.trainer.distributed.rank", lambda: 0)
    monkeypatch.setattr("selfdistill.language.trainer.LanguageTask.wrap", lambda self, state: state.model)
    with pytest.raises(DataError, match="4 prompts a step are too few for 9 processes; raise --batch-size"):
        fit(student, prompts(30), sft(), device="cpu", batch_size=6, steps=1)
