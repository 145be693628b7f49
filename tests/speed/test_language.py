"""`benchmarks.speed language`: its variants learn the same loss, its verdicts follow from its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.speed import language, llama_step, sdft_step
from benchmarks.speed.__main__ import main
from selfdistill.errors import RecipeError
from selfdistill.language.sampling import export
from tests.language.tiny import student

SMALL = llama_step.Sizes(50, 64, 1, 12, 2, 50)


def test_the_naive_teacher_the_online_one_and_all_that_was_kept_make_the_same_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With as many kept as there are tokens, a store leaves nothing out. The student is moved: it has to learn."""
    made: list[llama_step.Work] = []
    start = llama_step.Work.__init__

    def watched(self: llama_step.Work, sizes: llama_step.Sizes) -> None:
        start(self, sizes)
        made.append(self)

    monkeypatch.setattr(llama_step.Work, "__init__", watched)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)
    calls, gradients = llama_step.steps(SMALL), []
    for name, work in zip(calls, made, strict=True):
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in work.model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=generator))
        if name in (llama_step.NAIVE, llama_step.ONLINE, llama_step.CACHED):
            calls[name](0)
            gradients.append([p.grad for p in work.model.parameters() if p.grad is not None])
    for other in gradients[1:]:
        for mine, theirs in zip(other, gradients[0], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_sizes_and_targets_are_those_of_the_specification() -> None:
    assert llama_step.Sizes() == (32_000, 384, 6, 256, 4, 32)
    assert {llama_step.ONLINE: 1.45, llama_step.CACHED: 1.03} == llama_step.TARGETS
    assert (language.FASTER, language.MEMORY) == (1.3, 0.7)
    asked = sdft_step.task("smollm2", quick=False)
    assert (asked["batch"], asked["tokens"], asked["rank"]) == (8, 48, 16)


def test_verdicts_follow_from_the_figures() -> None:
    sides = {
        sdft_step.OURS: {"cpu": [10.0, 12.0, 10.0], "mebibytes": 1400.0},
        sdft_step.PEER: {"cpu": [14.0, 15.0, 14.0], "mebibytes": 2000.0},
        sdft_step.PEER_LEAN: {"cpu": [12.0, 12.0, 12.0], "mebibytes": 1000.0},
    }
    found = language._judged(sides)
    assert found["met"]
    assert found["against"][sdft_step.PEER] == {
        "faster": 1.4, "memory": 0.7, "at_least": 1.3, "at_most": 0.7, "met": True,
    }  # fmt: skip
    assert found["against"][sdft_step.PEER_LEAN] | {"faster": 0, "memory": 0} == {
        "faster": 0, "memory": 0, "at_least": 1.3, "at_most": 0.7, "met": False,
    }  # fmt: skip
    assert language._judged({sdft_step.OURS: sides[sdft_step.OURS]}) == {"against": {}, "met": True}


@pytest.fixture
def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step is measured on a model of two layers."""
    export(student(context=2048), tmp_path)
    asked = sdft_step.task
    monkeypatch.setattr(sdft_step, "task", lambda model, quick: asked(str(tmp_path), quick))


@pytest.mark.usefixtures("small_model")
def test_the_command_measures_our_side_alone_and_says_so() -> None:
    done = CliRunner().invoke(main, ["language", "--quick", "--json"])
    assert done.exit_code == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    side = result["sdft"]["sides"][sdft_step.OURS]
    assert len(side["cpu"]) == 3
    assert side["mebibytes"] > 0
    text = language.render(result)
    assert "--peer PYTHON" in text
    assert "the numbers mean nothing" in text
    assert "missed" in text or "met" in text


@pytest.mark.usefixtures("small_model")
def test_a_peer_that_cannot_run_is_refused_in_one_line(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no trl here' >&2\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(RecipeError, match=r"^bench language: TRL ended before its time; it last said: no trl here$"):
        sdft_step.run(3, True, lambda line: None, str(python))
    with pytest.raises(RecipeError, match="3 repeats"):
        language.run(repeats=2)


@pytest.mark.slow
def test_memory_of_both_recipes_is_that_of_processes_of_their_own() -> None:
    done = CliRunner().invoke(main, ["sdft_memory", "--quick", "--json"])
    assert done.exit_code == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["sft"]["base"] == result["sdft"]["base"] == ["bfloat16"]
    assert all(0 < result[name]["before"] <= result[name]["peak"] for name in ("sft", "sdft"))
    assert result["ratio"] == result["sdft"]["peak"] / result["sft"]["peak"]
    assert result["met"] == (result["ratio"] <= result["at_most"])
