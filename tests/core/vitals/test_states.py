"""Vitals of states: figures against numbers by hand, and what is looked at and forgotten."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, Term
from selfdistill.core.vitals.states import SOME, _distance, _entries
from selfdistill.errors import VitalsError
from selfdistill.losses import KL
from selfdistill.teachers import CurrentStudent, Ema, External, Frozen, FrozenCopy
from tests.signals import LABEL, Net, train


def test_the_weight_distance_is_that_computed_by_hand():
    """||teacher - student|| / ||student|| after the update; a mean over the looks."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
        model.bias.copy_(torch.tensor([2.0, 0.0]))
    terms = {
        "frozen": Term(Frozen(), KL()),
        "average": Term(Ema(0.5, warm_up=False), KL()),
        "own": Term(CurrentStudent(), KL()),
    }
    objective = Method(terms).bind(model)
    objective({"x": torch.randn(8, 2), "y": torch.zeros(8).long()}).backward()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        model.bias.copy_(torch.tensor([0.0, 2.0]))
    objective.update()
    read = objective.vitals().terms
    # differences (0, 0, 0, 2) and (2, -2): 12; the student 1 + 16 + 4 = 21; the average is half as far
    assert read["frozen"]["weight_distance"] == pytest.approx(math.sqrt(12 / 21))
    assert read["average"]["weight_distance"] == pytest.approx(math.sqrt(3 / 21))
    assert read["own"]["weight_distance"] is None


def test_models_of_another_layout_have_no_distance():
    model = nn.Sequential(nn.Linear(6, 4))
    others: list[nn.Module] = [nn.Linear(6, 4), nn.Sequential(nn.Linear(6, 5)), nn.Identity(), Net()]
    for other in others:
        assert _distance(other, model) is None
    assert _distance(copy.deepcopy(model), model) == 0.0
    big = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    terms = {"label": LABEL, "large": Term(External(), KL())}
    objective = Method(terms).bind(model, external=big)
    objective({"x": torch.randn(8, 6), "y": torch.zeros(8).long()}).backward()
    objective.update()
    assert objective.vitals().terms["large"]["weight_distance"] is None


def test_few_entries_of_every_tensor_are_compared():
    large, small = torch.arange(10.0 * SOME), torch.arange(3.0)
    entries = _entries([large, small, torch.zeros(0)])
    assert len(entries) == SOME + 3
    assert set(entries.tolist()) <= set(large.tolist())
    large += 1
    assert not torch.equal(entries, _entries([large, small]))
    assert _entries([]).numel() == 0


def test_micro_batches_and_steps_between_looks_change_nothing():
    """A look of several micro-batches is one, and the states are read at looks only."""
    read: list[int] = []
    model = Net()
    objective = Method({"label": LABEL, "past": Term(Ema(0.9), KL())}).bind(model)
    for _step in range(12):
        for _ in range(3):
            objective({"x": torch.randn(8, 6), "y": torch.arange(8) % 4, "id": torch.arange(8)}).backward()
        objective.update()
        read.append(objective.pulse["past"].counts["weight_distance"])
    assert read == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]


@dataclass(frozen=True)
class ByHand(Ema):
    """An average that another part of the program moves."""

    def update(self, state: nn.Module, steps: Any, term: BaseTerm) -> None:
        pass


def test_an_average_moved_by_somebody_else_is_caught_and_one_s_own_part_is_left_alone():
    def moved(objective: Any, step: int) -> None:
        for state in objective.states.values():
            if isinstance(state, FrozenCopy):
                with torch.no_grad():
                    for p in state.module.parameters():
                        p.mul_(1.01)

    with pytest.raises(VitalsError, match="Ema") as found:
        train({"label": LABEL, "odd": Term(Ema(0.9), KL())}, each=moved)
    assert found.value.vital == "frozen-teacher-moved"
    train({"label": LABEL, "fine": Term(ByHand(), KL())}, model=nn.Linear(6, 4), each=moved)


def test_a_copy_of_an_objective_has_a_watch_of_its_own():
    """Loading into the copy makes the copy forget, and not the first one."""
    objective = train({"label": LABEL, "past": Term(Ema(0.9), KL())}, steps=4)
    twin = copy.deepcopy(objective)
    assert objective._vigil._kept.keys() == twin._vigil._kept.keys() != set()
    twin.load_state_dict(objective.state_dict())
    assert not twin._vigil._kept
    assert objective._vigil._kept
    assert twin._vigil.states is twin.states


def test_vitals_leave_no_trace_in_what_is_saved():
    objective = train({"label": LABEL, "past": Term(Ema(0.9), KL())}, steps=4)
    names = {name.split(".")[0] for name in objective.state_dict()}
    assert names == {"states", "_extra_state"}
