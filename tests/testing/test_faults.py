"""Each conformance check fails for a part that was broken on purpose, with a line that names the fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.memory import SampleMemory
from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, BindArgs, FunctionLoss, Gate, Teacher, Term
from selfdistill.core.step import Forward
from selfdistill.core.targets import Target
from selfdistill.losses import KL, CrossEntropy, LogOneMinusInner, Squared
from selfdistill.teachers import FrozenCopy, Labels, LastEpoch
from selfdistill.testing.conformance import check_gate, check_loss, check_method, check_teacher, check_value
from selfdistill.testing.specimens import CLASSES, tiny

# broken values --------------------------------------------------------------------------------------------------------


@dataclass
class Loose:
    size: int = 1


@dataclass(frozen=True)
class Listed:
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Alone:
    size: int = 1


@dataclass(frozen=True)
class Terse:
    size: int = 1

    def __repr__(self) -> str:
        return "<Terse>"


@dataclass(frozen=True)
class Forgetful:
    size: int = 1
    depth: int = field(default=2, repr=False)


class Plain:
    pass


@pytest.mark.parametrize(
    ("part", "line"),
    [
        (Plain(), "no dataclass"),
        (Loose(), r"Loose.size can be assigned"),
        (Listed([1]), "not hashable"),
        (Alone(), "not equal to it"),
        (Terse(), "does not read back"),
        (Forgetful(depth=3), "reads back as another value"),
    ],
)
def test_what_is_no_value_fails(part, line):
    """Each way of not being a value has its line."""
    with pytest.raises(AssertionError, match=line) as caught:
        check_value(part)
    assert "\n" not in str(caught.value)


# broken losses --------------------------------------------------------------------------------------------------------


def reduces(student: Tensor, target: Target) -> Tensor:
    return F.mse_loss(student, target.value)


def forgets_the_components(student: Tensor, target: Target) -> Tensor:
    return (student - target.value) ** 2


def spreads_its_mean(student: Tensor, target: Target) -> Tensor:
    return (student - target.value).square().mean().expand(student.shape[:-1])


def detached(student: Tensor, target: Target) -> Tensor:
    return (student.detach() - target.value).square().sum(-1)


def flat(student: Tensor, target: Target) -> Tensor:
    return (student * 0 + target.value).square().sum(-1)


def infinite(student: Tensor, target: Target) -> Tensor:
    return (student - target.value).sum(-1) / 0.0


def rough(student: Tensor, target: Target) -> Tensor:
    return (student - student).square().sum(-1).sqrt()  # 0, with a gradient of 0 x infinity


def overwrites(student: Tensor, target: Target) -> Tensor:
    return (student - target.value.sub_(1.0)).square().sum(-1)


@pytest.mark.parametrize(
    ("loss", "line"),
    [
        (reduces, r"returned \(\), not one number for each element \(12,\): losses never reduce"),
        (forgets_the_components, r"returned \(12, 4\)"),
        (spreads_its_mean, "depends on the other rows"),
        (detached, "gives the student no gradient"),
        (flat, "gradient of zero"),
        (infinite, "is not finite"),
        (rough, "gradient that is not finite"),
        (overwrites, "changed its target"),
    ],
)
def test_a_broken_loss_fails(loss, line):
    """Each fault has its line."""
    with pytest.raises(AssertionError, match=line) as caught:
        check_loss(loss)
    assert "\n" not in str(caught.value)


def test_a_loss_of_the_batch_may_say_so():
    """Relational losses look at other rows on purpose; all else still holds for them."""
    check_loss(spreads_its_mean, mixes=True)
    with pytest.raises(AssertionError, match="never reduce"):
        check_loss(reduces, mixes=True)


@dataclass(frozen=True)
class Never(Squared):
    student_spaces: ClassVar[frozenset[str]] = frozenset({"features"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"values"})


def test_a_minimum_that_is_not_one_fails():
    """Too low somewhere, or not reached where student and target agree."""
    with pytest.raises(AssertionError, match=r"below its minimum"):
        check_loss(LogOneMinusInner(), minimum=0.0)
    with pytest.raises(AssertionError, match="off its minimum"):
        check_loss(KL(), minimum=-1.0)


def test_a_loss_that_can_compare_nothing_fails():
    """It declares spaces that exclude each other."""

    with pytest.raises(AssertionError, match="no pair of spaces"):
        check_loss(Never())


# broken gates ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gated(Gate):
    """A gate that does as its name says."""

    fault: str = ""

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        ones = student.new_ones(student.shape[:-1])
        if self.fault == "large":
            return 2 * ones
        if self.fault == "negative":
            return -0.1 * ones
        if self.fault == "nan":
            return ones * float("nan")
        if self.fault == "reduced":
            return ones.mean()
        if self.fault == "by row":
            return ones.flatten(1).mean(-1) if ones.dim() > 1 else ones
        if self.fault == "learns":
            return ones * torch.sigmoid(forward.student(term.view, "values").sum())
        return ones


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("large", r"leaves \[0, 1\]"),
        ("negative", r"leaves \[0, 1\]"),
        ("nan", r"leaves \[0, 1\]"),
        ("reduced", r"returned \(\), not elements"),
        ("by row", r"returned \(12,\), not elements \(12, 3\)"),
        ("learns", "carries gradient"),
    ],
)
def test_a_broken_gate_fails(fault, line):
    """Each fault has its line; without one the same gate passes."""
    check_gate(Gated())
    with pytest.raises(AssertionError, match=line):
        check_gate(Gated(fault))


# broken teachers ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taught(Teacher):
    """A teacher with a state that does as its name says."""

    fault: str = ""

    def start(self, model: nn.Module, args: BindArgs) -> nn.Module:
        if self.fault == "alias":
            state = nn.Module()
            state.module = model
            return state
        if self.fault == "mode":
            state = nn.Module()
            state.module = tiny(5, dropout=0.5).requires_grad_(False)
            return state
        held = FrozenCopy(tiny(5))
        held.words = []  # type: ignore[assignment]
        if self.fault == "trainable":
            held.requires_grad_()
        return held

    def space(self, head: str) -> str:
        return {"undeclared": "words", "other space": "probabilities"}.get(self.fault, "logits")

    def target(self, state: Any, forward: Forward, term: BaseTerm) -> Target:
        module = getattr(state, "module", state)
        value = forward.teacher_output(module, term.view)
        if self.fault == "tensor":
            return value  # type: ignore[return-value]
        if self.fault == "leaks":
            value = forward.student(term.view) * 0.5
        if self.fault == "one row":
            value = value[:1]
        if self.fault == "nan":
            value = value / 0.0 * 0.0
        if self.fault == "counts":
            state.cache.write(torch.tensor([10_000 + len(state.cache)]), value[:1].detach())
            value = value + len(state.cache)
        if self.fault == "unsaved":
            value = value + len(state.words)
        valid = torch.ones(len(value)) if self.fault == "weights for a mask" else None
        return Target(value, "logits", valid)

    def update(self, state: Any, forwards: Sequence[Forward], term: BaseTerm) -> None:
        if self.fault == "unsaved":
            state.words.append(1)


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("undeclared", "declares the space 'words'"),
        ("other space", "declares probabilities and gave a target of logits"),
        ("tensor", "returned a Tensor, not a Target"),
        ("leaks", "lets gradient through"),
        ("one row", "does not fit"),
        ("nan", "not finite"),
        ("weights for a mask", "not of booleans"),
        ("counts", "gives two different targets for one batch"),
        ("mode", r"follows train\(\) and eval\(\)"),
        ("alias", "holds the student's own tensors"),
        ("trainable", "require gradient"),
        ("unsaved", "after its state was saved and loaded"),
    ],
)
def test_a_broken_teacher_fails(fault, line):
    """Each fault has its line; without one the same teacher passes."""
    check_teacher(Taught())
    with pytest.raises(AssertionError, match=line) as caught:
        check_teacher(Taught(fault))
    assert "\n" not in str(caught.value)


def test_a_teacher_that_accepts_no_head_fails():
    """It could not be used in any term."""

    with pytest.raises(AssertionError, match="accepts no head"):
        check_teacher(Nothing())


@dataclass(frozen=True)
class Nothing(Labels):
    def space(self, head: str) -> str:
        return super().space("feature")


# broken methods -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summed(Term):
    """Divides by one whatever the batch: the loss grows with it."""

    def tally(self, state_of: Any, forward: Forward) -> Any:
        found = super().tally(state_of, forward)
        return found._replace(tally=found.tally._replace(count=torch.ones(())))


@dataclass(frozen=True)
class Mute(Term):
    """Its total reaches no weight of the student."""

    def tally(self, state_of: Any, forward: Forward) -> Any:
        found = super().tally(state_of, forward)
        return found._replace(tally=found.tally._replace(total=found.tally.total.detach()))


@dataclass(frozen=True)
class Secret(LastEpoch):
    """Keeps a count that its state_dict does not know of."""

    def start(self, model: nn.Module, args: BindArgs) -> SampleMemory:
        table = SampleMemory()
        table.visits = [0]  # type: ignore[assignment]
        return table

    def update(self, state: Any, forwards: Sequence[Forward], term: BaseTerm) -> None:
        state.visits[0] += 1
        super().update(state, forwards, term)

    def target(self, state: Any, forward: Forward, term: BaseTerm) -> Target:
        found = super().target(state, forward, term)
        return found._replace(value=found.value * 0.9 ** state.visits[0])


@dataclass(frozen=True)
class Borrowed(Teacher):
    """Teaches by the student's own weights under another name."""

    def start(self, model: nn.Module, args: BindArgs) -> nn.Module:
        state = nn.Module()
        state.module = model
        return state

    def target(self, state: Any, forward: Forward, term: BaseTerm) -> Target:
        return Target(forward.teacher_output(state.module, term.view), "logits")


@dataclass(frozen=True)
class Explodes(CrossEntropy):
    def __call__(self, student: Tensor, target: Target) -> Tensor:
        return super().__call__(student, target) / 0.0


@pytest.mark.parametrize(
    ("term", "line"),
    [
        (Summed(Labels(), CrossEntropy()), "on the same batch twice"),
        (Mute(Labels(), CrossEntropy()), "carries no gradient"),
        (Term(Labels(), CrossEntropy(), weight=0.0), "carries no gradient"),
        (Term(Labels(), Explodes()), "the loss is (inf|nan)"),
        (Term(Secret(), CrossEntropy()), "goes on differently"),
        (Term(Borrowed(), KL()), "a teacher changes when the student learns"),
        (Term(Labels(), KL(), head="feature"), "term 't': labels say nothing"),
        (Term(Labels(), CrossEntropy(), view="nowhere"), "'nowhere'"),
        (Term(Labels(), FunctionLoss(lambda s, t: s.sum(-1))), "does not read back"),
    ],
)
def test_a_broken_method_fails(term, line, monkeypatch):
    """Each fault has its line; beside it a sound term learns, except where the fault is that nothing does."""
    monkeypatch.setattr("selfdistill.core.step.TrainingClock.observed", False)  # some would be seen there first
    check_method(Method({"t": Term(Labels(), CrossEntropy())}))
    terms = {"t": term}
    if "gradient" not in line:
        terms["label"] = Term(Labels(), CrossEntropy())
    with pytest.raises(AssertionError, match=line) as caught:
        check_method(Method(terms))
    assert "\n" not in str(caught.value)


def test_an_own_model_can_be_tried():
    """A factory for six inputs and four classes; one that ignores its input does not learn."""
    method = Method({"t": Term(Labels(), CrossEntropy())})
    check_method(method, lambda: nn.Linear(6, CLASSES))

    class Deaf(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), CLASSES) + 0 * self.bias.sum()

    with pytest.raises(AssertionError, match="no gradient reaches the student"):
        check_method(method, lambda: Deaf(6, CLASSES))
