"""A teacher's feedback: its gradient against finite differences, its sign, where it is zero, and whom it reaches."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from selfdistill.core.objective import Method, Objective
from selfdistill.core.regression import of_values
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.gates import Confident
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import recipes
from selfdistill.methods.cards import cost
from selfdistill.models.networks import cnn, vit
from selfdistill.models.peers import Pair, Paired
from selfdistill.terms import Feedback
from selfdistill.views import weak_strong

WIDTH, CLASSES, U, L = 5, 3, 8, 4
generator = torch.Generator().manual_seed(11)
X, SEEN = torch.randn(L, WIDTH, generator=generator), torch.randn(U, WIDTH, generator=generator)
Y = torch.arange(L) % CLASSES


def network(seed: int, bias: bool = True) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 6, bias), nn.Tanh(), nn.Linear(6, CLASSES, bias))


def batch(x: Tensor = X, seen: Tensor = SEEN, y: Tensor = Y) -> Batch:
    unlabelled = Rows(seen, torch.full((len(seen),), -1), torch.arange(100, 100 + len(seen)))
    return Batch({"labelled": Rows(x, y, torch.arange(len(x))), "weak": unlabelled, "strong": unlabelled})


def alone(term: Feedback, pair: nn.Module) -> Objective:
    """The term by itself."""
    return Method({"meta": term}, weak_strong(), Paired(), forward="separate").bind(pair, vitals=False)


def gradients(term: Feedback, pair: Pair, rows: Batch) -> tuple[float, list[Tensor | None], list[Tensor | None]]:
    """The figure, and what it teaches student and teacher."""
    pair.zero_grad(set_to_none=True)
    loss = alone(term, pair)(rows)
    loss.backward()
    return float(loss.detach()), *([p.grad for p in member.parameters()] for member in pair.members)  # type: ignore[return-value]


def stepped(student: nn.Module, teacher: nn.Module, rate: float, smoothing: float = 0.0) -> float:
    """The student's labelled loss after a true step of SGD on the teacher's soft labels; the student stays."""
    student = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), rate)
    q = teacher(SEEN.to(next(teacher.parameters()).dtype)).detach().softmax(1)
    q = (1 - smoothing) * q + smoothing * (1 - q) / (CLASSES - 1)
    optimizer.zero_grad()
    (-(q * student(SEEN.to(q.dtype)).log_softmax(1)).sum(1).mean()).backward()
    optimizer.step()
    return F.cross_entropy(student(X.to(q.dtype)), Y).item()


def moved(teacher: nn.Module, slopes: list[Tensor | None], by: float) -> nn.Module:
    """A copy of the teacher whose weights are moved along its slopes."""
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        for weight, slope in zip(other.parameters(), slopes, strict=True):
            assert slope is not None
            weight.add_(slope, alpha=by)
    return other


@pytest.mark.parametrize("smoothing", [0.0, 0.15])
def test_the_gradient_is_that_of_finite_differences_through_a_true_step(smoothing: float) -> None:
    """In float64, for every weight of the teacher, to 1e-5 of the largest; the student steps by torch's own SGD."""
    student, teacher, rate = network(0).double(), network(1).double(), 0.3
    term = Feedback(loss=CrossEntropy(smoothing=smoothing), rate=rate)
    weights = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    z = teacher(SEEN.double())
    loss = term.student_loss(
        lambda w, x: functional_call(student, dict(w), (x,)), weights, z, SEEN.double(), X.double(), Y
    )
    assert loss.item() == pytest.approx(stepped(student, teacher, rate, smoothing), rel=1e-12)
    found = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(teacher.parameters()))])
    wanted, h = list[float](), 1e-5
    for p in teacher.parameters():
        for i in range(p.numel()):
            sides = []
            for sign in (1, -1):
                p.data.view(-1)[i] += sign * h
                sides.append(stepped(student, teacher, rate, smoothing))
                p.data.view(-1)[i] -= sign * h
            wanted.append((sides[0] - sides[1]) / (2 * h))
    apart = (found - torch.tensor(wanted, dtype=torch.float64)).abs().max()
    assert float(found.abs().max()) > 1e-3
    assert float(apart / found.abs().max()) < 1e-5


def test_the_tally_carries_that_gradient_to_the_teacher_and_none_to_the_student() -> None:
    """The figure is the labelled loss after the step; float32 against float64, and nothing for the student."""
    pair, term = Pair([network(0), network(1)]), Feedback(rate=0.3)
    figure, to_student, to_teacher = gradients(term, pair, batch())
    assert figure == pytest.approx(stepped(pair.student, pair.members[1], 0.3), rel=1e-5)
    assert not any(g is not None and bool(g.any()) for g in to_student)
    student, teacher = network(0).double(), network(1).double()
    weights = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    speak = partial(lambda model, w, x: functional_call(model, dict(w), (x,)), student)
    loss = term.student_loss(speak, weights, teacher(SEEN.double()), SEEN.double(), X.double(), Y)
    for got, wanted in zip(to_teacher, torch.autograd.grad(loss, list(teacher.parameters())), strict=True):
        assert got is not None
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-7)


def test_a_teacher_that_follows_it_makes_the_students_step_better() -> None:
    """The sign: along the gradient the student's labelled loss after its true step rises, against it it falls."""
    pair, term, rate = Pair([network(0), network(1)]), Feedback(rate=1.0), 1.0
    _, _, slopes = gradients(term, pair, batch())
    student, teacher = pair.members
    before, after = stepped(student, teacher, rate), stepped(student, moved(teacher, slopes, -1.0), rate)
    assert after < before - 1e-4
    assert stepped(student, moved(teacher, slopes, 1.0), rate) > before + 1e-4
    for _ in range(30):  # and a teacher that learns nothing else goes on
        _, _, slopes = gradients(term, pair, batch())
        pair.members[1] = moved(pair.members[1], slopes, -3.0)
    assert stepped(student, pair.members[1], rate) < after - 0.02


def test_hard_labels_have_this_gradient_in_the_mean() -> None:
    """Of one row, by enumeration: for small steps sum_c q_c L(after class c) has the slope of soft labels."""
    student, teacher, rate, row = network(0).double(), network(1).double(), 1e-4, SEEN[:1].double()
    z = teacher(row)
    weights = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}

    def speak(w: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(student, dict(w), (x,))  # type: ignore[no-any-return]

    soft = Feedback(rate=rate).student_loss(speak, weights, z, row, X.double(), Y)  # type: ignore[arg-type]
    (wanted,) = torch.autograd.grad(soft, z, retain_graph=True)
    each = []
    for c in range(CLASSES):
        slope = torch.autograd.grad(F.cross_entropy(speak(weights, row), torch.tensor([c])), list(weights.values()))
        then = {n: (w - rate * s).detach() for (n, w), s in zip(weights.items(), slope, strict=True)}
        each.append(F.cross_entropy(speak(then, X.double()), Y))
    (mean,) = torch.autograd.grad((z.softmax(1)[0] * torch.stack(each).detach()).sum(), z)
    assert float((mean - wanted).norm() / wanted.norm()) < 1e-3


def test_there_is_no_feedback_where_no_label_of_the_teacher_matters() -> None:
    """Exactly zero: a labelled loss that no step changes, a step that no label changes; and not zero without that."""
    pair, nothing = Pair([network(0, False), network(1, False)]), torch.zeros
    for rows, zero in (
        (batch(), False),
        (batch(x=nothing(L, WIDTH)), True),  # without a bias the student says of 0 what it said before
        (batch(seen=nothing(U, WIDTH)), True),  # and learns nothing of 0; a teacher without a bias says even shares
    ):
        figure, _, to_teacher = gradients(Feedback(rate=0.3), pair, rows)
        assert figure > 0
        assert all(g is None or not g.any() for g in to_teacher) == zero
    steady = Pair([network(0), network(1)])  # a student whose step is nothing, whatever it is told
    for p in steady.student.parameters():
        p.data.zero_()
    last = steady.student[2]  # type: ignore[index]
    last.bias.requires_grad_(False)
    _, _, to_teacher = gradients(Feedback(rate=0.3), steady, batch())
    assert all(g is None or not g.any() for g in to_teacher)


def test_rows_without_a_label_count_for_nothing() -> None:
    """The loss is that of the labelled ones alone, and without any it is 0 and teaches nothing."""
    pair, term = Pair([network(0), network(1)]), Feedback()
    some = torch.where(torch.arange(L) < 2, Y, -1)
    assert gradients(term, pair, batch(y=some))[0] == pytest.approx(gradients(term, pair, batch(X[:2], y=Y[:2]))[0])
    figure, _, to_teacher = gradients(term, pair, batch(y=torch.full((L,), -1)))
    assert figure == 0.0
    assert all(g is None or not g.any() for g in to_teacher)
    objective = alone(term, pair)
    empty = batch()
    del empty["labelled"]
    assert [float(part) for part in objective.measure(empty)["meta"].tally] == [0.0, 0.0]


# the recipe -----------------------------------------------------------------------------------------------------------


def learned(name: str, step: int = 5) -> tuple[float, float]:
    """How much of one term's gradient reaches student and teacher, in the recipe's middle."""
    method = recipes()["meta_pseudo_labels"](confidence=0.2)
    pair = Pair([network(0), network(1)])
    objective = method.bind(pair, clock=TrainingClock(step=step, epochs=10), vitals=False)
    objective.measure(batch())[name].tally.total.backward()
    sizes = [sum(float(p.grad.norm()) for p in m.parameters() if p.grad is not None) for m in pair.members]
    return sizes[0], sizes[1]


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("pseudo", "student"),
        ("tuned", "student"),
        ("label", "teacher"),
        ("consistency", "teacher"),
        ("meta", "teacher"),
    ],
)
def test_each_term_teaches_one_of_the_two(name: str, whose: str) -> None:
    student, teacher = learned(name)
    assert (student > 0, teacher > 0) == (whose == "student", whose == "teacher")


def test_the_student_sees_labels_only_at_the_end() -> None:
    """Pseudo-labels and feedback until then; the teacher's terms all the time, consistency after a rise."""
    method = recipes()["meta_pseudo_labels"](tune=0.2, ramp=0.5, weight=8.0)
    weights = {
        n: [t.weight_at(TrainingClock(step=s, epochs=20)) for s in (0, 5, 15, 17)] for n, t in method.terms.items()
    }
    expected = {
        "label": [1, 1, 1, 1], "pseudo": [1, 1, 1, 0], "tuned": [0, 0, 0, 1], "meta": [1, 1, 1, 0],
        "consistency": [0, 4, 8, 8],
    }  # fmt: skip
    assert weights == {name: pytest.approx(values, rel=1e-3) for name, values in expected.items()}
    never = recipes()["meta_pseudo_labels"](tune=0.0)
    assert never.terms["tuned"].weight_at(TrainingClock(step=19, epochs=20)) == 0


def test_passes_are_those_that_explain_tells() -> None:
    """Counted by the step: 4 labelled rows to 8 unlabelled ones, in sum and with the term left out."""
    for meta in (1.0, 0.0):
        method = recipes()["meta_pseudo_labels"](meta=meta, ratio=2.0)
        objective = method.bind(Pair([network(0), network(1)]), clock=TrainingClock(epochs=10))
        objective(batch()).backward()
        told, spent = cost(method), objective.passes()
        assert (spent.forward, spent.backward, spent.teacher) == (L * told["forward"], L * told["backward"], 0)


@pytest.mark.parametrize(
    "build",
    [partial(cnn, (1, 8, 8), CLASSES, width=2), partial(vit, (1, 8, 8), CLASSES, width=8, depth=1, heads=2)],
)
def test_convolutions_batch_norm_and_attention_are_differentiated_twice(build: partial[nn.Module]) -> None:
    """Running statistics stay as the student's own forwards left them."""
    torch.manual_seed(0)
    pair = Pair([build(), build()])
    x = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    rows = batch(x[:4], x[4:])
    objective = alone(Feedback(), pair)
    step = objective.forward_views(rows)
    before = {name: buffer.clone() for name, buffer in pair.named_buffers()}
    tally = Feedback().tally(lambda part: nn.Identity(), step).tally
    assert all(buffer.equal(before[name]) for name, buffer in pair.named_buffers())
    tally.total.backward()
    sizes = [sum(float(p.grad.norm()) for p in m.parameters() if p.grad is not None) for m in pair.members]
    assert sizes[0] == 0 < sizes[1] < float("inf")


def test_what_makes_no_sense_is_refused() -> None:
    for made, why in (
        (lambda: Feedback(rate=0.0), "rate is the learning rate"),
        (lambda: Feedback(loss=CrossEntropy(hard=True)), "no derivative"),
        (lambda: Feedback(gate=Confident()), "takes no gate"),
    ):
        with pytest.raises(RecipeError, match=why):
            made()
    with pytest.raises(SpaceError, match=r"not a Sequential; give wrap_model=Paired\(\)"):
        Feedback(head="logits").tally(
            lambda part: nn.Identity(), alone(Feedback(head="logits"), network(0)).forward_views(batch())
        )
    with pytest.raises(SpaceError, match="values"):
        of_values(recipes()["meta_pseudo_labels"]())
    assert Feedback(loss=KL()).loss == KL()
