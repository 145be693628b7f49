"""Silent failures seen in public code, by their number: targets, losses and gates."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core import Always, Step, Target, Term
from selfdistill.errors import VitalsError
from selfdistill.gates import Confident, Correct
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import Itself, Labels

from ..signals import Inverted, Net, Says, Unclaimed, caught, clear, train


@pytest.mark.parametrize("loss", [KL(), KL(4.0), CrossEntropy()])
def test_bug_01_a_teacher_that_is_the_student_is_caught(loss: Any) -> None:
    assert caught(Term(Itself(), loss)).vital == "teacher-is-student"
    with pytest.raises(VitalsError, match="only"):
        train({"only": Term(Itself(), loss)})


@pytest.mark.parametrize("cut", [lambda s: s.detach(), lambda s: s.detach() + 0 * torch.zeros_like(s)])
def test_bug_02_a_loss_without_the_students_output_is_caught(cut: Any) -> None:
    assert caught(Term(Itself(), lambda s, t: KL()(cut(s), t)), steps=1).vital == "no-gradient"

    def of_the_target(student: Tensor, target: Target) -> Tensor:
        own = target.value.clone().requires_grad_()
        return own.square().sum(-1)

    assert caught(Term(Itself(), of_the_target), steps=1).vital == "no-gradient"


def test_bug_03_a_target_softmaxed_twice_is_caught() -> None:
    twice = Says(lambda s: clear(s).softmax(-1).softmax(-1), "probabilities")
    assert caught(Term(twice, CrossEntropy(), weight=0.01), lr=0.5).vital == "uniform-target"
    once = Says(lambda s: clear(s).softmax(-1), "probabilities")
    train({"label": Term(Labels(), CrossEntropy()), "once": Term(once, CrossEntropy(), weight=0.01)}, lr=0.5)


def test_bug_13_a_teachers_pass_that_moves_the_students_buffers_is_caught() -> None:
    model = Net()

    def through(step: Step) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(step.batch["x"].x + 0.1)
        return found

    assert caught(Term(Says(through), KL()), steps=1, model=model).vital == "teacher-moved-buffers"
    twin = copy.deepcopy(model)
    fine = Term(Says(lambda s: twin(s.batch["x"].x).detach()), KL())
    train({"label": Term(Labels(), CrossEntropy()), "fine": fine}, model=model)


def test_bug_15_an_inverted_gate_is_caught() -> None:
    assert caught(Term(Says(clear), KL(), gate=Inverted()), steps=600).vital == "inverted-gate"
    for gate in (Unclaimed(), Confident(0.99), Correct(), Always()):
        train({"fine": Term(Says(clear), KL(), gate=gate)}, steps=600)
