"""What a run says at its end follows from its figures."""

from __future__ import annotations

import json
from typing import Any

import pytest

from selfdistill.experiments.network_task import NetworkTaskType
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.language.task import LanguageTaskType
from selfdistill.report.summary import cells, readme, rows, sentence, table
from selfdistill.training.task_type import Rows


def rows_of(result: dict[str, Any]) -> Rows:
    return rows(result, TASK_TYPES.of_record(result))


def said_of(result: dict[str, Any]) -> str:
    return sentence(result, TASK_TYPES.of_record(result))


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "nll": 0.12345, "ece": 0.0123, "brier": 0.2}


def result(
    *generations: float, plain: float | None = 0.9, early: float = 0.94, source: str = "control"
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": "runs/x", "method": "elr()", "model": "mlp", "parameters": 1234, "seed": 3, "steps": 50, "seconds": 1.5,
        "data": {"name": "digits", "task": "classify", "noise": 0.4,
                 "rows": {"labelled": 7, "unlabelled": 0, "audit": 2, "test": 5}},
        "generations": [{"generation": g, "test": metrics(a)} for g, a in enumerate(generations)],
        "test": metrics(generations[-1]),
    }  # fmt: skip
    if plain is not None:
        stopped = {"epoch": 4, **metrics(early)}
        found["plain"] = {"steps": 50, "seconds": 1.0, "end": metrics(plain), "early_stopped": stopped, "from": source}
    return found


def test_rows_are_plain_at_the_end_plain_stopped_early_and_every_generation() -> None:
    assert [name for name, _ in rows_of(result(0.95))] == [
        "plain, after 50 steps",
        "plain, stopped early (epoch 5)",
        "elr()",
    ]
    assert [name for name, _ in rows_of(result(0.5, 0.6))][2:] == [
        "elr(), generation 0",
        "elr(), generation 1",
    ]
    assert [name for name, _ in rows_of(result(0.5, plain=None))] == ["elr()"]
    assert len(rows_of(result(0.9, source="method"))) == 2


def test_cells_are_per_cent_and_three_digits() -> None:
    assert cells(metrics(0.95678)) == ["95.7 %", "0.123", "0.012", "0.200"]


def test_values_are_told_in_four_digits_or_whole() -> None:
    assert cells({"rmse": 61.657, "mae": 12345.6, "r2": 0.61234, "coverage": 0.9}) == [
        "61.66",
        "12,346",
        "0.612",
        "90.0 %",
    ]
    assert cells({"rmse": 0.0012344, "mae": 1.0, "r2": 1.0})[0::3] == ["0.001234", "-"]


@pytest.mark.parametrize(
    ("final", "at_end", "early"),
    [
        (0.97, "7.0 points better", "3.0 points better"),
        (0.9, "equal", "4.0 points worse"),
        (0.85, "5.0 points worse", "9.0 points worse"),
    ],
)
def test_the_sentence_compares_with_both_plain_models_whichever_way_it_falls(
    final: float, at_end: str, early: str
) -> None:
    said = said_of(result(final))
    assert f"against plain: {at_end} at equal steps; against the baseline with early stopping: {early}." in said
    assert "One seed proves little" in said


def test_a_product_that_no_generation_taught_is_not_called_self_distilled() -> None:
    kept, taught = ({**result(0.97, 0.96), "final_generation": number} for number in (0, 1))
    folded = {**result(0.97), "final_generation": 0, "folds": {"decisions": [{"accepted": False}]}}
    for found in (kept, folded):
        assert said_of(found).startswith("Generation 0 (no later one was accepted) against plain")
    assert said_of(taught).startswith("Self-distillation against plain")
    assert said_of({**result(0.97), "final_generation": 0}).startswith("Self-distillation against plain")


def test_without_a_control_nothing_is_compared() -> None:
    for found in (result(0.97, plain=None), result(0.97, source="method")):
        assert said_of(found) == "Accuracy on the test split: 97.0 %."


def test_the_readme_has_the_figures_and_how_they_came() -> None:
    record = {"settings": {"batch_size": 32}, "versions": {"torch": "9.9"}}
    page = readme(result(0.97), record, NetworkTaskType())
    for words in ("# elr() on digits", "| elr() | 97.0 % | 0.123 | 0.012 | 0.200 |", "7 training", "5 test", "40 %",
                  "1234 parameters", "50 in 1.5 s", "batch 32", "seed 3", "torch 9.9", 'load("model")'):  # fmt: skip
        assert words in page


def test_a_column_without_a_figure_is_left_out() -> None:
    """Checked answers have no likelihood, and without --keep there are no prior tasks."""
    one = {"accuracy": 0.5, "length": 12.0}
    spoken = {"kind": "language", "method": "sdft()", "model": "m", "final_generation": 0, "data": {"task": "generate"},
              "before": one, "generations": [{"generation": 0, "test": {**one, "accuracy": 0.75}}]}  # fmt: skip
    names, lines = table(spoken, LanguageTaskType())
    assert names == ["right", "tokens"]
    assert [figures for _, figures in lines] == [["50.0 %", "12"], ["75.0 %", "12"]]
    spoken["before"] = {**one, "kept": 1.0}
    names, lines = table(spoken, LanguageTaskType())
    assert names == ["right", "prior tasks right", "tokens"]
    assert lines[1][1] == ["75.0 %", "-", "12"]


def test_few_prompts_are_told_without_a_verdict() -> None:
    one = {"gain": 1.0, "half": None, "rows": 1, "verdict": None}
    many = {"gain": 0.5, "half": 0.125, "rows": 40, "verdict": "BEATS"}
    spoken = {"kind": "language", "final_generation": 0, "data": {"rows": {"test": 1}}, "test": {"accuracy": 1.0},
              "against": {"before": {"test": one, "kept": many}, "sft": {"test": {**one, "gain": -1.0}}}}  # fmt: skip
    assert said_of(spoken).startswith(
        "The final model has no verdict against the model before: 100 points better over 1 prompt, and at least 3 show "
        "one; BEATS the model before on prior tasks (50 ± 12 points better); has no verdict against sft() at equal "
        "steps: 100 points worse"
    )


def test_a_verdict_read_back_from_disk_is_the_same_sentence() -> None:
    """run.json is sorted by name, so "kept" comes before "test" there."""
    one, two = ({"gain": g, "half": 0.25, "rows": 40, "verdict": v} for g, v in ((0.1, "TIES"), (-0.5, "LOSES")))
    spoken = {"kind": "language", "final_generation": 0, "data": {"rows": {"test": 40}}, "test": {"accuracy": 1.0},
              "against": {name: {"test": one, "kept": two} for name in ("before", "sft")}}  # fmt: skip
    said = said_of(json.loads(json.dumps(spoken, sort_keys=True)))
    assert said == said_of(spoken)
    assert said.startswith(
        "The final model TIES the model before (10 ± 25 points better); LOSES to the model before on prior tasks "
        "(50 ± 25 points worse); TIES sft() at equal steps (10 ± 25 points better); LOSES to sft() at equal steps on "
    )
