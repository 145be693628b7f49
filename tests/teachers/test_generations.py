"""Teachers from earlier in the same training, and from beyond the last generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import TrainingClock
from selfdistill.errors import RecipeError
from selfdistill.losses import CrossEntropy
from selfdistill.methods import beyond, snapshot_distillation
from selfdistill.teachers import Extrapolated, Snapshot
from selfdistill.testing.specimens import same_bits
from selfdistill.training.fit import fit
from tests.harness import build, tiny_data


def test_the_learning_rate_starts_again_in_each_cycle_and_a_resumed_run_goes_on(tmp_path):
    """12 steps in 3 cycles; cut inside the second cycle, the run ends with the same weights and the same snapshot."""
    rates: list[float] = []
    stop = [9]

    def watch(clock, batches, loss):
        if stop[0] and clock.step == stop[0]:
            stop[0] = 0
            raise KeyboardInterrupt

    method = snapshot_distillation(cycles=3)
    options: Any = {"steps": 12, "batch_size": 11, "lr": 0.1, "optimizer": "sgd", "save_steps": 1}
    whole = fit(build, tiny_data(0), method, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(build, tiny_data(0), method, out=tmp_path, watch=watch, **options)
    again = fit(build, tiny_data(0), method, out=tmp_path, resume=True, **options)
    assert same_bits(dict(whole.model.state_dict()), dict(again.model.state_dict()))
    assert whole.objective is not None
    assert again.objective is not None
    assert same_bits(dict(whole.objective.state_dict()), dict(again.objective.state_dict()))

    from selfdistill.training.settings import Settings

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = Settings(**options).make_scheduler(optimizer, 12, 3)
    for _ in range(12):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    once = [0.05 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert rates == pytest.approx(once * 3)


def test_a_snapshot_is_the_student_at_the_end_of_the_last_cycle_and_nothing_in_between():
    model = nn.Linear(2, 3)
    method = Method({"t": Term(Snapshot(cycles=2, temperature=2.0), CrossEntropy())})
    objective = method.bind(model, clock=TrainingClock(epochs=4), vitals=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.randn(5, 2), torch.zeros(5, dtype=torch.int64)
    state: Any = objective.states["t_snapshot"]
    taken = []
    for step in range(4):
        target = Snapshot(2, 2.0).target(state, objective.forward_views({"x": x, "y": y}), method.terms["t"])
        assert (target.valid is None) == (step >= 2)
        loss = objective({"x": x, "y": y}) + nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update()
        taken.append([w.clone() for w in state.module.parameters()])
        if step == 1:
            assert all(torch.equal(a, b) for a, b in zip(taken[1], model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(taken[1], taken[3], strict=True))
    assert not torch.equal(taken[0][0], taken[1][0])
    target = Snapshot(2, 2.0).target(state, objective.forward_views({"x": x, "y": y}), method.terms["t"])
    assert torch.allclose(target.value, (state.module(x) / 2).softmax(1))


def mixed(xi, teacher_logits, label):
    """What `Extrapolated` says of one row whose teacher has these logits."""

    class Always(nn.Module):
        def forward(self, x):
            return torch.tensor([teacher_logits])

    term = Term(Extrapolated(xi=xi), CrossEntropy())
    objective = Method({"t": term}, generations=2).bind(nn.Linear(1, 3), previous=Always(), clock=TrainingClock(1, 2))
    state = objective.states["t_extrapolated"]
    step = objective.forward_views({"x": torch.zeros(1, 1), "y": torch.tensor([label])})
    return term.teacher.target(state, step, term).value[0]


def test_extrapolated_is_the_papers_mixture_where_that_is_a_distribution():
    """t = (.7, .2, .1), label 0: at xi 1.5 t_0 > 1 - 1 / 1.5, so the mixture is (.55, .3, .15)."""
    logits = [math.log(p) for p in (0.7, 0.2, 0.1)]
    assert mixed(1.5, logits, 0).tolist() == pytest.approx([0.55, 0.3, 0.15])
    assert mixed(0.4, logits, 1).tolist() == pytest.approx([0.28, 0.68, 0.04])


def test_extrapolated_leaves_a_label_that_the_teacher_does_not_believe():
    """t_2 = .1 < 1/3: the label would have weight -.35, and is cut off; below 0 the label alone is left."""
    logits = [math.log(p) for p in (0.7, 0.2, 0.1)]
    assert mixed(1.5, logits, 2).tolist() == pytest.approx([7 / 9, 2 / 9, 0])
    assert mixed(-0.5, logits, 1).tolist() == pytest.approx([0, 1, 0])
    assert mixed(1.5, logits, -1).tolist() == pytest.approx([0.7, 0.2, 0.1]), "without a label the teacher speaks alone"


def test_what_makes_no_sense_is_refused():
    with pytest.raises(RecipeError, match="at least two"):
        snapshot_distillation(cycles=1)
    with pytest.raises(RecipeError, match="loss='ce' or loss='squared'"):
        beyond(loss="kl")


def test_the_squared_form_is_bounded_below_for_every_xi():
    """||xi t + (1 - xi) y - p||^2 + xi (1 - xi) ||t - y||^2 >= xi (1 - xi) ||t - y||^2, and p is in the simplex."""
    t, y = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.0, 1.0, 0.0])
    for xi in (-2.0, 0.3, 1.5, 4.0):
        for p in (*torch.eye(3), torch.tensor([0.2, 0.5, 0.3])):
            parts = (1 - xi) * (y - p).square().sum() + xi * (t - p).square().sum()
            whole = (xi * t + (1 - xi) * y - p).square().sum() + xi * (1 - xi) * (t - y).square().sum()
            assert float(parts) == pytest.approx(float(whole), abs=1e-6)


def test_a_first_cycle_without_a_teacher_is_no_reason_for_a_warning():
    """Eight looks in the first cycle: the term waits; with a teacher that is never there it would be told."""
    whole = fit(build, tiny_data(0), snapshot_distillation(cycles=2), steps=120, batch_size=11)
    assert not any(line.get("warnings") for line in whole.history)
    assert whole.objective is not None
    assert whole.objective.vitals().terms["past"]["looks"] == 8
    assert Snapshot(3).has_no_target(TrainingClock(epochs=9).at(2))
    assert not Snapshot(3).has_no_target(TrainingClock(epochs=9).at(3))
