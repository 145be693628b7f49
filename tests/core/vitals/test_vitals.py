"""Vitals: each dead signal is built here and caught, and no recipe of ours is ever called dead."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, Teacher, Term
from selfdistill.core.step import Forward, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.core.vitals import figures
from selfdistill.core.vitals.watch import spread
from selfdistill.gates import Confident
from selfdistill.losses import KL, CosineDistance, CrossEntropy
from selfdistill.methods import recipes
from selfdistill.teachers import CurrentStudent, Ema, Frozen, History, Labels
from selfdistill.views import two
from tests.harness import building_for, external_teacher, of_values, tiny_data, value_data
from tests.signals import CLASSES, Net, Says, caught, clear, train


def test_few_steps_are_looked_at():
    assert [s + 1 for s in range(160) if TrainingClock(step=s).observed] == [1, 2, 4, 8, 16, 32, 50, 100, 150]


def test_figures_are_those_computed_by_hand():
    student = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])  # (.5, .5) and (.75, .25)
    target = Target(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), "probabilities")
    found = figures(student, target)
    assert found["differ"].tolist() == pytest.approx([0.5, 0.5])
    second = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)) / math.log(2)
    assert found["entropy"].tolist() == pytest.approx([0.0, second])
    assert found["top"].tolist() == [1.0, 0.75]
    values = figures(torch.tensor([[1.0], [2.0]]), Target(torch.tensor([[1.5], [0.0]]), "values"))
    assert values["differ"].tolist() == [[0.5], [2.0]]


def test_the_reading_of_two_rows_is_that_computed_by_hand():
    said = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    objective = Method({"t": Term(Says(lambda step: said, "probabilities"), CrossEntropy(), weight=2.0)}).bind(
        nn.Identity()
    )
    z = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]], requires_grad=True)
    objective({"x": z, "y": torch.tensor([0, 0])}).backward()
    read = objective.vitals().terms["t"]
    # gradient of the mean: (p - t) / 2 = (-.25, .25) and (.25, -.25)
    assert read["gradient"] == pytest.approx(0.5)
    assert (read["gradient_share"], read["kept"], read["accuracy"]) == (1.0, 1.0, 0.5)
    assert read["disagreement"] == pytest.approx(0.5)
    assert (read["largest"], read["class_distance"]) == (0.875, 0.5)
    assert read["confidence_gap"] is None
    assert json.loads(objective.vitals().to_json())["terms"]["t"]["largest"] == 0.875


def test_copies_that_start_as_the_student_are_alive():
    for teacher in (Ema(0.9, train=True), Frozen(), Ema(0.9)):
        model = nn.Linear(6, CLASSES)
        train({"label": Term(Labels(), CrossEntropy()), "copy": Term(teacher, KL())}, model=model)
        # nothing moves the weights: nothing is known
        train({"label": Term(Labels(), CrossEntropy()), "copy": Term(teacher, KL())}, lr=0.0, model=model)


def test_probabilities_called_logits_are_caught():
    assert caught(Term(Says(lambda s: clear(s).softmax(-1)), KL()), steps=1).vital == "probabilities-as-logits"
    train({"fine": Term(Says(clear), KL())})


def test_what_is_no_distribution_is_caught():
    def top(forward: Forward) -> Tensor:
        p = clear(forward).softmax(-1)
        return torch.where(p == p.amax(-1, keepdim=True), 0.9 * p, torch.zeros_like(p))

    assert caught(Term(Says(top, "probabilities"), CrossEntropy()), steps=1).vital == "not-a-distribution"
    below = Says(lambda s: torch.tensor([1.5, -0.5, 0.0, 0.0]).expand(s.rows("x"), 4), "probabilities")
    assert caught(Term(below, CrossEntropy()), steps=1).vital == "not-a-distribution"
    assert (History().normalised, History(start_from="labels").normalised) == (False, True)
    train({"label": Term(Labels(), CrossEntropy()), "past": Term(History(), CrossEntropy())})


def test_a_term_of_weight_0_is_left_alone():
    train({"label": Term(Labels(), CrossEntropy()), "off": Term(CurrentStudent(), KL(), weight=0.0)})


def test_warnings():
    @dataclass(frozen=True)
    class Nothing(Teacher):
        def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
            z = forward.student(term.view)
            return Target(z, "logits", torch.zeros(len(z), dtype=torch.bool))

    first = Says(lambda s: torch.tensor([5.0, 0.0, 0.0, 0.0]).expand(s.rows("x"), 4))
    terms = {
        "label": Term(Labels(), CrossEntropy()),
        "mute": Term(Nothing(), KL()),
        "shut": Term(Says(clear), KL(), gate=Confident(1.1)),
        "one": Term(first, KL(), weight=0.1),
    }
    read = train(terms).vitals()
    assert [next(n for n in terms if f"'{n}'" in w) for w in read.warnings] == ["mute", "shut", "one"]
    assert read.terms["mute"]["disagreement"] is None
    assert sum(t["gradient_share"] or 0.0 for t in read.terms.values()) == pytest.approx(1.0)
    assert train({"label": terms["label"]}).vitals().warnings == []
    model = Net()
    objective = Method({"label": terms["label"]}).bind(model.train())
    model.layers[1].eval()
    objective({"x": torch.randn(8, 6), "y": torch.arange(8) % 4})
    assert "BatchNorm1d" in objective.vitals().warnings[0]


def test_micro_batches_of_one_step_are_one_look():
    objective = Method({"t": Term(Frozen(), KL())}).bind(nn.Linear(6, CLASSES))
    for _ in range(8):
        objective({"x": torch.randn(8, 6), "y": torch.zeros(8).long()})
    assert objective.vitals().terms["t"]["looks"] == 1


@pytest.mark.parametrize("name", list(recipes()))
def test_no_recipe_is_called_dead(name, tmp_path):
    recipe: Any = recipes()[name]
    method = recipe()
    values = of_values(method)
    data = (value_data if values else tiny_data)(24 if method.views.need_unlabelled() else 0)
    options: Any = {"external": external_teacher(), "out": tmp_path, "batch_size": 12}
    fit(building_for(method), data, method, steps=32, lr=0.05, optimizer="sgd", **options)


class Projecting(nn.Module):
    """Rows projected linearly, beside a direction that all of them have."""

    def __init__(self, common: float) -> None:
        super().__init__()
        self.own, self.common = nn.Linear(6, 4, bias=False), common

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"projection": self.own(x) + self.common}


@pytest.mark.parametrize(("common", "narrow"), [(100.0, True), (0.0, False)])
def test_features_of_one_direction_are_warned_of(common: float, narrow: bool) -> None:
    """Five looks from step 50 on are enough, four are not; the spread is the standard deviation of unit vectors."""
    method = Method(
        {"far": Term(CurrentStudent("other"), CosineDistance(), head="projection")},
        views=two("all", "none"),
        forward="separate",
    )
    torch.manual_seed(0)
    model = Projecting(common)
    objective = method.bind(model, clock=TrainingClock(epochs=1, per_epoch=300))
    for step in range(250):
        if step == 249:
            assert not any("one direction" in line for line in objective.vitals().warnings)
        x, other = torch.randn(2, 16, 6, generator=torch.Generator().manual_seed(step))
        objective({"x": x, "other": other}).backward()
        objective.update()
    warned = [line for line in objective.vitals().warnings if "have nearly one direction" in line]
    assert bool(warned) is narrow
    unit = nn.functional.normalize(model(x)["projection"].detach(), dim=1)
    assert spread(model(x)["projection"].detach()) == pytest.approx(
        math.sqrt(float(unit.var(0, correction=0).sum())), abs=1e-3
    )
    read = objective.vitals().terms["far"]["spread"]
    assert read is not None
    assert (read < 0.05) is narrow
