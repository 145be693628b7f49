"""Cells really train: at train_within compute, in true pairs, and a failure is a record too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill import rng
from selfdistill.errors import DataError, RecipeError
from selfdistill.evaluation.linear_probe import probe
from selfdistill.experiments.benchmark import cells, page, settings
from selfdistill.experiments.benchmark.cells import Tried, steps_within, train_within
from selfdistill.experiments.benchmark.settings import HALF, PLAIN, SELF_TRAINING, SETTINGS, Cell, data_of
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit
from tests.experiments.benchmark.common import FEW, NOISE


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cells")


@pytest.mark.parametrize("method", [PLAIN, "elr()", "mutual()", "distil()", "born_again()"])
def test_every_method_spends_the_same_passes(method: str, out: Path) -> None:
    found = cells.run(Cell(NOISE, method, 0), out)
    assert found["status"] == "finished"
    passes = found["passes"]
    assert passes["total"] == passes["forward"] + 2 * passes["backward"] + passes["teacher"]
    # one step of `distil` is 1 in 15 of what its teacher leaves
    assert passes["total"] == pytest.approx(NOISE.budget, rel=0.05)


def test_no_generation_is_rolled_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the row of a method would be the plain model that its first generation is."""
    said: list[dict[str, Any]] = []

    def watched(*args: Any, **settings: Any) -> Any:
        found = fit(*args, **settings)
        said.extend(one.decision for one in found.generations)
        return found

    monkeypatch.setattr(cells, "fit", watched)
    found = cells.run(Cell(NOISE, "born_again(generations=3)", 0), out)
    assert (found["final_generation"], found["generations"]) == (2, 3)
    assert {(one["accepted"], one["rows"]) for one in said} == {(True, 0)}, "accepted, for nothing was audited"


def test_labelling_the_pool_is_paid_from_the_budget(out: Path) -> None:
    found = cells.run(Cell(FEW, "curriculum(stages=1)", 0), out)
    assert found["passes"]["teacher"] == len(data_of(FEW, 0).unlabelled)
    assert found["passes"]["total"] == pytest.approx(FEW.budget, rel=0.06)
    assert found["steps"] == found["generations"] * found["steps_each"]


def test_what_the_pool_alone_costs_more_than_the_budget_is_refused_and_not_tried_again(out: Path) -> None:
    found = cells.run(Cell(FEW, "curriculum()", 0), out)
    assert found["status"] == "failed"
    assert "the budget is 6,000" in found["error"]
    assert "\n" not in found["error"]
    again = cells.run(Cell(FEW, "curriculum()", 1), out)
    assert "seed 0 has failed" in again["error"]


def test_half_the_budget_is_the_plain_training_of_usual_length(out: Path) -> None:
    whole, half = (
        cells.run(Cell(NOISE, name, 1), out) for name in (PLAIN, HALF) if cells.run(Cell(NOISE, name, 0), out)
    )
    assert (whole["steps"], half["steps"]) == (40, 20)
    assert half["passes"]["total"] == pytest.approx(whole["passes"]["total"] / 2, rel=0.02)


def test_a_seed_is_the_same_rows_and_first_weights_for_all_and_another_seed_is_not(out: Path) -> None:
    records = {
        (method, seed): cells.run(Cell(NOISE, method, seed), out) for method in (PLAIN, "elr()") for seed in (0, 1)
    }
    for what in ("data", "start"):
        assert records[PLAIN, 0][what] == records["elr()", 0][what]
        assert records[PLAIN, 1][what] == records["elr()", 1][what]
        assert records[PLAIN, 0][what] != records[PLAIN, 1][what]
    assert records["elr()", 0]["steps_each"] == records["elr()", 1]["steps_each"]


def test_a_cell_trained_again_says_the_same(out: Path, tmp_path: Path) -> None:
    one, other = cells.run(Cell(NOISE, "elr()", 0), out), cells.run(Cell(NOISE, "elr()", 0), tmp_path)
    assert {**one, "seconds": 0} == {**other, "seconds": 0}
    assert json.loads(NOISE.path(tmp_path).read_text()) == other


def test_what_a_training_warns_of_is_in_its_record(out: Path) -> None:
    assert cells.run(Cell(NOISE, PLAIN, 0), out)["warnings"] == []
    said = cells.run(Cell(FEW, "fixmatch(confidence=1.0, ratio=0.5)", 0), out)["warnings"]
    assert any("the gate of term 'pseudo' kept nothing" in line for line in said)
    assert len(said) == len(set(said))


def test_a_later_seed_waits_for_the_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"elr\(\) in digits-noise is trained with seed 0 before seed 2"):
        cells.run(Cell(NOISE, "elr()", 2), tmp_path)
    assert not list(tmp_path.rglob("*.json*"))


def test_scikit_learns_self_training_is_a_control(out: Path) -> None:
    found = cells.run(Cell(FEW, SELF_TRAINING, 0), out)
    assert found["test"]["last"]["accuracy"] > 0.8
    assert found["passes"] is None


def test_a_recipe_that_breaks_is_a_row(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*anything: Any) -> Any:
        raise ZeroDivisionError("of a new\nrecipe")

    monkeypatch.setattr(cells, "_network", broken)
    found = cells.run(Cell(NOISE, "ps_kd()", 0), out)
    assert (found["status"], found["error"]) == ("failed", "ZeroDivisionError: of a new recipe")


def test_missing_data_are_not_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*anything: Any) -> Any:
        raise DataError("no data")

    monkeypatch.setattr(cells, "data_of", absent)
    with pytest.raises(DataError, match="no data"):
        cells.run(Cell(NOISE, PLAIN, 0), tmp_path)
    assert not list(tmp_path.rglob("*.json*"))


@pytest.mark.parametrize(("fixed", "bend"), [(0, 0), (700, 0), (0, 300), (2000, 500)])
def test_matched_finds_the_steps_on_a_line_and_near_it(fixed: float, bend: float) -> None:
    """Costs: something fixed, 50 a step, and 25 more in each of the first ``bend`` / 25 steps, as a cache has them."""
    asked = list[int]()

    def train(steps: int) -> tuple[int, float]:
        asked.append(steps)
        return steps, fixed + 50.0 * steps + 25.0 * min(steps, bend / 25)

    given, steps = train_within(train, 20_000.0)
    assert given == steps
    assert train(steps)[1] == pytest.approx(20_000, rel=0.03)
    assert len(asked) <= 6


def test_steps_are_counted_on_the_last_two_trainings() -> None:
    assert steps_within([Tried(1, 9e9), Tried(8, 180.0), Tried(16, 260.0)], 1100.0) == 100
    with pytest.raises(RecipeError, match=r"one step .* take 1,010 passes, and the budget is 900"):
        steps_within([Tried(8, 1080.0), Tried(16, 1160.0)], 900.0)


def test_what_a_short_training_spends_beyond_the_budget_is_not_trained_further() -> None:
    asked = list[int]()

    def train(steps: int) -> tuple[None, float]:
        asked.append(steps)
        return None, 5000.0

    with pytest.raises(RecipeError, match=r"2 steps .* take 5,000 passes, and the budget is 900"):
        train_within(train, 900.0)
    assert asked == [2]


def test_dropout_is_given_where_a_card_asks_for_it() -> None:
    assert str(settings.build_for(FEW, "ups()")) == "mlp(width=8, dropout=0.3)"
    assert str(settings.build_for(FEW, "elr()")) == "mlp(width=8)"


def test_untrained_is_the_first_weights_under_a_probe(tmp_path: Path) -> None:
    """The reference of settings without labels: what a method must add to, with its own first weights."""
    setting = replace(SETTINGS["digits-none"], steps=6, seeds=1)
    found = {m: cells.run(Cell(setting, m, 0), tmp_path) for m in ("untrained", "plain()", "simsiam(width=16)")}
    assert [r["status"] for r in found.values()] == ["finished"] * 3
    torch.manual_seed(rng.seed(0, "init", 0))
    data, model = data_of(setting, 0), parse(setting.model, setting.shape, 10)()
    assert found["untrained"]["test"]["last"]["accuracy"] == pytest.approx(probe(model, data)["linear"], abs=1e-9)
    assert found["untrained"]["passes"] is None
    assert found["simsiam(width=16)"]["passes"]["total"] == pytest.approx(setting.budget, rel=0.1)
    assert page.best_control({name: {0: r} for name, r in found.items()}) == "untrained"
