"""A generation that ends at chance says so once, and no other does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.core.step import Passes, TrainingClock
from selfdistill.data.dataset import Data, from_tensors, load
from selfdistill.errors import DataError, VitalsError
from selfdistill.evaluation.audit import Audit
from selfdistill.evaluation.predict import score
from selfdistill.io.tensors import digest
from selfdistill.methods import born_again, co_training, fixmatch, plain
from selfdistill.models.registry import parse
from selfdistill.training import callbacks
from selfdistill.training.cross_fitting import train_without_fold
from selfdistill.training.settings import Settings
from selfdistill.training.state import Evaluation, GenerationResult, RunState
from selfdistill.training.supervised import LengthWarning
from selfdistill.training.task import Task
from tests.terminal import refused

COLLAPSED, CHANCE = "validation rows are predicted as", "which is chance"


class Constant(nn.Module):
    """The same logits for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 5.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0.0 * x[:, :3]


def clouds(labels: str = "right") -> Data:
    """Three clouds of 60 rows, of which 72 audit; labels may be drawn at random, or be mostly one class."""
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(180) % 3
    x = torch.randn(180, 3, generator=draw) * 0.3 + 2.0 * torch.eye(3)[y]
    if labels == "random":
        y = torch.randint(3, (180,), generator=draw)
    if labels == "mostly bee":
        y = torch.where(torch.arange(180) % 5 > 1, 1, torch.arange(180) % 3)
    return from_tensors(x, y, ["ant", "bee", "cat"], audit=torch.arange(72), test=0.0)


def told(data: Data, build: Callable[..., nn.Module], epochs: int = 17, **more: object) -> list[str]:
    said: list[str] = []
    fit(build, data, plain(), epochs=epochs, batch_size=36, lr=0.02, warn=said.append, **more)  # type: ignore[arg-type]
    return said


def mlp(data: Data) -> Callable[..., nn.Module]:
    return parse("mlp(width=64)", data.shape, 3)


def test_one_class_for_all_rows_is_warned_of_with_its_name_and_count() -> None:
    (said,) = told(clouds(), Constant)
    assert "72 of 72 validation rows are predicted as 'bee'" in said


def test_labels_that_are_learnt_by_heart_and_say_nothing_of_other_rows_are_warned_of() -> None:
    data = clouds("random")
    (said,) = told(data, mlp(data), epochs=60)
    assert CHANCE in said


def test_a_training_that_learns_is_not_warned_of() -> None:
    data = clouds()
    assert told(data, mlp(data), epochs=20) == []


def test_where_most_labels_are_one_class_it_is_a_fair_answer() -> None:
    assert told(clouds("mostly bee"), Constant) == []


def test_without_vitals_nothing_is_asked() -> None:
    assert told(clouds(), Constant, vitals=False) == []


def test_a_handful_of_audit_rows_proves_nothing() -> None:
    data = from_tensors(torch.randn(60, 3), torch.arange(60) % 3, audit=torch.arange(18), test=0.0)
    assert told(data, Constant, epochs=30) == []


def test_a_training_of_a_few_steps_need_not_have_learnt_anything() -> None:
    assert told(clouds(), Constant, epochs=16) == []  # three steps each


def test_the_log_has_it_in_the_last_line_of_each_generation(tmp_path: Path) -> None:
    fit(Constant, clouds(), born_again(generations=2), out=tmp_path, epochs=17, batch_size=36, warn=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warned = [any(COLLAPSED in w for w in line.get("warnings", [])) for line in lines]
    assert warned == ([False] * 16 + [True]) * 2


def test_the_pass_is_counted_and_spent_only_where_it_may_tell_something() -> None:
    data = clouds()
    for build, rows in ((Constant, 18 * 72), (mlp(data), 17 * 72)):  # an audit an epoch, and one look at its answers
        found = fit(build, data, plain(), epochs=17, batch_size=36, lr=0.02, audit="off", warn=lambda line: None)
        assert found.passes.evaluation == rows


@pytest.mark.parametrize(("right", "chance"), [(1, False), (2, True), (6, True), (8, True), (9, False)])
def test_chance_is_the_binomial_s(right: int, chance: bool) -> None:
    """Of twenty rows, each right with probability .25: P(X <= 1) = .024, P(X >= 8) = .102 and P(X >= 9) = .041."""
    assert callbacks.by_chance(right / 20, 20, 0.25) is chance


# alone, without a trainer ---------------------------------------------------------------------------------------------


def state(**settings: Any) -> RunState:
    """A generation of a tiny model under way, in epoch 2 of 4 of a step each."""
    made = RunState(plain(), Settings(**settings), Audit("strict", planned=1))
    made.model = nn.Linear(2, 2, bias=False)
    made.objective = plain().bind(made.model)
    made.objective.clock = TrainingClock(epochs=4, epoch=1, step=2)
    made.optimizer = torch.optim.SGD(made.model.parameters(), 0.1)
    return made


class Losses(Task):
    """Says how good a model is by a list."""

    def __init__(self, *losses: list[float]) -> None:
        self.losses, self.audit_rows = list(losses), len(losses[0])

    def evaluate(self, state: RunState) -> Evaluation:
        return Evaluation(losses=self.losses.pop(0), passes=Passes(evaluation=self.audit_rows))


def test_best_weights_are_those_of_the_best_epoch() -> None:
    run, best = state(), callbacks.BestWeights(Task())
    for epoch, accuracy in enumerate((0.5, 0.8, 0.7)):
        nn.init.constant_(run.model.weight, epoch)  # type: ignore[arg-type]
        best.on_epoch_end(run, TrainingClock(epoch=epoch), {"audit": {"accuracy": accuracy}})
    assert run.best.epoch == 1
    assert run.best.audit == {"accuracy": 0.8}
    assert torch.equal(run.best.weights["weight"], torch.ones(2, 2))


def test_what_got_worse_is_rolled_back_and_time_goes_on() -> None:
    run, told = state(audit_epochs=1), list[str]()
    run.tell = told.append
    rollback = callbacks.Rollback(Losses([0.0] * 8, [1.0] * 8))
    entries: list[dict[str, Any]] = [{}, {}]
    for epoch, entry in enumerate(entries):
        nn.init.constant_(run.model.weight, epoch)  # type: ignore[arg-type]
        run.objective.clock = TrainingClock(epochs=4, epoch=epoch, step=epoch + 1)
        rollback.on_epoch_end(run, TrainingClock(epochs=4, epoch=epoch, step=epoch), entry)
    assert [entry["decision"]["accepted"] for entry in entries] == [True, False]
    assert entries[1]["decision"]["restored"]
    assert torch.equal(run.model.state_dict()["weight"], torch.zeros(2, 2))
    assert run.clock.step == 2
    assert run.passes.evaluation == 16
    assert told == [entries[1]["decision"]["why"]]
    assert told[0].startswith("epoch 2 against epoch 1: check 1 rolled back: not shown to be better than check 1")


def test_epochs_that_are_not_due_are_not_audited() -> None:
    run, entry = state(audit_epochs=3), dict[str, Any]()
    callbacks.Rollback(Losses([0.0])).on_epoch_end(run, TrainingClock(epochs=4, epoch=1, step=1), entry)
    assert entry == {}


def test_a_generation_that_begins_as_an_earlier_one_is_warned_of() -> None:
    run, warned = state(), list[str]()
    run.warn, run.start = warned.append, "a"
    run.generations = [GenerationResult("a", {"w": torch.ones(1)}, {})]
    callbacks.FreshStart().on_model(run)
    assert "generation 1 starts from the very weights that generation 0 started from" in warned[0]
    run.start = digest({"w": torch.ones(1)})
    with pytest.raises(VitalsError, match="trained-start"):
        callbacks.FreshStart().on_model(run)


def test_the_classifier_of_a_method_without_labels_is_fitted_before_an_evaluation() -> None:
    data, run = clouds(), state()
    classifier = nn.Linear(3, 3)
    nn.init.zeros_(classifier.weight)
    run.model = nn.Sequential(nn.Linear(3, 3), classifier)
    callbacks.LinearProbe(data).before_evaluation(run)
    assert score(run.model, data, data.audit)["accuracy"] > 0.9
    assert run.passes.evaluation == len(data.labelled)


@pytest.mark.parametrize(("steps", "warned"), [(499, True), (500, False)])
def test_a_run_that_is_too_short_for_its_recipe_is_warned_of_before_it_starts(steps: int, warned: bool) -> None:
    """The line names the recipe, the steps of the run, and the least ones."""
    task = LengthWarning()
    lines = list[str]()
    run = state(steps=steps)
    run.method, run.warn = co_training(), lines.append
    run.objective = co_training().bind(nn.Linear(2, 2), clock=TrainingClock(steps=steps))
    task.before_training(run)
    words = f"co_training() needs about 500 steps, and a generation has {steps} here"
    assert [words in line and "--steps 500 or more" in line for line in lines] == [True] * warned


def test_a_bound_that_no_validation_rows_can_show_is_refused_before_training(tmp_path: Path) -> None:
    """By the rows there are and those it needs; so are folds, by whose rows the threshold would be chosen."""
    data = load("digits", labels=50)
    options: dict[str, Any] = {"steps": 2, "batch_size": 10, "device": "cpu"}
    build = parse("mlp", data.shape, data.outputs)
    with pytest.raises(DataError, match="from 59 validation rows on, all of them right, and digits has 50") as caught:
        fit(build, data, fixmatch(max_error=0.05), **options)
    assert "\n" not in str(caught.value)
    fit(build, data, fixmatch(max_error=0.1), **options)
    with pytest.raises(DataError, match="leave max_error or the folds out"):
        train_without_fold(build, data, fixmatch(max_error=0.5), 0, 2, tmp_path / "fold", **options)


@pytest.mark.parametrize("option", ["--refit=all", "--audit-folds=2"])
def test_a_training_without_validation_rows_for_its_threshold_is_refused_before_it(option: str, tmp_path: Path) -> None:
    options = ["--labels", "100", "--steps", "2", "--out", tmp_path / "run"]
    assert "max_error" in refused("run", "digits", "--method", "fixmatch(max_error=0.1)", option, *options)
    assert not (tmp_path / "run").exists()
