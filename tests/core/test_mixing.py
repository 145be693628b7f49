"""Rows mixed with each other: what a step makes of a batch, and what is said in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.mixing import Mixing, mixture_of
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Forward, ForwardPlan, Rows, TrainingClock
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import function_matching
from selfdistill.methods.cards import cost
from selfdistill.teachers import CurrentStudent, MixedLabels


def looked(x: Tensor, graded: tuple[str, ...] = ("x", "mixed", "between"), seed: int = 0) -> Forward:
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed)
    return Forward(
        model,
        Batch({"x": Rows(x, torch.arange(len(x)), torch.arange(len(x)))}),
        TrainingClock(),
        ForwardPlan(graded, derived=Mixing(0.5)),
    ).run()


def test_a_row_is_mixed_with_its_partner_and_what_is_said_of_both_too():
    """Of a linear model the mixture of outputs is the output of the mixture."""
    x = torch.randn(5, 3)
    step = looked(x)
    s = mixture_of(step).share
    assert 0 < s < 1
    for i in range(5):
        assert torch.allclose(step.batch["mixed"].x[i], s * x[i] + (1 - s) * x[4 - i])
    assert torch.allclose(step.student("between", "logits"), step.student("mixed", "logits"), atol=1e-6)
    assert step.student("between").requires_grad
    assert step.passes.forward == 10, "what is in between is not forwarded"


def test_x_is_forwarded_where_only_what_is_between_is_asked_for():
    step = looked(torch.randn(4, 3), ("mixed", "between"))
    assert step.passes.forward == 8
    with pytest.raises(SpaceError, match="no term looks at view 'x'"):
        looked(torch.randn(4, 3), ("mixed",)).student("x")


def test_the_share_is_drawn_once_a_step_from_the_steps_own_seed():
    """The same seed, the same share; of 2,000 seeds the mean and the variance of Beta(a, a), 1/2 and 1 / (8 a + 4)."""
    x = torch.randn(2, 3)
    shares = torch.tensor([mixture_of(looked(x, ("mixed",), seed)).share for seed in range(2000)])
    assert mixture_of(looked(x, seed=3)).share == shares[3]
    assert abs(float(shares.mean()) - 0.5) < 5 * (0.125 / 2000) ** 0.5
    assert abs(float(shares.var()) - 0.125) < 0.01


def test_a_batch_twice_is_mixed_as_once():
    x = torch.randn(3, 3)
    once, twice = looked(x).batch["mixed"].x, looked(torch.cat([x, x])).batch["mixed"].x
    assert torch.equal(twice, torch.cat([once, once]))


def test_what_is_between_teaches_what_is_mixed_in_ones_own_loop():
    """A batch of a plain loop has only x; the objective mixes it."""
    method = Method({"t": Term(CurrentStudent("between"), KL(), view="mixed")}, mixing=Mixing(0.4))
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4))
    objective = method.bind(model)
    loss = objective({"x": torch.randn(6, 3), "y": torch.zeros(6, dtype=torch.int64)})
    loss.backward()
    assert float(loss.detach()) > 0
    assert cost(method)["forward"] == 2


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(SpaceError, match="floating-point"):
        function_matching().bind(nn.Embedding(9, 4), external=nn.Embedding(9, 4))({"x": torch.arange(3)})
    with pytest.raises(RecipeError, match="above 0"):
        Mixing(0.0)


def test_a_mixture_has_both_labels_and_a_row_beside_one_without_has_none():
    step = looked(torch.randn(3, 3))
    step.batch["x"] = step.batch["x"]._replace(y=torch.tensor([1, 0, -1]))
    found = MixedLabels().target(nn.Module(), step, Term(MixedLabels(), CrossEntropy(), view="mixed"))
    assert found.valid is not None
    assert found.valid.tolist() == [False, True, False]
    assert found.value[1].tolist() == pytest.approx([1.0, 0.0])
    step.batch["x"] = step.batch["x"]._replace(y=torch.tensor([1, 0, 0]))
    found = MixedLabels().target(nn.Module(), step, Term(MixedLabels(), CrossEntropy(), view="mixed"))
    assert found.value[0].tolist() == pytest.approx([1 - mixture_of(step).share, mixture_of(step).share])
