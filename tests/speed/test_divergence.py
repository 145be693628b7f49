"""`benchmarks.speed divergence`: what is compared is the same divergence, and the figures are what they claim."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.speed import divergence
from benchmarks.speed.__main__ import main
from selfdistill.errors import RecipeError

SMALL = divergence.Sizes(300, 40, 8)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return divergence.run(quick=True, memory=False)


@pytest.mark.parametrize(("name", "scale"), [("KL", 1.0), ("JS", 4.0)])
def test_what_is_compared_is_one_divergence_up_to_its_scale(name: str, scale: float) -> None:
    """Ours is divided by beta (1 - beta) = 1/4."""
    found = []
    for variant in divergence.measured(name):
        problem = divergence.Problem.of(SMALL)
        loss = divergence.VARIANTS[variant](problem, name)
        problem.learnt(loss)
        times = scale if variant != divergence.OURS else 1.0
        grads = problem.student.hidden.grad, problem.student.matrix.grad
        assert grads[0] is not None
        assert grads[1] is not None
        found.append((times * loss.detach(), times * grads[0], times * grads[1]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_targets_are_those_of_the_specification(result: dict[str, Any]) -> None:
    assert {name: case["ours"]["at_most"] for name, case in result["cases"].items()} == {
        "KL": {"time": 0.85, "memory": 0.16},
        "JS": {"time": 0.5, "memory": 0.13},
    }
    assert divergence.FLAT == 0.05
    assert divergence.TOKENS == (256, 4096)
    assert divergence.Sizes() == (131_072, 1024, 256)


def test_result_survives_json_and_verdicts_follow_from_the_figures(result: dict[str, Any]) -> None:
    assert json.loads(json.dumps(result)) == result
    for name, case in result["cases"].items():
        assert list(case["variants"]) == [*divergence.measured(name), divergence.FLOOR]
        ours = case["ours"]
        assert ours["time"] == (case["variants"][divergence.OURS]["time"]["median"] <= ours["at_most"]["time"])
        assert ours["met"] == (ours["time"] and ours["memory"])
        assert case["variants"][divergence.NAIVE]["time"]["median"] == 1.0
    assert result["met"] == all(case["ours"]["met"] for case in result["cases"].values())


def test_memory_of_a_missed_target_is_said(result: dict[str, Any]) -> None:
    times = result["cases"]["KL"]["variants"]
    bare = {v: {"seconds": f["seconds"], "time": f["time"]} for v, f in times.items()}
    case = divergence._case("KL", bare, {divergence.NAIVE: 100.0, divergence.OURS: 16.5})
    assert case["variants"][divergence.OURS]["memory"] == 0.165
    assert not case["ours"]["memory"]
    assert not case["ours"]["met"]
    assert divergence._case("KL", bare, {divergence.NAIVE: 100.0, divergence.OURS: 15.9})["ours"]["memory"]
    flat = {"tokens": [64, 256], "mebibytes": [10.0, 11.0], "growth": 0.1, "target": 0.05, "met": False}
    text = divergence.render({**result, "cases": {"KL": case}, "flat": flat})
    assert "0.16 missed" in text
    assert "+10.0 % missed" in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is told by Linux")
def test_the_highest_memory_is_that_of_the_variant() -> None:
    """All logits of 512 tokens over 8,192 outputs are 16 MiB; a variant holds more than one such buffer."""
    sizes = divergence.Sizes(8192, 512, 8)
    assert 32 < divergence._in_its_own_process(divergence.NAIVE, "KL", sizes, lambda line: None) < 160


def test_the_command_prints_the_table(monkeypatch: pytest.MonkeyPatch, result: dict[str, Any]) -> None:
    monkeypatch.setattr(divergence, "run", lambda quick, progress: {**result, "quick": quick})
    shown = CliRunner().invoke(main, ["divergence", "--quick"])
    assert shown.exit_code == 0
    for word in ("KL selfdistill", "JS all logits", "products alone", "0.85", "0.50", "numbers mean nothing"):
        assert word in shown.output
    printed = CliRunner().invoke(main, ["divergence", "--json"])
    assert json.loads(printed.output)["cases"].keys() == {"KL", "JS"}


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(RecipeError, match="3 repeats"):
        divergence.run(repeats=2)
