"""`steps`: the modes do what their names say, the figures are what they claim, and the report has its fields."""

from __future__ import annotations

import json
import statistics
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import steps, timing, workloads
from selfdistill.errors import RecipeError

MODES = ["plain", "average kept", "frozen teacher, cached", "frozen teacher, online", "average as teacher, online"]
SPREAD = {"median", "low", "high"}


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    lines: list[str] = []
    measured = steps.run(quick=True, progress=lines.append)
    assert any("cnn" in line for line in lines)
    assert any("transformer" in line for line in lines)
    return measured


def test_result_survives_json_and_has_the_promised_fields(result: dict[str, Any]) -> None:
    """What `--json` prints: models, modes, both clocks with a spread, target, floor and verdict."""
    assert json.loads(json.dumps(result)) == result
    assert result["judged_by"] == "cpu"
    assert result["threads"] == 1
    assert list(result["models"]) == ["cnn", "transformer"]
    for model in result["models"].values():
        assert set(model["plain_milliseconds"]) == {"cpu", "wall"}
        assert set(model["noise"]["cpu"]) == SPREAD
        assert model["teacher_forward_share"] > 0
        assert [mode["mode"] for mode in model["modes"]] == MODES
        for mode in model["modes"]:
            assert {"target", "floor", "met"} < set(mode)
            for figure in (mode["objective"], mode["by_hand"], mode["against_hand"]):
                assert set(figure["cpu"]) == set(figure["wall"]) == SPREAD
                assert figure["cpu"]["low"] <= figure["cpu"]["median"] <= figure["cpu"]["high"]
            assert set(mode["against_hand"]["extra_microseconds"]) == SPREAD


def test_targets_are_those_of_the_specification(result: dict[str, Any]) -> None:
    wanted = {"average kept": 1.03, "frozen teacher, cached": 1.05, "frozen teacher, online": 1.32}
    for model in result["models"].values():
        assert {m["mode"]: m["target"] for m in model["modes"] if m["target"] is not None} == wanted
    assert result["against_hand"] == {"target": 1.02, "floor": 1.0}


def test_verdicts_follow_from_the_figures(result: dict[str, Any]) -> None:
    verdicts = []
    for model in result["models"].values():
        for mode in model["modes"]:
            target = mode["target"]
            assert mode["met"] == (target is None or mode["objective"]["cpu"]["median"] <= target)
            assert mode["reachable"] == (target is None or mode["floor"] <= target)
            assert mode["against_hand"]["met"] == (mode["against_hand"]["cpu"]["median"] <= 1.02)
            verdicts += [mode["met"], mode["against_hand"]["met"]]
    assert result["met"] == all(verdicts)


def test_floor_is_the_teacher_forward_of_the_same_run(result: dict[str, Any]) -> None:
    for model in result["models"].values():
        floor = {mode["mode"]: mode["floor"] for mode in model["modes"]}
        assert floor["plain"] == floor["frozen teacher, cached"] == 1.0
        assert floor["frozen teacher, online"] == pytest.approx(1.0 + model["teacher_forward_share"], abs=2e-4)
        assert 1.0 < floor["average kept"] < floor["average as teacher, online"]


def test_table_names_every_mode_with_target_and_verdict(result: dict[str, Any]) -> None:
    text = steps.render(result)
    for mode in MODES:
        assert text.count(f"  {mode} ") == 2
    for word in ("1.03", "1.05", "1.32", "1.02", "floor", "processor time", "numbers mean nothing"):
        assert word in text
    assert "met" in text or "missed" in text
    assert max(len(line) for line in text.splitlines()) <= 120


def test_target_below_the_floor_is_said_to_be_so(result: dict[str, Any]) -> None:
    """A missed target that no implementation could meet on this model does not look like a slow objective."""
    model = json.loads(json.dumps(result["models"]["cnn"]))
    for mode in model["modes"]:
        mode.update(floor=1.0, reachable=True)
    assert "below the floor" not in steps.render({**result, "models": {"cnn": model}})
    model["modes"][3].update(floor=1.4567, reachable=False)
    text = steps.render({**result, "models": {"cnn": model}})
    assert "frozen teacher, online: 1.32 is below the floor of this model, 1.457" in text


def test_settings_of_the_process_are_as_before() -> None:
    """Measuring leaves the number of threads and the random state alone."""
    torch.manual_seed(5)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    steps.run(models=("transformer",), quick=True)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("options", "word"), [({"models": ("vgg",)}, "transformer"), ({"repeats": 2}, "3 repeats")])
def test_wrong_arguments_are_named(options: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        steps.run(**options)


# timing --------------------------------------------------------------------------------------------------------------


def test_every_variant_is_called_once_a_round_after_the_warm_up() -> None:
    calls: list[str] = []

    def noting(name: str) -> timing.Call:
        return lambda _: calls.append(name)

    groups = [{name: noting(name) for name in pair} for pair in (("a", "b"), ("c", "d"))]
    taken = timing.in_turns(groups, rounds=2, warm_up=3)
    assert calls[:12] == [name for name in "abcd" for _ in range(3)]
    assert calls[12:] == ["a", "b", "c", "d", "d", "c", "b", "a"]
    assert [set(row) for row in taken["cpu"] + taken["wall"]] == [set("abcd")] * 4


def test_ratio_is_the_median_of_paired_ratios() -> None:
    """Not the ratio of the medians, which a machine that changes speed between rounds would move (here: 2 and 1)."""
    rows = [{"ours": 2.0, "base": 1.0}, {"ours": 20.0, "base": 10.0}, {"ours": 3.0, "base": 1.0}]
    found = timing.ratio({"cpu": rows}, "ours", "base")["cpu"]
    assert found.median == 2.0
    assert found.median != statistics.median(r["ours"] for r in rows) / statistics.median(r["base"] for r in rows)
    assert (found.low, found.high) == (2.0, 2.5)


def test_processor_time_and_wall_time_are_not_the_same_clock() -> None:
    import time

    taken = timing.in_turns([{"asleep": lambda i: time.sleep(0.05)}], rounds=2, warm_up=0)
    found = timing.seconds(taken, "asleep")
    assert found["wall"].median >= 0.05
    assert found["cpu"].median < 0.025


# the loops -----------------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A linear model that counts forwards, by whether a gradient is kept; copies count apart."""

    log: list[str]

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, workloads.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        self.log.append("student" if self.linear.weight.requires_grad else "teacher")
        out: Tensor = self.linear(x)
        return out


def watched() -> tuple[workloads.Workload, list[nn.Module], list[str]]:
    log: list[str] = []
    models: list[nn.Module] = []

    def build() -> nn.Module:
        torch.manual_seed(3)
        model: nn.Module = type("Logged", (Watched,), {"log": log})()
        models.append(model)
        return model

    torch.manual_seed(1)
    batches = [(torch.randn(8, 6), torch.arange(8) % 10, torch.arange(8) + 8 * i) for i in range(workloads.BATCHES)]

    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), 0.1)

    return workloads.Workload("linear", build, optimizer, batches), models, log


@pytest.mark.parametrize("mode", MODES)
def test_both_loops_of_a_mode_do_the_same_training(mode: str) -> None:
    """The ratio compares like with like: after twelve steps the weights agree."""
    work, models, _ = watched()
    by_hand, ours = workloads.by_hand(work, mode), workloads.through_objective(work, mode)
    for i in range(12):
        by_hand(i)
        ours(i)
    hand, objective = (torch.nn.utils.parameters_to_vector(model.parameters()) for model in models)
    torch.testing.assert_close(hand, objective, rtol=0, atol=1e-6)
    fresh = torch.nn.utils.parameters_to_vector(work.build().parameters())
    assert (hand - fresh).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("mode", "forwards"),
    [
        ("plain", ["student"]),
        ("average kept", ["student"]),
        ("frozen teacher, cached", ["student"]),
        ("frozen teacher, online", ["student", "teacher"]),
        ("average as teacher, online", ["student", "teacher"]),
    ],
)
@pytest.mark.parametrize("loop", [workloads.by_hand, workloads.through_objective])
def test_after_the_warm_up_a_mode_forwards_what_its_name_says(loop: Any, mode: str, forwards: list[str]) -> None:
    """A cached teacher is not asked again, an average that is only kept is never asked."""
    work, _, log = watched()
    step = loop(work, mode)
    for i in range(workloads.BATCHES + 1):
        step(i)
    log.clear()
    step(workloads.BATCHES + 1)
    assert log == forwards


def test_quick_workloads_are_smaller_than_the_real_ones() -> None:
    for make in workloads.WORKLOADS.values():
        small, real = (sum(p.numel() for p in make(quick).build().parameters()) for quick in (True, False))
        assert small < real / 10
    assert 170_000 < sum(p.numel() for p in workloads.cnn(False).build().parameters()) < 180_000
