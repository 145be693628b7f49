"""Counts over micro-batches: what a pass that learns will count, and nothing moves."""

from __future__ import annotations

import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import PerTrust, Term
from selfdistill.gates import Confident
from selfdistill.losses import CrossEntropy
from selfdistill.teachers import CurrentStudent
from selfdistill.testing.specimens import CLASSES, WIDTH
from selfdistill.training.task import counts


def test_counts_are_those_of_the_pass_that_learns_whatever_it_draws():
    """The gate reads what dropout left, so each seed keeps other elements."""
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, CLASSES))
    term = Term(CurrentStudent(), CrossEntropy(hard=True), gate=Confident(0.4), reduction=PerTrust())
    objective = Method({"t": term}).bind(model, vitals=False)
    batches = [{"x": torch.randn(n, WIDTH)} for n in (40, 9)]
    seen = set()
    for seed in range(5):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found = counts(objective, batches)["t"]
        assert torch.equal(torch.get_rng_state(), before)
        assert found == sum(float(objective.measure(batch)["t"].tally.count) for batch in batches)
        seen.add(float(found))
    assert len(seen) > 1
