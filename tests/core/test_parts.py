"""The composer: terms, tallies, the step, and methods as values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import losses, teachers
from selfdistill.core.objective import Method
from selfdistill.core.parts import (
    BaseTerm,
    FunctionLoss,
    Gate,
    PerElement,
    PerRow,
    PerTrust,
    PerView,
    Tally,
    Teacher,
    Term,
    TermResult,
)
from selfdistill.core.step import Forward, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import SpaceError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import plain
from selfdistill.teachers import CurrentStudent, Ema, Labels
from selfdistill.testing.specimens import CLASSES, WIDTH, inputs, tiny
from selfdistill.views import View, Views


@dataclass(frozen=True)
class Says(Teacher):
    """A teacher of fixed words."""

    value: Any
    valid: Any = None

    def space(self, head: str) -> str:
        return "values"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        valid = None if self.valid is None else torch.tensor(self.valid)
        return Target(torch.tensor(self.value), "values", valid)


@dataclass(frozen=True)
class Trusts(Gate):
    """A gate of fixed trust."""

    trust: Any

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return torch.tensor(self.trust)


@FunctionLoss
def difference(student: Tensor, target: Target) -> Tensor:
    return (student - target.value).squeeze(-1)


def measured(term: Any, output: Any) -> TermResult:
    """The term on rows for which the model says ``output``."""
    x = torch.tensor(output).requires_grad_()
    objective = Method({"t": term}).bind(nn.Identity())
    return objective.measure({"x": x})["t"]


# one term on one batch ------------------------------------------------------------------------------------------------

WORDS = [[1.0], [2.0], [4.0], [8.0]]
ZEROS = ((0.0,),) * 4


@pytest.mark.parametrize(
    ("reduction", "count", "mean"),
    [(PerElement(), 3.0, 5.5 / 3), (PerTrust(), 2.25, 5.5 / 2.25), (PerRow(), 3.0, 5.5 / 3), (PerView(), 4.0, 5.5 / 4)],
)
def test_what_a_term_divides_by(reduction, count, mean):
    """Losses 1, 2, 4, 8 with trust 1, 0.25, 1, 1, of which the last row has no target."""
    gate, teacher = Trusts((1.0, 0.25, 1.0, 1.0)), Says(ZEROS, (True, True, True, False))
    found = measured(Term(teacher, difference, gate=gate, reduction=reduction), WORDS)
    assert float(found.tally.total.detach()) == 1 + 0.5 + 4
    assert float(found.tally.count) == count
    assert float(found.kept) == 2.25
    assert float(found.valid) == 3
    objective = Method({"t": Term(teacher, difference, gate=gate, reduction=reduction)}).bind(nn.Identity())
    assert float(objective({"x": torch.tensor(WORDS, requires_grad=True)}).detach()) == pytest.approx(mean)


def test_exits_of_a_row_add_up_over_rows():
    """Three elements a row: divide by the rows with a target, by their elements, or by the elements of all rows."""
    output = [[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]], [[7.0], [8.0], [9.0]]]
    teacher = Says(((0.0,), (0.0,), (0.0,)), (True, True, False))
    for reduction, count in ((PerRow(), 2.0), (PerElement(), 6.0), (PerView(), 9.0)):
        found = measured(Term(teacher, difference, reduction=reduction), output)
        assert float(found.tally.total.detach()) == 21
        assert float(found.tally.count) == count


def test_a_row_without_target_counts_for_nothing_even_if_its_loss_is_not_finite():
    """A mask, never a zero: neither value nor gradient of such a row gets through."""
    x: Any = torch.tensor([[1.0], [2.0]], requires_grad=True)
    term = Term(
        Says(((0.0,), (float("nan"),)), (True, False)), FunctionLoss(lambda s, t: ((s - t.value) ** 2).squeeze(-1))
    )
    loss = Method({"t": term}).bind(nn.Identity())({"x": x})
    loss.backward()
    assert float(loss.detach()) == 1.0
    assert x.grad.tolist() == [[2.0], [0.0]]


def test_nothing_valid_is_zero_not_nan():
    """A term whose every row lacks a target adds 0; the other terms go on."""
    terms = {
        "a": Term(Says(ZEROS), difference),
        "b": Term(Says(ZEROS, (False,) * 4), difference, reduction=PerTrust(), weight=100.0),
    }
    objective = Method(terms).bind(nn.Identity())
    assert float(objective({"x": torch.tensor(WORDS, requires_grad=True)}).detach()) == 15 / 4


@pytest.mark.parametrize("views", [{}, {"extra": torch.zeros(0, 1)}])
def test_an_absent_view_is_an_empty_tally(views):
    """A term whose view has no rows in this batch counts for nothing."""
    terms = {"a": Term(Says(ZEROS), difference), "b": Term(Says(ZEROS), difference, view="extra")}
    objective = Method(terms).bind(nn.Identity())
    found = objective.measure({"x": torch.tensor(WORDS, requires_grad=True), **views})
    assert [float(v) for v in (*found["b"].tally, found["b"].kept, found["b"].valid)] == [0, 0, 0, 0]
    assert float(objective.combine(found).detach()) == 15 / 4
    objective.update()


def test_a_teachers_view_that_is_not_there_is_named():
    """A teacher's view that the batch lacks is named."""
    for teacher in (CurrentStudent(view="weak"), Ema(view="weak")):
        objective = Method({"t": Term(teacher, KL())}).bind(nn.Linear(2, 2))
        with pytest.raises(SpaceError, match=r"'weak' is not in the batch \(views there: x\)"):
            objective({"x": torch.zeros(3, 2)})


def test_a_loss_that_reduces_is_refused():
    """A mean of means cannot be written by accident."""
    term = Term(Says(ZEROS), FunctionLoss(lambda s, t: F.mse_loss(s, t.value)))
    with pytest.raises(SpaceError, match="never reduces"):
        measured(term, WORDS)


def test_no_gradient_reaches_a_teacher_or_goes_through_trust():
    """A teacher that forgets to detach, and a gate that judges by the student, still teach one way only."""
    weight = torch.tensor(2.0, requires_grad=True)

    @dataclass(frozen=True)
    class Leaks(Teacher):
        def space(self, head: str) -> str:
            return "values"

        def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
            return Target(weight * forward.student("x"), "values")

    @dataclass(frozen=True)
    class Soft(Gate):
        def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
            return torch.sigmoid(student).squeeze(-1)

    x = torch.tensor(WORDS, requires_grad=True)
    squared = FunctionLoss(lambda s, t: ((s - t.value) ** 2).squeeze(-1))
    Method({"t": Term(Leaks(), squared, gate=Soft())}).bind(nn.Identity())({"x": x}).backward()
    assert weight.grad is None
    with torch.no_grad():
        torch.testing.assert_close(x.grad, torch.sigmoid(x) * 2 * (x - 2 * x) / 4)


def test_tallies_add_up_to_the_loss_of_the_whole_batch():
    """Micro-batches of different sizes and shares of trust: add totals and counts, divide last."""
    model = nn.Linear(WIDTH, CLASSES)
    y = torch.tensor([0, -1, 1, 2, -1, -1, 3, 0, 1])
    terms = {
        "t": Term(Labels(), CrossEntropy()),
        "u": Term(CurrentStudent(head="logits"), CrossEntropy(2.0), weight=0.3),
    }
    objective = Method(terms).bind(model)
    x = inputs(torch.arange(9))
    whole = objective({"x": x, "y": y})
    (expected,) = torch.autograd.grad(whole, model.weight)
    parts = [objective.measure({"x": x[rows], "y": y[rows]}) for rows in (slice(0, 2), slice(2, 3), slice(3, 9))]
    counts = {name: torch.stack([p[name].tally.count for p in parts]).sum() for name in terms}
    added = torch.stack([objective.combine(p, counts) for p in parts]).sum()
    torch.testing.assert_close(added, whole, rtol=1e-6, atol=1e-6)
    (found,) = torch.autograd.grad(added, model.weight)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_weights_follow_the_clock_and_the_figures_report_them():
    """Loss = sum of weight x mean; a weight of zero adds exactly nothing and no gradient."""
    weight = lambda clock: [0.0, 2.0, -1.0][clock.step]
    terms = {"a": Term(Says(ZEROS), difference), "b": Term(Says(((10.0,),) * 4), difference, weight=weight)}
    objective = Method(terms).bind(nn.Identity(), clock=TrainingClock(epochs=3))
    for step in range(3):
        x: Any = torch.tensor(WORDS, requires_grad=True)
        loss = objective({"x": x})
        loss.backward()
        objective.update()
        w = [0.0, 2.0, -1.0][step]
        assert float(loss.detach()) == pytest.approx(15 / 4 + w * (15 / 4 - 10))
        assert x.grad.tolist() == [[(1 + w) / 4]] * 4
        figure = objective.figures["b"]
        assert (float(figure.loss), figure.weight, float(figure.kept)) == (15 / 4 - 10, w, 4.0)


def test_a_term_of_its_own_needs_the_protocol_only():
    """A `BaseTerm` with a ``tally`` is a term: no teacher, no gate and no loss."""

    @dataclass(frozen=True)
    class Norm(BaseTerm):
        weight: float = 0.5

        def tally(self, state_of: Any, forward: Forward) -> TermResult:
            z = forward.student(self.view, self.head)
            rows = z.new_tensor(float(len(z)))
            return TermResult(Tally(z.square().sum(), rows), rows, rows)

    terms: Any = {"norm": Norm()}
    objective = Method(terms).bind(nn.Identity())
    assert float(objective({"x": torch.tensor(WORDS, requires_grad=True)}).detach()) == 0.5 * 85 / 4
    objective.update()


# the step -------------------------------------------------------------------------------------------------------------


class Counting(nn.Linear):
    """Counts its forward passes and the rows of each."""

    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.rows: list[int] = []
        self.grads: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        self.rows.append(len(x))
        self.grads.append(torch.is_grad_enabled())
        return super().forward(x)


@pytest.mark.parametrize(("forward", "rows", "grads"), [("fused", [10], [True]), ("separate", [4, 6], [True, False])])
def test_each_view_is_forwarded_once(forward, rows, grads):
    """However many terms look at it; a view that only teaches runs without a graph when run apart."""
    terms = {
        "label": Term(Labels(), CrossEntropy()),
        "again": Term(Labels(), CrossEntropy(smoothing=0.1)),
        "other": Term(CurrentStudent(view="other"), KL()),
        "more": Term(CurrentStudent(view="other"), KL(2.0)),
    }
    model = Counting()
    method = Method(terms, forward=forward)
    x, other = Rows(inputs(torch.arange(4)), torch.arange(4)), Rows(inputs(torch.arange(6)))
    assert method.student_views() == (("x",), ("other",))
    method.bind(model).forward_views({"x": x, "other": other})
    assert model.rows == rows
    assert model.grads == grads


def test_each_teacher_sees_each_view_once():
    """Two terms of one average, two heads: one pass a view; both share one set of weights."""
    model = tiny(0)
    terms = {
        "a": Term(Ema(0.9), KL()), "b": Term(Ema(0.9), losses.Squared(), head="feature"),
        "c": Term(Ema(0.9, view="other"), KL(2.0)), "d": Term(Ema(0.5), KL()),
    }  # fmt: skip
    objective = Method(terms).bind(model)
    averages = [s for s in objective.states.values() if isinstance(s, teachers.FrozenCopy)]
    assert len(averages) == 2
    calls: list[int] = []
    averages[0].module.register_forward_hook(lambda *_: calls.append(1))
    objective({"x": inputs(torch.arange(4)), "other": inputs(torch.arange(4) + 9)})
    assert len(calls) == 2


def test_a_model_of_half_precision_is_compared_in_float32():
    """Losses are computed in float32 whatever the model's precision."""
    model = nn.Linear(WIDTH, CLASSES, dtype=torch.bfloat16)
    forward = plain().bind(model).forward_views({"x": inputs(torch.arange(3)).bfloat16(), "y": torch.arange(3)})
    assert forward.student("x").dtype == torch.float32


@pytest.mark.parametrize("output", [(torch.zeros(3, 2),), None, [1, 2]])
def test_a_model_that_returns_something_else_is_refused(output):
    """A tensor or named tensors; what came is named."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return output

    with pytest.raises(SpaceError, match=type(output).__name__):
        plain().bind(Odd())({"x": torch.zeros(3, 2), "y": torch.zeros(3, dtype=torch.int64)})


def test_what_is_no_tensor_in_a_mapping_is_left_alone():
    """Models that return a loss or a cache beside their logits are taken as they are."""

    class Rich(nn.Module):
        def forward(self, x: Tensor) -> Mapping[str, Any]:
            return {"logits": x, "loss": torch.tensor(0.0), "cache": [x], "hidden": None}

    loss = plain().bind(Rich())({"x": torch.zeros(3, 2, requires_grad=True), "y": torch.zeros(3, dtype=torch.int64)})
    assert float(loss.detach()) == pytest.approx(0.6931, abs=1e-4)


def test_labels_that_are_missing_are_asked_for():
    """A batch without 'y' under a method that needs it."""
    with pytest.raises(SpaceError, match="'y'"):
        plain().bind(nn.Linear(2, 2))({"x": torch.zeros(3, 2)})


# methods are values ---------------------------------------------------------------------------------------------------


def test_equal_methods_hash_alike_whatever_the_order_of_their_terms():
    """A recipe is a value: usable as a key."""
    a, b = Term(Labels(), CrossEntropy()), Term(Ema(), KL(), weight=0.5)
    one, other = Method({"a": a, "b": b}), Method({"b": b, "a": a})
    assert one == other
    assert hash(one) == hash(other)
    assert {one: 1}[other] == 1
    assert one != Method({"a": a, "b": dataclasses.replace(b, weight=0.6)})


def test_the_terms_of_a_method_are_its_own():
    """Changing the mapping it was made of changes nothing."""
    terms = {"a": Term(Labels(), CrossEntropy())}
    method = Method(terms)
    terms["b"] = terms["a"]
    assert list(method.terms) == ["a"]


@pytest.mark.parametrize(
    "value",
    [plain(), Term(Labels(), CrossEntropy()), Labels(), CrossEntropy(), Ema(), View("x"), Views(), TrainingClock()],
)
def test_assignment_is_refused(value):
    """Frozen: nothing about a recipe changes after it was made."""
    for name in [f.name for f in dataclasses.fields(value)] or ["anything"]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, None)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Method({}),
        lambda: Method({"a.b": Term(Labels(), CrossEntropy())}),
        lambda: Method({"a": Term(Labels(), CrossEntropy())}, forward="both"),
        lambda: Method({"a": Term(Labels(), CrossEntropy())}, generations=0),
        lambda: Term(Labels(), CrossEntropy(), reduction="all"),  # type: ignore[arg-type]
    ],
)
def test_recipes_that_make_no_sense_are_refused_when_made(wrong):
    """No term, a name with a dot, an unknown forward plan or mean, no generation."""
    with pytest.raises(SpaceError):
        wrong()
