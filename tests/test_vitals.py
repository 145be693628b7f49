"""Vitals: each dead signal is built here and caught, and no recipe of ours is ever called dead."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.core import Always, Gate, Method, Step, Target, Teacher, Term
from selfdistill.errors import VitalsError
from selfdistill.gates import Confident, Correct
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import recipes
from selfdistill.teachers import Ema, Frozen, History, Itself, Labels
from selfdistill.vitals import figures, looked_at

from .harness import build, external_teacher, tiny_data

CLASSES, ROWS = 4, 32


@dataclass(frozen=True)
class Says(Teacher):
    """Says what a function of the step says."""

    what: Callable[[Step], Tensor]
    called: str = "logits"

    def space(self, head: str) -> str:
        return self.called

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        return Target(self.what(step), self.called)


@dataclass(frozen=True)
class Inverted(Gate):
    """Keeps what it should drop, or makes no claim."""

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        top = target.probabilities(student.shape[-1]).amax(-1)
        return (top < top.median()).float()


@dataclass(frozen=True)
class Unclaimed(Inverted):
    prefers: ClassVar[str | None] = None


class Net(nn.Module):
    """A network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def clear(step: Step) -> Tensor:
    """Confident and right: logits of the labels."""
    return F.one_hot(step.labels("x"), CLASSES).float() * (2 + torch.rand(step.rows("x"), 1) * 4)


def train(terms: dict[str, Term], steps: int = 60, lr: float = 0.1, model: nn.Module | None = None) -> Any:
    """A loop of one's own over learnable data."""
    torch.manual_seed(0)
    model = model or Net()
    objective = Method(terms).bind(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for _ in range(steps):
        y = torch.randint(0, CLASSES, (ROWS,))
        x = torch.cat([F.one_hot(y, CLASSES).float() * 2, torch.zeros(ROWS, 2)], 1) + 0.3 * torch.randn(ROWS, 6)
        optimizer.zero_grad()
        objective({"x": x, "y": y, "id": torch.arange(ROWS)}).backward()
        optimizer.step()
        objective.update()
    return objective


def caught(term: Term, **options: Any) -> VitalsError:
    with pytest.raises(VitalsError) as found:
        train({"label": Term(Labels(), CrossEntropy()), "odd": term}, **options)
    assert "'odd'" in str(found.value)
    assert "\n" not in str(found.value)
    return found.value


def test_few_steps_are_looked_at():
    assert [s + 1 for s in range(160) if looked_at(s)] == [1, 2, 4, 8, 16, 32, 50, 100, 150]


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


@pytest.mark.parametrize("cut", [lambda s: s.detach(), lambda s: s.detach() + 0 * torch.zeros_like(s)])
def test_a_loss_without_the_students_output_is_caught(cut):
    assert caught(Term(Itself(), lambda s, t: KL()(cut(s), t)), steps=1).vital == "no-gradient"

    def of_the_target(student: Tensor, target: Target) -> Tensor:
        own = target.value.clone().requires_grad_()
        return own.square().sum(-1)

    assert caught(Term(Itself(), of_the_target), steps=1).vital == "no-gradient"


@pytest.mark.parametrize("loss", [KL(), KL(4.0), CrossEntropy()])
def test_a_teacher_that_is_the_student_is_caught(loss):
    assert caught(Term(Itself(), loss)).vital == "teacher-is-student"
    with pytest.raises(VitalsError, match="only"):
        train({"only": Term(Itself(), loss)})


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
    def top(step: Step) -> Tensor:
        p = clear(step).softmax(-1)
        return torch.where(p == p.amax(-1, keepdim=True), 0.9 * p, torch.zeros_like(p))

    assert caught(Term(Says(top, "probabilities"), CrossEntropy()), steps=1).vital == "not-a-distribution"
    below = Says(lambda s: torch.tensor([1.5, -0.5, 0.0, 0.0]).expand(s.rows("x"), 4), "probabilities")
    assert caught(Term(below, CrossEntropy()), steps=1).vital == "not-a-distribution"
    assert (History().normalised, History(start_from="labels").normalised) == (False, True)
    train({"label": Term(Labels(), CrossEntropy()), "past": Term(History(), CrossEntropy())})


def test_a_target_softmaxed_twice_is_caught():
    twice = Says(lambda s: clear(s).softmax(-1).softmax(-1), "probabilities")
    assert caught(Term(twice, CrossEntropy(), weight=0.01), lr=0.5).vital == "uniform-target"
    once = Says(lambda s: clear(s).softmax(-1), "probabilities")
    train({"label": Term(Labels(), CrossEntropy()), "once": Term(once, CrossEntropy(), weight=0.01)}, lr=0.5)


def test_an_inverted_gate_is_caught():
    assert caught(Term(Says(clear), KL(), gate=Inverted()), steps=600).vital == "inverted-gate"
    for gate in (Unclaimed(), Confident(0.99), Correct(), Always()):
        train({"fine": Term(Says(clear), KL(), gate=gate)}, steps=600)


def test_a_teachers_pass_that_moves_the_students_buffers_is_caught():
    model = Net()

    def through(step: Step) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(step.batch["x"].x + 0.1)
        return found

    assert caught(Term(Says(through), KL()), steps=1, model=model).vital == "teacher-moved-buffers"
    twin = copy.deepcopy(model)
    fine = Term(Says(lambda s: twin(s.batch["x"].x).detach()), KL())
    train({"label": Term(Labels(), CrossEntropy()), "fine": fine}, model=model)


def test_a_term_of_weight_0_is_left_alone():
    train({"label": Term(Labels(), CrossEntropy()), "off": Term(Itself(), KL(), weight=0.0)})


def test_warnings():
    @dataclass(frozen=True)
    class Nothing(Teacher):
        def target(self, state: nn.Module, step: Step, term: Term) -> Target:
            z = step.student(term.view)
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
    data = tiny_data(24 if method.views.need_unlabelled() else 0)
    options: Any = {"external": external_teacher(), "out": tmp_path, "batch_size": 12}
    fit(build, data, method, steps=40, lr=0.05, optimizer="sgd", **options)
