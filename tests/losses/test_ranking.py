"""The order of the other classes: ranks by hand, losses against plain sums, votes of several positions."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch

from selfdistill.core.targets import Target
from selfdistill.losses import AmongOthers, SelfWeighted
from selfdistill.methods import zipf_smoothing
from selfdistill.teachers.class_level import zipf
from tests.harness import record


def test_ranks_by_hand():
    """Scores 5, 3, 3, 0 and label 0: ranks 2, 2, 4, so 1/2, 1/2, 1/4; without scores all others are equal."""
    scores = torch.tensor([[5.0, 3.0, 3.0, 0.0], [5.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = zipf(scores, torch.tensor([0, 3, 1]))
    assert found[0].tolist() == pytest.approx([0, 0.4, 0.4, 0.2])
    assert found[1].tolist() == pytest.approx([0.5, 0.25, 0.25, 0])
    assert found[2].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
    assert zipf(scores, torch.tensor([0, 3, 1]), power=2.0)[0].tolist() == pytest.approx([0, 4 / 9, 4 / 9, 1 / 9])


def test_many_classes_have_the_harmonic_distribution():
    scores = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    best = scores.argmax(1)
    found = zipf(scores, best).sort(descending=True).values
    wanted = torch.tensor([1 / r for r in range(2, 1001)])
    assert torch.allclose(found[:, :999], (wanted / wanted.sum()).expand(3, -1))


def test_the_others_are_compared_whatever_the_label_has():
    """Moving the label's logit changes neither the loss nor any gradient, and gets none."""
    z = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    t = torch.tensor([[0.0, 0.5, 0.3, 0.2], [0.1, 0.9, 0.0, 0.0]])
    loss = AmongOthers()(z, Target(t, "probabilities"))
    p = z.detach().exp()
    first = sum(t[0, c] * math.log(t[0, c] / (p[0, c] / p[0, 1:].sum())) for c in (1, 2, 3))
    second = sum(t[1, c] * math.log(t[1, c] / (p[1, c] / p[1, :2].sum())) for c in (0, 1))
    assert loss.tolist() == pytest.approx([float(first), float(second)], rel=1e-5)
    loss.sum().backward()
    assert z.grad is not None
    assert z.grad[0, 0] == 0
    assert z.grad[1, 2:].tolist() == [0, 0]
    moved = z.detach() + torch.tensor([[100.0, 0, 0, 0], [0, 0, -100.0, 100.0]])
    assert AmongOthers()(moved, Target(t, "probabilities")).tolist() == pytest.approx(loss.tolist(), rel=1e-4)


def test_a_row_that_is_surer_than_the_others_counts_more_and_rows_without_a_label_do_not():
    z = torch.tensor([[2.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    valid = torch.tensor([True, True, False])
    loss = SelfWeighted()(z, Target(torch.tensor([0, 1, 0]), "classes", valid))
    s = torch.tensor([math.exp(2) / (math.exp(2) + 1), 0.5])
    weights = s**2 + 1 - (s**2).mean()
    assert loss[:2].tolist() == pytest.approx((-weights * s.log()).tolist(), rel=1e-5)
    assert float(weights.mean()) == pytest.approx(1.0)
    assert weights[0] > weights[1]


def test_several_positions_vote() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = record(zipf_smoothing(weight=1.0), Path(folder) / "run")
    x = next(run.batches())[1]["x"].x
    votes = run.model()(x)["dense:stages.2"].argmax(-1)
    assert votes.shape[1] == 4
    assert bool((votes != votes[:, :1]).any()), "positions that agree would test nothing"
