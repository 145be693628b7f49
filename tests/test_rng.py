"""Addressed randomness: the same address draws the same, whatever the batch; different addresses are independent."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill import rng

MASK = 2**64 - 1


def splitmix(state: int, outputs: int) -> list[int]:
    """The published generator, in Python's unbounded integers."""
    found = []
    for _ in range(outputs):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        found.append(z ^ (z >> 31))
    return found


def test_mixing_is_splitmix64():
    """The first output for seed 0 is the published 0xE220A8397B1DCDAF; a seed is the mixing with the sign dropped."""
    assert splitmix(0, 1) == [0xE220A8397B1DCDAF]
    assert rng.seed(0) == 0xE220A8397B1DCDAF >> 1
    assert rng.seed(5, 7) == splitmix(splitmix(5, 1)[0] ^ 7, 1)[0] >> 1


@settings(deadline=None)
@given(st.integers(0, 2**62), st.integers(0, 2**40), st.integers(1, 4))
def test_uniform_equals_the_same_in_unbounded_integers(address, sample, count):
    """Tensors wrap around and shift with sign; the reference does neither."""
    drawn = rng.uniform((address,), torch.tensor([sample]), count)[0].tolist()
    base = splitmix(sample ^ rng.seed(address), 1)[0]
    expected = [(splitmix(base ^ splitmix(i, 1)[0], 1)[0] >> 40) / 2**24 for i in range(count)]
    assert drawn == expected


@settings(deadline=None)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_what_a_sample_draws_does_not_depend_on_its_batch(order, size):
    """Any order and any part of a batch draws the same numbers for the same sample."""
    whole = rng.uniform((3, "weak", 1), torch.arange(12), 5)
    ids = torch.tensor(order[:size])
    assert rng.uniform((3, "weak", 1), ids, 5).equal(whole[ids])
    assert rng.normal((3, "weak", 1), ids, 5).equal(rng.normal((3, "weak", 1), torch.arange(12), 5)[ids])


def test_uniform_is_uniform_and_normal_is_normal():
    """Moments, range and histogram of a million numbers, within five standard errors."""
    u = rng.uniform((0, "moments"), torch.arange(250_000), 4).double()
    assert u.min() >= 0
    assert u.max() < 1
    n = u.numel()
    assert abs(u.mean().item() - 0.5) < 5 * math.sqrt(1 / 12 / n)
    counts = torch.histc(u, bins=64, min=0, max=1)
    chi2 = ((counts - n / 64).square() / (n / 64)).sum().item()
    assert chi2 < 63 + 5 * math.sqrt(2 * 63)
    z = rng.normal((0, "moments"), torch.arange(250_000), 4).double()
    assert abs(z.mean().item()) < 5 / math.sqrt(n)
    assert abs(z.square().mean().item() - 1) < 5 * math.sqrt(2 / n)
    assert abs(z.pow(4).mean().item() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.parametrize("other", [(0, "weak", 2), (1, "weak", 1), (0, "strong", 1), ("weak", 0, 1)])
def test_other_addresses_draw_independently(other):
    """Neighbouring seeds, epochs and names are uncorrelated, as are neighbouring samples and columns."""
    ids = torch.arange(50_000)
    a, b = rng.uniform((0, "weak", 1), ids, 2), rng.uniform(other, ids, 2)
    pairs = [(a[:, 0], b[:, 0]), (a[:, 0], a[:, 1]), (a[1:, 0], a[:-1, 0])]
    for x, y in pairs:
        correlation = torch.corrcoef(torch.stack([x, y]))[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(len(ids))


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 10**9))
def test_permutation_holds_each_number_once(n, seed):
    """A permutation is one, and a function of its address."""
    order = rng.permutation((seed, "order"), n)
    assert sorted(order.tolist()) == list(range(n))
    assert order.equal(rng.permutation((seed, "order"), n))


def test_permutations_of_other_epochs_differ():
    """No two epochs, generations or seeds share an order."""
    orders = {tuple(rng.permutation((s, g, e), 20).tolist()) for s in range(3) for g in range(3) for e in range(3)}
    assert len(orders) == 27
