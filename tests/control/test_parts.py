"""The parts that policies alone need, against hand computations and torch.distributions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from selfdistill.control.parts import (
    ActionsTaken,
    GaussianMeanNLL,
    Release,
    Returns,
    SharpenedGaussianKL,
    SquaredMeans,
    SquaredShortfall,
    Surpassed,
)
from selfdistill.core.objective import Method
from selfdistill.core.parts import PerRow, Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import SpaceError
from selfdistill.losses import CrossEntropy, GaussianNLL
from selfdistill.testing.conformance import check_value


@pytest.mark.parametrize(
    ("share", "wanted"), [(0.5, [2.0, 1.0, 0.0, 0.0]), (1.0, [2.0, 1.5, 1.0, 0.5]), (0.0, [0.0] * 4)]
)
def test_a_weight_falls_on_a_line_and_is_released(share: float, wanted: list[float]) -> None:
    release = Release(2.0, share)
    assert [release(TrainingClock(step=step, epochs=4)) for step in range(4)] == wanted
    assert release(TrainingClock(step=9, epochs=4)) == 0.0


GENERATOR = torch.Generator().manual_seed(3)
STUDENT, TEACHER = (torch.randn(5, 2, 2, generator=GENERATOR) for _ in range(2))


def normal(head: Tensor) -> Normal:
    return Normal(head[..., 0], (0.5 * head[..., 1]).exp())


def test_losses_of_normal_actions_are_those_of_torch_distributions() -> None:
    target = Target(TEACHER, "gaussian")
    torch.testing.assert_close(GaussianMeanNLL()(STUDENT, target), -normal(STUDENT).log_prob(TEACHER[..., 0]))
    torch.testing.assert_close(SquaredMeans()(STUDENT, target), (normal(TEACHER).mean - normal(STUDENT).mean).square())
    sharper = Normal(TEACHER[..., 0], normal(TEACHER).stddev * 0.3**0.5)
    divergence = torch.distributions.kl_divergence(sharper, normal(STUDENT))
    torch.testing.assert_close(SharpenedGaussianKL(0.3)(STUDENT, target), divergence)


def test_a_shortfall_is_half_a_square_and_never_lowers_a_value() -> None:
    value = torch.tensor([[0.0], [2.0]], requires_grad=True)
    loss = SquaredShortfall()(value, Target(torch.tensor([[3.0], [1.0]]), "values"))
    assert loss.tolist() == [4.5, 0.0]
    loss.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [[-3.0], [0.0]]


class Critic(nn.Module):
    """Logits of one layer and values of another."""

    def __init__(self) -> None:
        super().__init__()
        self.actor, self.critic = nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"logits": self.actor(rows), "values": self.critic(rows)}


def episodes(returns: Any) -> tuple[Critic, Batch]:
    torch.manual_seed(0)
    rows = torch.randn(4, 3)
    extra = {} if returns is None else {"returns": torch.tensor(returns)}
    return Critic(), Batch(episodes=Rows(rows, torch.tensor([0, 1, 1, 0]), extra=extra))


IMITATION = Method(
    {
        "actions": Term(ActionsTaken(), CrossEntropy(), "episodes", gate=Surpassed(), reduction=PerRow()),
        "value": Term(Returns(), SquaredShortfall(), "episodes", "values"),
    }
)


def test_self_imitation_has_no_gradient_where_the_value_was_not_surpassed() -> None:
    model, batch = episodes([0.0] * 4)
    with torch.no_grad():
        model.critic.bias.fill_(50.0)
    IMITATION.bind(model, vitals=False)(batch).backward()
    assert all(weight.grad is None or not weight.grad.any() for weight in model.parameters())


def test_self_imitation_is_the_sum_of_its_paper() -> None:
    model, batch = episodes([0.4, -9.0, 0.7, 30.0])
    loss = IMITATION.bind(model, vitals=False)(batch)
    rows, actions, returns = batch["episodes"].x, batch["episodes"].y, batch["episodes"].extra["returns"]
    assert actions is not None
    values = model.critic(rows).squeeze(1)
    trust = (returns - values).clamp(0.0, 1.0).detach()
    nll = nn.functional.cross_entropy(model.actor(rows), actions, reduction="none")
    expected = (trust * nll).mean() + 0.5 * (returns - values).clamp(min=0.0).square().mean()
    torch.testing.assert_close(loss, expected)
    assert trust[1] == 0.0
    assert trust[3] == 1.0
    ours = torch.autograd.grad(loss, list(model.parameters()))
    for mine, theirs in zip(ours, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("term", ["actions", "value"])
def test_rows_without_returns_are_refused(term: str) -> None:
    model, batch = episodes(None)
    with pytest.raises(SpaceError, match=r"view 'episodes' carries no returns; give .* 'returns'"):
        Method({term: IMITATION.terms[term]}).bind(model, vitals=False)(batch)


def test_actions_of_several_dimensions_are_labels_of_each() -> None:
    logits = torch.randn(4, 2, 3)
    labels = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0]])
    term = Term(ActionsTaken(), CrossEntropy(), "episodes", gate=Surpassed(5.0), reduction=PerRow())
    model = type("Fixed", (nn.Module,), {"forward": lambda self, x: {"logits": logits, "values": torch.zeros(4, 1)}})()
    rows = Rows(torch.zeros(4, 1), labels, extra={"returns": torch.tensor([1.0, 2.0, 0.0, 0.5])})
    loss = Method({"actions": term}).bind(model, vitals=False)(Batch(episodes=rows))
    nll = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(4, 2)
    torch.testing.assert_close(loss, (nll.sum(1) * torch.tensor([1.0, 2.0, 0.0, 0.5])).mean())


def test_continuous_actions_are_values() -> None:
    head = torch.randn(3, 2, 2)
    actions = torch.randn(3, 2)
    model = type("Fixed", (nn.Module,), {"forward": lambda self, x: {"gaussian": head, "values": torch.zeros(3, 1)}})()
    term = Term(ActionsTaken(), GaussianNLL(), "episodes", "gaussian", reduction=PerRow())
    loss = Method({"actions": term}).bind(model, vitals=False)(Batch(episodes=Rows(torch.zeros(3, 1), actions)))
    torch.testing.assert_close(loss, -normal(head).log_prob(actions).sum(1).mean())


@pytest.mark.parametrize("part", [Release(2.0, 0.3), Returns(), Surpassed(2.0), SquaredShortfall()], ids=str)
def test_the_parts_are_values(part: Any) -> None:
    """The others are in `tests.parts`; these need returns, or one value."""
    check_value(part)
