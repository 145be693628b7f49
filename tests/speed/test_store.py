"""`benchmarks.speed store`: its teacher, its errors and its verdicts are what they claim."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from benchmarks.speed import store
from benchmarks.speed.__main__ import main
from selfdistill.errors import RecipeError


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return store.run(quick=True)


def test_targets_and_sizes_are_those_of_the_specification():
    assert store.TARGETS == {"bytes": 134.0, "speed": 5e6, "error": 0.06, "step": 1.05}
    assert store.Sizes()[:2] == (131_072, 32)


@pytest.mark.parametrize("entropy", [0.5, 3.0, 6.0])
def test_the_teachers_probabilities_fall_like_a_power_and_have_the_entropy(entropy):
    logs = store.zipf(1000, entropy)
    assert float(logs.exp().sum()) == pytest.approx(1.0)
    assert float(-(logs.exp() * logs).sum()) == pytest.approx(entropy, abs=1e-6)
    s = (logs[0] - logs[1]) / torch.tensor(2.0).log()
    assert float((logs[0] - logs[99]) / torch.tensor(100.0).log()) == pytest.approx(float(s), rel=1e-4)


def test_errors_are_those_of_the_definition():
    """One token, a student without noise is the teacher, and an even rest is all that differs."""
    sizes = store.Sizes(50, 8)
    found = store.errors(sizes, 1.0, tokens=1)
    logs = store.zipf(50, store.ENTROPY)
    q = logs.exp()
    p = torch.softmax(logs + torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64), 0)
    even = q.clone()
    even[8:] = q[8:].mean()
    bucket = torch.cat([q[:8], q[8:].sum() * p[8:] / p[8:].sum()])
    cut = torch.cat([q[:8] / q[:8].sum(), torch.zeros(42, dtype=torch.float64)])
    size = float((p - q).norm())
    assert found["gradient"] == pytest.approx(size, abs=1e-4)
    for name, target in (("even rest", even), ("one bucket", bucket), ("renormalised", cut)):
        assert found[name] == pytest.approx(float((target - q).norm()) / size, abs=2e-3), name


def test_result_survives_json_and_verdicts_follow_from_the_figures(result):
    assert json.loads(json.dumps(result)) == result
    verdicts, targets = result["verdicts"], result["targets"]
    assert verdicts["bytes"] == (result["bytes"] <= targets["bytes"])
    assert verdicts["speed"] == (result["speed"]["2 windows"]["median"] >= targets["speed"])
    assert verdicts["error"] == (result["errors"][0]["even rest"] <= targets["error"])
    assert verdicts["step"] == (result["step"][store.DISK]["median"] <= targets["step"])
    assert result["met"] == all(verdicts.values())
    assert result["bytes"] > 130  # with headers and index


def test_the_command_prints_the_tables_and_a_missed_target_is_said(monkeypatch, result):
    poor = {**result, "verdicts": {"bytes": True, "speed": False, "error": True, "step": False}}
    monkeypatch.setattr(store, "run", lambda quick, progress: {**poor, "quick": quick})
    shown = CliRunner().invoke(main, ["store", "--quick"])
    assert shown.exit_code == 0
    for words in ("at least 5 missed", "at most 1.05 missed", "at most 134 met", "0.06 met", "numbers mean nothing"):
        assert words in shown.output
    assert max(map(len, shown.output.splitlines())) <= 120
    printed = CliRunner().invoke(main, ["store", "--json"])
    assert json.loads(printed.output)["verdicts"]["speed"] is False


def test_wrong_arguments_are_named():
    with pytest.raises(RecipeError, match="3 repeats"):
        store.run(repeats=2)
