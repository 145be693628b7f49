"""Ablations of peers: which methods have one, what their own predictions are, and how both are weighed."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.memory import FrozenCopy
from selfdistill.core.objective import Method, Objective
from selfdistill.core.step import TrainingClock
from selfdistill.methods import co_training, kdcl, mutual, recipes
from selfdistill.methods.ablation import DECAY, HalfWeight, ablate
from selfdistill.schedules import Rise
from selfdistill.testing.specimens import batch_for, built


def moved(method: Method) -> tuple[Objective, nn.Module, nn.Module]:
    """An objective after a step, its model, and the average of the model's weights, which is another by then."""
    model = built(method, 0)
    objective = method.bind(model, clock=TrainingClock(epochs=10), vitals=False)
    objective(batch_for(method, 0)).backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.ones_like(weight).cumsum(-1).sin(), alpha=0.3)
    objective.update()
    (average,) = {s.module for s in objective.states.values() if isinstance(s, FrozenCopy)}
    return objective, model, average


def kl(target: Tensor, student: Tensor) -> Tensor:
    p = F.softmax(target, -1)
    return (p * (p.log() - F.log_softmax(student, -1))).sum(-1)


def test_the_methods_whose_peers_teach() -> None:
    found = {name for name, recipe in recipes().items() if not _needs_more(name) and ablate(recipe())}
    assert found == {
        "co_training", "codistillation", "gaussian_mutual", "kdcl", "meta_pseudo_labels", "mutual", "okddip", "one",
        "tri_training", "ucvme",
    }  # fmt: skip


def _needs_more(name: str) -> bool:
    try:
        recipes()[name]()
    except TypeError:
        return True
    return False


@pytest.mark.parametrize("both", [False, True])
def test_each_network_learns_from_the_average_of_its_own_weights(both: bool) -> None:
    method = ablate(mutual(weight=2.0), both)
    assert method is not None
    objective, model, average = moved(method)
    batch = batch_for(method, 1)
    loss, x, y = objective(batch), batch["x"].x, batch["x"].y
    assert y is not None
    student, own = model(x)["peers"], average(x)["peers"].detach()
    keep = y >= 0
    labels = F.cross_entropy(student[keep, 0], y[keep]) + F.cross_entropy(student[keep, 1], y[keep])
    by_self = kl(own, student).sum(1).mean()
    by_peers = kl(student.detach().flip(1), student).sum(1).mean()
    assert loss.item() == pytest.approx((labels + (by_self + by_peers if both else 2 * by_self)).item(), rel=1e-5)
    assert by_self.item() != pytest.approx(by_peers.item(), rel=0.1)


def test_the_average_moves_by_the_decay_and_each_view_has_its_own_member() -> None:
    method = ablate(kdcl(weight=1.0, temperature=1.0))
    assert method is not None
    start = copy.deepcopy(built(method, 0).state_dict())
    objective, model, average = moved(method)
    for name, weight in average.named_parameters():  # the second of a warm-up: half of the way
        assert torch.allclose(weight, 0.5 * start[name] + 0.5 * model.get_parameter(name), atol=1e-6)
    batch = batch_for(method, 1)
    objective(batch)
    blocks = torch.cat([batch[view].x for view in ("x0", "x1")])
    student = model(blocks)["logits"].split(len(batch["x0"].x))
    for view, k, logits in (("x0", 0, student[0]), ("x1", 1, student[1])):
        own = average.eval()(batch[view].x)["peers"][:, k].detach()
        figure = objective.figures[f"peers{k}"]
        assert figure.loss.item() == pytest.approx(kl(own, logits).mean().item(), rel=1e-4)


def test_a_schedule_is_halved() -> None:
    method = ablate(co_training(), both=True)
    assert method is not None
    half = method.terms["other"].weight
    assert half == method.terms["other_own"].weight == HalfWeight(co_training().terms["other"].weight)
    clock = TrainingClock(step=20, epochs=100)
    assert HalfWeight(Rise(1.0, 0.4))(clock) == Rise(1.0, 0.4)(clock) / 2
    assert DECAY < 1
