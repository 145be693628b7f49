"""Silent failures seen in public code, by their number: targets, losses and gates."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.parts import Always, BaseTerm, FunctionLoss, Gate, Term
from selfdistill.core.step import Forward
from selfdistill.core.targets import Target
from selfdistill.errors import VitalsError
from selfdistill.gates import Agreement, Confident, Correct
from selfdistill.language.contexts import check_prompts
from selfdistill.losses import KL, CrossEntropy, GaussianKL, Squared
from selfdistill.teachers import CurrentStudent, Ema, Labels
from tests.parts import LOSSES
from tests.signals import CLASSES, LABEL, Inverted, Net, Says, Unclaimed, caught, clear, train


@pytest.mark.parametrize("loss", [KL(), KL(4.0), CrossEntropy()])
def test_bug_01_a_teacher_that_is_the_student_is_caught(loss: Any) -> None:
    assert caught(Term(CurrentStudent(), loss)).vital == "teacher-is-student"
    with pytest.raises(VitalsError, match="only"):
        train({"only": Term(CurrentStudent(), loss)})


@pytest.mark.parametrize("cut", [lambda s: s.detach(), lambda s: s.detach() + 0 * torch.zeros_like(s)])
def test_bug_02_a_loss_without_the_students_output_is_caught(cut: Any) -> None:
    assert caught(Term(CurrentStudent(), FunctionLoss(lambda s, t: KL()(cut(s), t))), steps=1).vital == "no-gradient"

    @FunctionLoss
    def of_the_target(student: Tensor, target: Target) -> Tensor:
        own = target.value.clone().requires_grad_()
        return own.square().sum(-1)

    assert caught(Term(CurrentStudent(), of_the_target), steps=1).vital == "no-gradient"


def test_bug_03_a_target_softmaxed_twice_is_caught() -> None:
    twice = Says(lambda s: clear(s).softmax(-1).softmax(-1), "probabilities")
    assert caught(Term(twice, CrossEntropy(), weight=0.01), lr=0.5).vital == "uniform-target"
    once = Says(lambda s: clear(s).softmax(-1), "probabilities")
    train({"label": Term(Labels(), CrossEntropy()), "once": Term(once, CrossEntropy(), weight=0.01)}, lr=0.5)


def test_bug_13_a_teachers_pass_that_moves_the_students_buffers_is_caught() -> None:
    model = Net()

    def through(forward: Forward) -> Tensor:
        with torch.no_grad():
            found: Tensor = model(forward.batch["x"].x + 0.1)
        return found

    assert caught(Term(Says(through), KL()), steps=1, model=model).vital == "teacher-moved-buffers"
    twin = copy.deepcopy(model)
    fine = Term(Says(lambda s: twin(s.batch["x"].x).detach()), KL())
    train({"label": Term(Labels(), CrossEntropy()), "fine": fine}, model=model)


def test_bug_15_an_inverted_gate_is_caught() -> None:
    assert caught(Term(Says(clear), KL(), gate=Inverted()), steps=600).vital == "inverted-gate"
    for gate in (Unclaimed(), Confident(0.99), Correct(), Always()):
        train({"fine": Term(Says(clear), KL(), gate=gate)}, steps=600)


@pytest.mark.parametrize(
    ("change", "vital"),
    [
        ({}, None),
        ({"student": [1, 2, 50, 51, 7, 9]}, "completion-mismatch"),  # another completion
        ({"teacher": [1, 90, 91, 92, 2, 50, 51, 7]}, "completion-mismatch"),  # the completion was truncated
        ({"teacher": [1, 90, 91, 92, 2, 50, 52, 7, 8]}, "template-mismatch"),  # another turn
        ({"student": [1, 2, 7, 8]}, "template-mismatch"),  # no generation prompt
        ({"teacher": [1, 90, 91, 2, 50, 51, 7, 8]}, "privileged-cut"),
        ({"teacher": [1, 90, 91, 3, 92, 2, 50, 51, 7, 8]}, "privileged-cut"),  # not in one piece
    ],
)
@pytest.mark.parametrize("suffix", [2, (50, 51)], ids=["length", "ids"])
def test_bug_18_prompts_that_were_cut_or_rendered_otherwise_are_refused(change: Any, vital: Any, suffix: Any) -> None:
    """The first row is sound, the second is changed: it is the one named."""
    rows = {"student": [1, 2, 50, 51, 7, 8], "teacher": [1, 90, 91, 92, 2, 50, 51, 7, 8]}
    odd = {**rows, **change}
    student, teacher = ([rows[who], odd[who], torch.tensor(rows[who])] for who in ("student", "teacher"))
    options: Any = {"privileged": [[90, 91, 92], [90, 91, 92], None], "suffix": suffix}
    if vital is None:
        return check_prompts(student, teacher, [[7, 8]] * 3, **options)
    with pytest.raises(VitalsError, match="in rows 1;") as found:
        check_prompts(student, teacher, [[7, 8]] * 3, **options)
    assert found.value.vital == vital
    return None


def test_bug_18_a_row_without_its_twin_is_refused() -> None:
    with pytest.raises(VitalsError, match="not as many rows"):
        check_prompts([[1, 2]], [[1, 2], [1, 2]], [[2], [2]])
    check_prompts([], [], [])
    check_prompts([[1, 2]], [[3, 1, 2]], [[2]], suffix=1)
    check_prompts([[1, 2]], [[3, 4, 2]], [[2]], suffix=0)


def padded(forward: Forward, columns: int, value: float = 0.0) -> Tensor:
    """A teacher's logits, right about the label, with constant last columns."""
    logits = clear(forward) + 0.1 * torch.randn(forward.rows("x"), CLASSES)
    logits[:, CLASSES - columns :] = value
    return logits


def test_bug_19_a_padded_vocabulary_is_caught() -> None:
    """Two columns of 0 hold real probability; the error says how much."""
    error = caught(Term(Says(lambda s: padded(s, 2)), KL()))
    assert error.vital == "padded-vocabulary"
    assert "2 columns" in str(error)
    assert re.search(r"hold \d+\.\d\d% of", str(error))


def test_bug_19_classes_of_reference_masked_padding_and_new_heads_are_sound() -> None:
    for said in (
        lambda s: padded(s, 1),  # one class is the reference
        lambda s: padded(s, 2, -1e9),
        lambda s: padded(s, CLASSES),  # a head that starts from 0 says nothing yet
        lambda s: padded(s, 2, 0.5),
        lambda s: padded(s, 2) + 1e-3 * torch.randn(s.rows("x"), CLASSES),
        lambda s: padded(s, 2).roll((s.clock.step + 1).bit_length(), -1),  # now these, now those
    ):
        train({"label": LABEL, "fine": Term(Says(said), KL())}, steps=20)
    model: Any = Net()
    torch.nn.init.zeros_(model.layers[3].weight)
    torch.nn.init.zeros_(model.layers[3].bias)
    train({"label": LABEL, "fine": Term(Ema(0.9), KL())}, model=model)


def top(student: Tensor, target: Target, tail: bool = False, own: bool = False) -> Tensor:
    """KL over the two classes that are likeliest to one of both; the tail as one more class makes it a divergence."""
    log_t, log_p = target.log_probabilities(student.shape[-1]), F.log_softmax(student, -1)
    picked = (log_p if own else log_t).topk(2, -1).indices
    log_t, log_p = log_t.gather(-1, picked), log_p.gather(-1, picked)
    if tail:
        log_t, log_p = with_tail(log_t), with_tail(log_p)
    return (log_p.exp() * (log_p - log_t) if own else log_t.exp() * (log_t - log_p)).sum(-1)


def with_tail(logs: Tensor) -> Tensor:
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp(min=1e-6)
    return torch.cat([logs, rest.log()], -1)


def unsure(forward: Forward) -> Tensor:
    """Right about the label, and far from sure."""
    return F.one_hot(forward.labels("x"), CLASSES).float() + 0.5 * torch.randn(forward.rows("x"), CLASSES)


@pytest.mark.parametrize("own", [False, True], ids=["forward", "reverse"])
def test_bug_20_a_divergence_over_the_top_alone_is_caught(own: bool) -> None:
    """0 between equals, negative between others; with the tail it is sound."""
    teacher = Says(unsure)
    assert caught(Term(teacher, FunctionLoss(lambda s, t: top(s, t, own=own)))).vital == "negative-divergence"
    clamped = caught(Term(teacher, FunctionLoss(lambda s, t: top(s, t, own=own).clamp(min=0))))
    assert clamped.vital == "clamped-loss"
    assert "%" in str(clamped)
    train({"label": LABEL, "fine": Term(teacher, FunctionLoss(lambda s, t: top(s, t, own=own, tail=True)))})


def test_bug_20_a_loss_that_is_meant_to_be_negative_or_flat_is_sound() -> None:
    @FunctionLoss
    def negative(student: Tensor, target: Target) -> Tensor:
        return -(F.softmax(student, -1) * target.probabilities(CLASSES)).sum(-1)

    @FunctionLoss
    def hinge(student: Tensor, target: Target) -> Tensor:
        best = target.best()[:, None]
        others = student.scatter(-1, best, -torch.inf).amax(-1)
        return (0.1 + others - student.gather(-1, best).squeeze(-1)).clamp(min=0)

    teacher = Says(unsure)
    (warning,) = train({"label": LABEL, "odd": Term(teacher, negative)}).vitals().warnings
    assert "goes below 0" in warning
    assert caught(Term(teacher, hinge)).vital == "clamped-loss"
    for loss in (replace(negative, signed=True), replace(hinge, flat=True), FunctionLoss(top, signed=True)):
        assert train({"label": LABEL, "fine": Term(teacher, loss)}).vitals().warnings == []


def compares(loss: Any, space: str) -> bool:
    judged = getattr(loss, "target_spaces", None)  # a loss of the student alone reads no target
    return judged is not None and space in loss.student_spaces and judged != {"classes"}


@pytest.mark.parametrize("loss", [loss for loss, _ in LOSSES if compares(loss, "logits")], ids=str)
@pytest.mark.parametrize("temperature", [0.1, 1.0, 2.0])
def test_bug_20_our_own_losses_are_sound(loss: Any, temperature: float) -> None:
    """With targets that are sure or not, a student that is sure and wrong, and temperatures that magnify rounding."""
    if hasattr(loss, "temperature"):
        loss = replace(loss, temperature=1000.0 if temperature == 2.0 else loss.temperature)
    space = "logits" if "logits" in loss.target_spaces else "probabilities"

    def said(forward: Forward) -> Tensor:
        z = unsure(forward).roll(1, -1) / temperature
        return z.softmax(-1) if space == "probabilities" else z

    train({"label": LABEL, "fine": Term(Says(said, space), loss)}, lr=0.05)


class Regressor(nn.Module):
    """Two values, and a normal distribution, of six inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.values, self.gaussian = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"values": self.values(x), "gaussian": self.gaussian(x)}


@dataclass(frozen=True)
class Keeps(Gate):
    """Keeps what a rule says of the distance between student and target, and claims to keep where they agree."""

    rule: Callable[[Tensor], Tensor]

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return self.rule((student - target.value).abs().mean(-1)).float()


@dataclass(frozen=True)
class Asks(Keeps):
    """Says what it measures: here what the second value is."""

    def confidence(self, student: Tensor, target: Target) -> Tensor:
        return target.value[:, 1]

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return self.rule(target.value[:, 1]).float()


def middle(d: Tensor) -> Tensor:
    return (d > d.quantile(0.3)) & (d < d.quantile(0.7))


RULES: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "where they agree": (lambda d: d < d.median(), None),
    "nearly where they agree": (lambda d: d + 0.3 * torch.rand_like(d) < d.median() + 0.15, None),
    "the middle band": (middle, "middle-band"),
    "where they differ": (lambda d: d > d.median(), "inverted-gate"),
    "all but the best": (lambda d: d > d.quantile(0.34), "inverted-gate"),
    "30 % at random": (lambda d: torch.rand_like(d) < 0.3, "blind-gate"),
}


def regress(gate: Gate, head: str = "values", steps: int = 170, rows: int = 256) -> None:
    def said(forward: Forward) -> Tensor:
        x = forward.batch["x"].x
        return torch.stack([x[:, 0] + 0.5 * torch.randn(len(x)), x[:, 1] - 1], 1)

    loss: Any = GaussianKL() if head == "gaussian" else Squared()
    train({"odd": Term(Says(said, head), loss, head=head, gate=gate)}, steps, 0.01, Regressor(), rows)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("kind", [Keeps, Asks])
def test_bug_21_a_gate_on_values_that_does_not_follow_its_rule_is_caught(name: str, kind: Any) -> None:
    """By the agreement of student and target, or by what the gate says it measures (there larger is surer)."""
    rule, vital = RULES[name]
    gate = kind(rule if kind is Keeps else lambda d: rule(-d))
    if vital is None:
        return regress(gate)
    with pytest.raises(VitalsError, match="'odd'") as found:
        regress(gate)
    assert found.value.vital == vital
    return None


@pytest.mark.parametrize("name", RULES)
def test_bug_21_a_gate_on_distributions_that_does_not_follow_its_rule_is_caught(name: str) -> None:
    @dataclass(frozen=True)
    class Odd(Gate):
        def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
            return RULES[name][0](1.0 - target.probabilities(CLASSES).amax(-1)).float()

    if RULES[name][1] is None:
        train({"label": LABEL, "fine": Term(Says(clear), KL(), gate=Odd())}, steps=110, rows=200)
    else:
        assert caught(Term(Says(clear), KL(), gate=Odd()), steps=110, rows=200).vital == RULES[name][1]


@pytest.mark.parametrize("head", ["values", "gaussian"])
def test_bug_21_our_gate_on_values_follows_its_rule(head: str) -> None:
    regress(Agreement(0.9), head)


def test_bug_21_a_gate_that_claims_nothing_may_keep_what_it_likes() -> None:
    @dataclass(frozen=True)
    class Free(Keeps):
        prefers: ClassVar[str | None] = None

    for rule, _ in RULES.values():
        regress(Free(rule), steps=60)
    # labels are all equally sure: by their confidence no gate can be blind
    train({"fine": Term(Labels(), CrossEntropy(), gate=Random())}, steps=110, rows=200)


@dataclass(frozen=True)
class Random(Gate):
    """Drops half."""

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return torch.randint(0, 2, student.shape[:-1]).float()
