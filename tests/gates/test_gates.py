"""Gates against row-by-row loops: trust in [0, 1] for every element."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from selfdistill.core.parts import Always, BindArgs, Gate, Term
from selfdistill.core.step import Batch, Forward, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.gates import Agreement, Confidence, Confident, Correct, SmallLoss
from selfdistill.losses import CrossEntropy
from selfdistill.methods import reweight
from selfdistill.teachers import CurrentStudent, Labels

CLASSES = 3
GATES = [Always(), Confident(0.5), Confident(0.0), Confident(1.0), Confidence(), Correct()]


def weigh(gate: Gate, target: Target, y: torch.Tensor, inner: tuple[int, ...] = ()) -> torch.Tensor:
    rows = len(y)
    student = torch.zeros(rows, *inner, CLASSES)
    forward = Forward(nn.Identity(), Batch({"x": Rows(torch.zeros(rows, CLASSES), y)}), TrainingClock()).run()
    term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
    model = nn.Identity()
    return gate.weigh(gate.start(model, BindArgs()), student, target.spread(student), forward, term)


rows = st.lists(st.lists(st.integers(1, 50), min_size=CLASSES, max_size=CLASSES), min_size=1, max_size=5)


@settings(deadline=None)
@given(rows, st.sampled_from(GATES), st.data())
def test_trust_lies_between_0_and_1_for_every_element(weights, gate, data):
    """For distributions and for logits, and for exits or peers of a row as for the row."""
    p = torch.tensor(weights, dtype=torch.float32)
    p /= p.sum(-1, keepdim=True)
    y = torch.tensor(data.draw(st.lists(st.integers(-1, 2), min_size=len(p), max_size=len(p))))
    for target in (Target(p, "probabilities"), Target(p.log() + 3, "logits")):
        trust = weigh(gate, target, y)
        assert trust.shape == (len(p),)
        assert ((trust >= 0) & (trust <= 1)).all()
        assert weigh(gate, target, y, inner=(2,)).equal(trust[:, None].expand(-1, 2))


@settings(deadline=None)
@given(rows, st.floats(0.3, 1))
def test_confident_keeps_what_reaches_the_threshold(weights, threshold):
    """1 exactly where some class has at least the threshold; more is kept when less is asked for."""
    p = torch.tensor(weights, dtype=torch.float32)
    p /= p.sum(-1, keepdim=True)
    y = torch.zeros(len(p), dtype=torch.int64)
    kept = weigh(Confident(threshold), Target(p, "probabilities"), y)
    wanted = torch.tensor(threshold, dtype=torch.float32)
    assert kept.tolist() == [float(any(c >= wanted for c in row)) for row in p]
    assert (weigh(Confident(threshold - 0.1), Target(p, "probabilities"), y) >= kept).all()


def test_confident_keeps_a_row_exactly_at_the_threshold():
    """Reaching it is enough; the numbers are ones that float32 holds exactly."""
    p = torch.tensor([[0.5, 0.5, 0.0], [0.75, 0.25, 0.0], [0.25, 0.5, 0.25]])
    y = torch.tensor([0, 0, 0])
    assert weigh(Confident(0.5), Target(p, "probabilities"), y).tolist() == [1, 1, 1]
    assert weigh(Confident(0.75), Target(p, "probabilities"), y).tolist() == [0, 1, 0]


def test_confident_is_not_inverted():
    """The sure row is kept and the unsure one is not, whatever form the target has."""
    p = torch.tensor([[0.98, 0.01, 0.01], [0.4, 0.3, 0.3]])
    y = torch.tensor([1, 1])
    for target in (Target(p, "probabilities"), Target(p.log(), "logits")):
        assert weigh(Confident(0.95), target, y).tolist() == [1, 0]
    assert weigh(Confident(0.95), Target(y, "classes"), y).tolist() == [1, 1]


def test_confidence_is_the_largest_probability():
    """w_i = max_c t_ic, also of logits."""
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05]])
    for target in (Target(p, "probabilities"), Target(p.log() - 7, "logits")):
        assert weigh(Confidence(), target, torch.tensor([0, 0])).tolist() == pytest.approx([0.5, 0.9])


def test_correct_keeps_where_the_best_class_is_the_label():
    """A wrong target is dropped; a row without label cannot be judged and is kept."""
    p = torch.tensor([[0.2, 0.5, 0.3], [0.9, 0.05, 0.05], [0.1, 0.1, 0.8]])
    assert weigh(Correct(), Target(p, "probabilities"), torch.tensor([1, 2, -1])).tolist() == [1, 0, 1]


def test_agreement_keeps_values_that_are_near():
    """The mean distance over the outputs, in units of the values; exactly at the limit is near enough."""
    forward = Forward(nn.Identity(), Batch({"x": Rows(torch.zeros(3, 2))}), TrainingClock()).run()
    term = Term(CurrentStudent(), CrossEntropy())
    student = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    target = Target(torch.tensor([[0.5, 1.0], [0.5, 0.5], [0.75, 0.5]]), "values")  # .25, .5 and .625 apart
    assert Agreement(0.5).weigh(nn.Module(), student, target, forward, term).tolist() == [1, 1, 0]
    assert Agreement(0.5).confidence(student, target).tolist() == [-0.25, -0.5, -0.625]


def test_agreement_counts_in_standard_deviations_of_a_normal_target():
    """|m_s - m_t| / sigma_t: the student's own variance does not count, and a vague target is easily met."""
    forward = Forward(nn.Identity(), Batch({"x": Rows(torch.zeros(2, 2))}), TrainingClock()).run()
    term = Term(CurrentStudent(), CrossEntropy())
    student = torch.tensor([[1.0, -9.0], [1.0, 9.0]])
    target = Target(torch.tensor([[0.0, 0.0], [0.0, math.log(4.0)]]), "gaussian")  # 1 of 1, and 1 of 2
    assert Agreement().confidence(student, target).tolist() == pytest.approx([-1.0, -0.5])
    assert Agreement(0.75).weigh(nn.Module(), student, target, forward, term).tolist() == [0, 1]
    label = Target(torch.tensor([[0.5], [3.0]]), "values")  # a value beside a head (m, log variance): m counts
    assert Agreement(0.75).weigh(nn.Module(), student, label, forward, term).tolist() == [1, 0]


def test_agreement_of_a_row_does_not_depend_on_the_others():
    student, value = torch.randn(6, 2), torch.randn(6, 2)
    for space in ("values", "gaussian"):
        whole = Agreement().confidence(student, Target(value, space))
        alone = [Agreement().confidence(student[i : i + 1], Target(value[i : i + 1], space)) for i in range(6)]
        assert torch.equal(whole, torch.cat(alone))


def test_small_loss_keeps_the_easy_rows_of_each_peer_or_of_the_next():
    """Row by row in plain Python; a row without a label is never kept and is not counted."""
    generator = torch.Generator().manual_seed(3)
    student, y = torch.randn(9, 2, CLASSES, generator=generator), torch.tensor([0, 1, 2, 0, -1, 1, 2, -1, 0])
    losses = -student.log_softmax(-1)
    for crossed in (False, True):
        gate, term = SmallLoss(0.5, 0.2, crossed), Term(Labels(), CrossEntropy(), head="peers")
        for epoch, forget in ((0, 0.0), (1, 0.25), (2, 0.5), (9, 0.5)):
            forward = Forward(
                nn.Identity(), Batch({"x": Rows(torch.zeros(9, CLASSES), y)}), TrainingClock(epoch=epoch, epochs=10)
            ).run()
            target = Target(y, "classes", y >= 0).spread(student)
            trust = gate.weigh(nn.Module(), student, target, forward, term)
            for k in (0, 1):
                judge = 1 - k if crossed else k
                known = [i for i in range(9) if y[i] >= 0]
                easy = sorted(known, key=lambda i: float(losses[i, judge, y[i]]))[: int((1 - forget) * len(known))]
                assert trust[:, k].tolist() == [float(i in easy) for i in range(9)]


def test_small_loss_refuses_a_noise_that_is_no_share():
    with pytest.raises(RecipeError, match="wrong labels, in"):
        SmallLoss(1.0)


def test_wrong_labels_get_less_weight_and_rows_that_do_harm_none() -> None:
    """On two clouds with 40 % of labels wrong, ten clean rows tell them apart; alone they teach nothing."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(60) % 2
    x = torch.randn(60, 4, generator=generator) + 5.0 * truth[:, None] - 2.5
    y = torch.where(torch.arange(60) < 24, 1 - truth, truth)
    clean = Rows(
        torch.randn(10, 4, generator=generator) + 5.0 * truth[:10, None] - 2.5, truth[:10], torch.arange(100, 110)
    )
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    objective = reweight(clean=10).bind(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        objective(Batch({"x": Rows(x, y, torch.arange(60)), "clean": clean})).backward()
        optimizer.step()
        objective.update()
    assert float((model(x).argmax(1) == truth).float().mean()) > 0.95
    term = reweight().terms["label"]
    assert isinstance(term, Term)

    def trust(y: Tensor) -> Tensor:
        forward = Forward(model, Batch({"x": Rows(x, y, torch.arange(60)), "clean": clean}), TrainingClock()).run()
        return term.gate.weigh(nn.Identity(), forward.student("x").detach(), Target(y, "classes"), forward, term)

    weights = trust(y)
    assert float(weights.max()) == 1.0
    assert float(weights[:24].mean()) < 0.2 * float(weights[24:].mean())
    assert not trust(1 - truth).any()
    batch = Batch({"x": Rows(x, 1 - truth, torch.arange(60)), "clean": clean})
    model.zero_grad()
    objective(batch).backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_a_row_without_clean_rows_beside_it_is_refused_by_name() -> None:
    with pytest.raises(SpaceError, match="view 'clean' is not in the batch"):
        reweight().bind(nn.Linear(4, 2))({"x": torch.ones(3, 4), "y": torch.tensor([0, 1, 0])})
