"""Recipes of classes as recipes of values: against straight lines, in the unit of the target, and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill import fit
from selfdistill.core.parts import BindArgs
from selfdistill.core.regression import of_values
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.errors import DataError, SpaceError
from selfdistill.evaluation.predict import final_score, halfwidth, score, task_outputs
from selfdistill.methods import born_again, byot, distil, mean_teacher, mutual, plain, ps_kd, recipes
from selfdistill.models.networks import Scaled
from selfdistill.models.peers import PeerModels
from selfdistill.models.registry import parse
from selfdistill.models.store import load, save
from selfdistill.teachers import External

SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 16, "optimizer": "sgd", "lr": 0.05, "schedule": "constant"}


def some_data(unlabelled: int = 0) -> Data:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
    y = 1000.0 + 50.0 * (x[:, 0] - x[:, 1].square())
    y[120 - unlabelled :] = torch.nan
    return from_tensors(x, y, audit=torch.arange(20), test=torch.arange(20, 40))


def build(exits: bool = False) -> nn.Module:
    return parse("mlp(width=8)", (4,), 1)(**({"exits": True} if exits else {}))


def straight(method: Any, weights: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Losses that `fit` tells for born_again's kind of method, and those of a loop that shares no code with it."""
    data, batches, told = some_data(), list[list[Any]](), list[float]()

    def watch(clock: Any, seen: list[Any], loss: float) -> None:
        while len(batches) <= clock.generation:
            batches.append([])
        batches[clock.generation].append(seen[0]["x"])
        told.append(loss)

    result = fit(build, data, method, watch=watch, audit="off", weight_decay=0.0, **SETTINGS)
    center, scale = float(data.y[40:].mean()), float(data.y[40:].std(correction=0))
    found, teacher = list[float](), None
    from selfdistill import rng

    for generation, (label, past) in enumerate(weights):
        torch.manual_seed(rng.seed(0, "init", generation))
        model = build().train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True)
        for rows in batches[generation]:
            said = model(rows.x).squeeze(1)
            loss = label * ((said - (data.y[rows.id] - center) / scale) ** 2).mean()
            if teacher is not None:
                loss = loss + past * ((said - teacher(rows.x).squeeze(1).detach()) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        teacher = model.eval()
    assert len(result.generations) == len(weights)
    return told, found


def test_plain_and_born_again_are_squared_errors_of_standardised_values() -> None:
    told, found = straight(plain(), [(1.0, 0.0)])
    assert told == pytest.approx(found, rel=1e-5)
    told, found = straight(born_again(generations=3, xi=0.4), [(1.0, 0.0), (0.6, 0.4), (0.6, 0.4)])
    assert told == pytest.approx(found, rel=1e-5)


LEARN: dict[str, Any] = {
    "ps_kd": ps_kd(), "mean_teacher": mean_teacher(weight=1.0), "mutual": mutual(), "byot": byot(),
    "distil": distil(alpha=0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", LEARN)
def test_other_recipes_learn_values(name: str) -> None:
    """The root mean squared error of the rows learnt from is in the unit of the target, below half of its spread."""
    method = LEARN[name]
    data = some_data(30)
    teacher = Scaled(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), 1000.0, 50.0)
    result = fit(build, data, method, external=teacher, audit="off", **{**SETTINGS, "epochs": 60, "lr": 0.02})
    assert result.history[-1]["audit"].keys() == {"rmse", "mae", "r2"}
    model = result.model.members[0] if isinstance(result.model, PeerModels) else result.model
    assert score(model, data, data.labelled)["rmse"] < 0.6 * float(data.y[data.labelled].std())


def test_recipes_that_need_classes_say_so_by_name() -> None:
    refused = {}
    for name, recipe in recipes().items():
        try:
            of_values(recipe())
        except SpaceError as error:
            refused[name] = str(error)
    assert refused.keys() >= {"elr", "fixmatch", "cs_kd", "label_smoothing"}
    assert "term 'history': LogOneMinusInner" in refused["elr"]
    assert "same class" in refused["cs_kd"]
    assert all("classes" in why for why in refused.values())
    assert of_values(of_values(ps_kd())) == of_values(ps_kd())


def test_an_external_teacher_in_units_is_asked_in_the_students() -> None:
    """A finished model answers in units; what its student learns is standardised by the student's own labels."""
    inner = nn.Linear(4, 1)
    held = External().start(nn.Linear(4, 1), BindArgs(None, Scaled(inner, 30.0, 4.0), (10.0, 2.0)))
    x = torch.randn(5, 4)
    assert torch.allclose(held.module(x), ((4.0 * inner(x) + 30.0) - 10.0) / 2.0)  # type: ignore[operator]


def test_a_saved_model_answers_in_units(tmp_path: Path) -> None:
    made = parse("mlp(width=8)", (4,), 1)
    model = made()
    from dataclasses import replace

    save(model, tmp_path, replace(made, scale=(5.0, 2.0)))
    x = torch.randn(3, 4)
    assert torch.allclose(load(tmp_path)(x), 2.0 * model.eval()(x) + 5.0)
    exits = Scaled(build(exits=True), 5.0, 2.0)
    said, raw = exits.eval()(x), exits.model(x)
    assert isinstance(said, dict)
    assert torch.equal(said["feature"], raw["feature"])
    assert torch.allclose(said["exits"], 2.0 * raw["exits"] + 5.0)


def test_scores_are_in_units_and_intervals_cover() -> None:
    data = some_data()
    model = nn.Linear(4, 1)
    said = task_outputs(model, data, data.test)
    assert torch.allclose(said, data.scale * model(data.x[data.test]).squeeze(1) + data.center)
    found = final_score(model, data)
    assert found["rmse"] == pytest.approx(float((said - data.y[data.test]).square().mean().sqrt()), rel=1e-5)
    assert found["width"] == pytest.approx(2 * halfwidth(task_outputs(model, data, data.audit) - data.y[data.audit]))


def test_conformal_intervals_hold_what_they_promise() -> None:
    """The share of new values inside is at least the coverage on average, and at most one over n + 1 more."""
    generator = torch.Generator().manual_seed(0)
    inside = []
    for _ in range(2000):
        errors = torch.randn(21, generator=generator)
        inside.append(float(errors[20].abs() <= halfwidth(errors[:20], 0.8)))
    share = sum(inside) / len(inside)
    assert 0.8 - 0.03 <= share <= 0.8 + 1 / 21 + 0.03


def test_a_constant_target_is_refused() -> None:
    with pytest.raises(DataError, match=r"target is 7 in all \d+ rows"):
        from_tensors(torch.randn(50, 2), torch.full((50,), 7.0))
