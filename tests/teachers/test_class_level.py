"""Teachers of classes: by hand, and where a class or a row has nothing to say."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import TrainingClock
from selfdistill.errors import RecipeError, VitalsError
from selfdistill.losses import CrossEntropy
from selfdistill.teachers import BetaRanked, ClassMean, Labels, Virtual


def said(objective, batch):
    """What the method's only teacher says of a batch."""
    term = objective.method.terms["t"]
    return term.teacher.target(
        objective.states[f"t_{type(term.teacher).__name__.lower()}"], objective.forward_views(batch), term
    )


def bound(teacher, weight, clock=None):
    model = nn.Linear(2, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor(weight))
    return Method({"t": Term(teacher, CrossEntropy())}).bind(model, clock=clock)


def test_class_means_are_of_rows_that_were_right_and_change_between_epochs_only():
    """Class 0 twice right, class 1 never, class 2 once: with two steps an epoch nothing changes after the first."""
    objective = bound(ClassMean(), [[2.0, 0.0], [-9.0, 0.0], [0.0, 1.0]], TrainingClock(epochs=3, per_epoch=2))
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    batch = {"x": x, "y": torch.tensor([0, 0, 1, 2, -1])}
    assert torch.allclose(said(objective, batch).value, torch.full((5, 3), 1 / 3))
    assert said(objective, batch).valid.tolist() == [True] * 4 + [False]
    p = objective.student(x).softmax(1).detach()
    for step in range(2):
        objective(batch)
        assert torch.allclose(said(objective, batch).value, torch.full((5, 3), 1 / 3)), step
        objective.update()
    found = said(objective, batch).value
    assert torch.allclose(found[0], (p[0] + p[1]) / 2)
    assert torch.allclose(found[2], torch.full((3,), 1 / 3)), "no row of class 1 was right"
    assert torch.allclose(found[3], p[3])


def test_a_virtual_teacher_is_right_as_often_as_it_is_told():
    found = said(bound(Virtual(0.7), [[0.0, 0.0]] * 3), {"x": torch.zeros(2, 2), "y": torch.tensor([1, -1])})
    assert torch.allclose(found.value[0], torch.tensor([0.15, 0.7, 0.15]))
    assert found.valid.tolist() == [True, False]
    with pytest.raises(RecipeError, match=r"inside \(0, 1\)"):
        Virtual(1.0)


def test_a_surer_row_gets_a_larger_draw():
    """In the order of the true class's probability, whatever the other classes have; rows without a label have none."""
    objective = bound(BetaRanked(a=3.0), [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    x = torch.tensor([[4.0, 0.0], [0.0, 0.0], [0.0, 2.0], [9.0, 9.0]])
    found = said(objective, {"x": x, "y": torch.tensor([0, 2, 1, -1]), "id": torch.arange(4)})
    correct = found.value[range(3), [0, 2, 1]]
    assert correct[0] > correct[2] > correct[1] > 0
    assert torch.allclose(found.value[:3].sum(1), torch.ones(3))
    assert found.valid.tolist() == [True] * 3 + [False]


def test_draws_have_the_mean_and_the_spread_of_their_distribution():
    """Beta(a, 1) has mean a / (a + 1) and variance a / ((a + 1)^2 (a + 2)); 4,000 draws, five standard errors."""
    objective = bound(BetaRanked(a=3.0), [[0.0, 0.0]] * 3)
    y = torch.zeros(4000, dtype=torch.int64)
    drawn = said(objective, {"x": torch.zeros(4000, 2), "y": y, "id": torch.arange(4000)}).value[:, 0]
    variance = 3 / (16 * 5)
    assert abs(float(drawn.mean()) - 0.75) < 5 * (variance / 4000) ** 0.5
    assert abs(float(drawn.var()) - variance) < 0.1 * variance
    assert len(drawn.unique()) > 3900


def test_a_teacher_that_is_even_on_purpose_is_not_taken_for_a_broken_one():
    """Sure students beside a uniform first epoch: neither refused nor warned of; another teacher would be refused."""
    x = torch.eye(10).repeat(4, 1)
    y = torch.arange(10).repeat(4)

    class Uniform(Virtual):
        pass

    for teacher in (ClassMean(), Uniform(0.1)):
        model = nn.Linear(10, 10)
        terms = {"label": Term(Labels(), CrossEntropy()), "even": Term(teacher, CrossEntropy(), weight=0.1)}
        objective = Method(terms).bind(model, clock=TrainingClock(epochs=1, per_epoch=60))
        optimizer = torch.optim.SGD(model.parameters(), lr=50.0)

        def train(steps: int, objective=objective, optimizer=optimizer) -> None:
            for _ in range(steps):
                optimizer.zero_grad()
                objective({"x": x, "y": y}).backward()
                optimizer.step()
                objective.update()

        if teacher == ClassMean():
            train(55)
            assert objective.vitals().warnings == []
            continue
        with pytest.raises(VitalsError, match="uniform-target"):
            train(55)
