"""Schedules at the places their papers name, and over a whole run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.core.parts import Term
from selfdistill.core.step import TrainingClock
from selfdistill.losses import CrossEntropy
from selfdistill.schedules import ByGeneration, Linear, Ramp, Rise, RunDecay, RunShare, ShortRun
from selfdistill.teachers import Labels


def test_linear_is_the_schedule_of_ps_kd():
    """alpha_t = alpha t / T with t = 1..T: the first epoch has alpha / T and the last has alpha."""
    values = [Linear(0.0, 0.8)(TrainingClock(epoch=e, epochs=300)) for e in range(300)]
    assert values[0] == pytest.approx(0.8 / 300)
    assert values[-1] == pytest.approx(0.8)
    assert values == pytest.approx([0.8 * t / 300 for t in range(1, 301)])


def test_linear_changes_by_epoch_only():
    """Steps within an epoch share one value."""
    clock = TrainingClock(epochs=4, per_epoch=5)
    values = [Linear(1.0, 0.0)(clock.at(step)) for step in range(20)]
    assert values == [v for v in (0.75, 0.5, 0.25, 0.0) for _ in range(5)]


@settings(deadline=None)
@given(st.floats(0.01, 1), st.integers(0, 200))
def test_ramp_is_the_sigmoid_of_mean_teacher(share, step):
    """exp(-5 (1 - t)^2) up to the share, then the peak; never above it and never falling."""
    clock = TrainingClock(step=step, epochs=1, per_epoch=200)
    t = min(1.0, step / (200 * share))
    ramp = Ramp(100.0, share)
    assert ramp(clock) == pytest.approx(100 * math.exp(-5 * (1 - t) ** 2))
    assert ramp(clock) <= ramp(clock.at(min(step + 1, 200))) <= 100


def test_ramp_begins_low_and_a_share_of_zero_is_no_ramp():
    """exp(-5) at the first step; the peak at once where no ramp is wanted."""
    assert Ramp(1.0, 0.5)(TrainingClock(epochs=10)) == pytest.approx(math.exp(-5))
    assert Ramp(3.0, 0.0)(TrainingClock(epochs=10)) == 3.0


def test_by_generation():
    """The first generation has no predecessor and a value of its own."""
    assert [ByGeneration(1.0, 0.1)(TrainingClock(generation=g, generations=4)) for g in range(4)] == [
        1.0,
        0.1,
        0.1,
        0.1,
    ]


@pytest.mark.parametrize("steps", [0, 7])
def test_clock_counts_steps_epochs_and_progress(steps):
    """The epoch follows from the step; progress ends at 1; a limit on steps cuts the generation short."""
    clock = TrainingClock(epochs=3, per_epoch=4, steps=steps)
    assert clock.length == (steps or 12)
    assert [clock.at(s).epoch for s in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert clock.at(12).epoch == 2
    assert [clock.at(s).progress for s in (0, 3, 12)] == [0, 3 / (steps or 12), 1]


@settings(deadline=None)
@given(st.floats(-10, 10, allow_nan=False))
def test_a_number_is_a_schedule(weight):
    """A term weighs by a number or by a function of the clock."""
    clock = TrainingClock(epoch=1, epochs=2)
    assert Term(Labels(), CrossEntropy(), weight=weight).weight_at(clock) == weight
    assert Term(Labels(), CrossEntropy(), weight=lambda c: weight * c.epoch).weight_at(clock) == weight


@given(st.integers(2, 2**21))
def test_a_short_run_has_larger_shares_and_shorter_averages(steps):
    """Shares fall to the paper's and decays rise to it with the length; beyond it shares stay."""
    clock, paper = TrainingClock(steps=steps), 2**20
    share, decay = RunShare(0.1, 0.4, paper)(clock), RunDecay(0.999, paper)(clock)
    assert share == pytest.approx(0.1 + 0.3 * max(0.0, 1 - steps / paper))
    assert 0.9 <= decay < 1.0
    assert (1 - decay) * steps == pytest.approx(min(0.1 * steps, 0.001 * paper))
    ramp = ShortRun(Rise(2.0, 0.1), 0.4, paper)
    assert ramp(clock.at(0)) == 0.0
    assert ramp(TrainingClock(steps=steps, step=steps)) == 2.0
