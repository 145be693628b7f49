"""Distribution alignment around other teachers: by hand, with their own states inside."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import BindArgs, Term
from selfdistill.core.step import Batch, Forward, Rows, TrainingClock
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL, Squared
from selfdistill.methods.validate import check_method
from selfdistill.teachers import ClassAligned, CurrentStudent, Ema, Frozen, History, Labels
from selfdistill.testing.specimens import CLASSES, batch_of, inputs, pool, tiny


def a_step(x: Tensor, y: Tensor | None = None) -> Forward:
    return Forward(nn.Identity(), Batch({"x": Rows(x, y, torch.arange(len(x)))}), TrainingClock()).run()


def test_the_running_mean_becomes_the_wanted_shares() -> None:
    """q by hand over three batches; the aligned word is p / q, normalised, and the batch at hand counts."""
    teacher, q = ClassAligned(CurrentStudent(), 0.6), torch.zeros(0)
    term, state = Term(teacher, KL()), teacher.start(nn.Identity(), BindArgs())
    for k in range(3):
        z = 2 * torch.randn(8, 3, generator=torch.Generator().manual_seed(k))
        p, step = z.softmax(1), a_step(z)
        q = p.mean(0) if k == 0 else 0.6 * q + 0.4 * p.mean(0)
        target = teacher.target(state, step, term)
        assert target.space == "probabilities"
        torch.testing.assert_close(target.value, (p / q) / (p / q).sum(1, keepdim=True))
        teacher.update(state, [step], term)
        torch.testing.assert_close(state.get_buffer("marginal"), q)


def test_a_class_that_is_said_too_often_is_said_less() -> None:
    """To uniform shares, and to those of the labels."""
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0.0, 0.0])
    labels = pool(TrainingClock())._replace(targets=torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2]))
    means = {}
    for to in ("uniform", "labels"):
        teacher = ClassAligned(CurrentStudent(), 0.0, to)
        state = teacher.start(nn.Identity(), BindArgs())
        teacher.prepare(state, labels)
        means[to] = teacher.target(state, a_step(z), Term(teacher, KL())).value.mean(0)
    assert float(means["uniform"][0]) < float(z.softmax(1).mean(0)[0]) - 0.1
    assert float(means["labels"][0]) > float(means["uniform"][0]) + 0.1
    assert float(means["labels"][2]) < float(means["uniform"][2])


def test_rows_that_say_nothing_count_for_nothing() -> None:
    """Labels: the one row without one is neither in the mean nor taught."""
    teacher, y = ClassAligned(Labels(), 0.0), torch.tensor([0, 0, 1, -1])
    state = teacher.start(nn.Identity(), BindArgs())
    target = teacher.target(state, a_step(torch.zeros(4, 2), y), Term(teacher, KL()))
    assert target.valid is not None
    assert target.valid.tolist() == [True, True, True, False]
    torch.testing.assert_close(target.value[:3], torch.eye(2)[y[:3]])


def test_aligning_to_labels_that_nobody_brought_is_an_error() -> None:
    teacher = ClassAligned(to="labels")
    with pytest.raises(RecipeError, match=r"objective\.prepare\(pool\)"):
        teacher.target(teacher.start(nn.Identity(), BindArgs()), a_step(torch.zeros(2, 3)), Term(teacher, KL()))


@pytest.mark.parametrize("inner", [Ema(0.5), History(0.8), Frozen()], ids=str)
def test_the_state_of_the_teacher_inside_goes_on(inner: Any) -> None:
    """It is started, updated, saved and loaded, as if it stood alone."""
    wrapped, alone = (
        Method({"t": Term(teacher, Squared() if isinstance(inner, History) else KL())})
        for teacher in (ClassAligned(inner, 0.5), inner)
    )
    states = []
    for method in (wrapped, alone):
        model = tiny(0)
        objective = method.bind(model)
        for k in range(3):
            objective(batch_of({"x": "labelled"}, k)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.01 * k)
                    p.grad = None
            objective.update()
        states.append(next(iter(objective.states.values())))
    mine, theirs = states[0].get_submodule("inner").state_dict(), states[1].state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    again = next(iter(wrapped.bind(tiny(0)).states.values()))
    again.load_state_dict(copy.deepcopy(states[0].state_dict()))
    assert torch.equal(again.get_buffer("marginal"), states[0].get_buffer("marginal"))


def test_it_looks_where_the_teacher_inside_looks() -> None:
    """Its view is checked, forwarded, and of the same rows."""
    method = Method({"t": Term(ClassAligned(CurrentStudent(view="weak")), KL())})
    assert method.student_views() == (("x",), ("weak",))
    with pytest.raises(SpaceError, match="'weak' is not among"):
        check_method(method)
    with pytest.raises(SpaceError, match="'weak' is not among"):
        check_method(Method({"t": Term(ClassAligned(Ema(view="weak")), KL())}))


def test_values_have_no_classes_to_align() -> None:
    with pytest.raises(SpaceError, match=r"for 'values' .* gives values"):
        check_method(Method({"t": Term(ClassAligned(), Squared(), head="values")}))
    assert inputs(torch.arange(2)).shape[1] > CLASSES
