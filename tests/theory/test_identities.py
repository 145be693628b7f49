"""Identities of losses and ensembles against torch, scikit-learn and plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_squared_error
from torch.distributions import Normal, kl_divergence

from selfdistill import theory
from selfdistill.errors import DataError

RNG = np.random.default_rng(0)
P, Q = RNG.dirichlet(np.ones(4), (2, 9))
LABELS = RNG.integers(0, 4, 9)
ONE_HOT = np.eye(4)[LABELS]


@pytest.mark.parametrize("xi", [-2.0, 0.0, 0.3, 1.0, 1.8])
def test_two_squared_losses_are_one_and_a_remainder(xi):
    f, p, y = RNG.normal(size=(3, 30))
    both = xi * mean_squared_error(p, f) + (1 - xi) * mean_squared_error(y, f)
    found = mean_squared_error(theory.mixed_target(p, y, xi), f) + theory.squared_remainder(p, y, xi).mean()
    assert found == pytest.approx(both, rel=1e-8)


def test_cross_entropy_is_that_of_scikit_learn_and_linear_in_its_target():
    assert theory.cross_entropy(ONE_HOT, Q).mean() == pytest.approx(log_loss(LABELS, Q, labels=range(4)), rel=1e-8)
    for xi in (-0.4, 0.25, 1.5):
        both = xi * -(P * np.log(Q)).sum(1) + (1 - xi) * -np.log(Q[range(9), LABELS])
        np.testing.assert_allclose(theory.cross_entropy(theory.mixed_target(P, ONE_HOT, xi), Q), both, rtol=1e-8)
    divergence = kl_divergence(*(torch.distributions.Categorical(torch.tensor(each)) for each in (P, Q)))
    np.testing.assert_allclose(theory.cross_entropy(P, Q) - theory.entropy(P), divergence, rtol=1e-8)
    assert theory.cross_entropy([[1.0, 0.0]], [[1.0, 0.0]]) == 0, "0 log 0 is 0"
    with pytest.raises(DataError, match="shape"):
        theory.mixed_target(P, ONE_HOT[0], 0.5)


def test_a_uniform_teacher_is_label_smoothing_as_torch_does_it():
    logits = torch.tensor(np.log(Q))
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(LABELS), label_smoothing=0.1, reduction="none")
    found = theory.cross_entropy(theory.mixed_target(np.full((9, 4), 0.25), ONE_HOT, 0.1), Q)
    np.testing.assert_allclose(found, wanted, rtol=1e-8)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 1000.0])
def test_the_temperature_gradient_is_autograds(temperature):
    z, v = RNG.normal(size=(2, 6))
    student = torch.tensor(z, requires_grad=True)
    p, log_q = torch.softmax(torch.tensor(v) / temperature, 0), torch.log_softmax(student / temperature, 0)
    (wanted,) = torch.autograd.grad(temperature**2 * (p * (p.log() - log_q)).sum(), student)
    np.testing.assert_allclose(theory.temperature_gradient(z, v, temperature), wanted, rtol=1e-8, atol=1e-11)
    if temperature == 1000.0:
        limit = theory.temperature_limit(z + 3.0, v - 1.0)
        np.testing.assert_allclose(limit, (z - z.mean() - v + v.mean()) / 6, rtol=1e-8)
        np.testing.assert_allclose(wanted, limit, atol=2e-3)


def test_the_divergence_of_normals_is_torchs():
    for m1, s1, m2, s2 in RNG.uniform(0.3, 3.0, (20, 4)):
        wanted = kl_divergence(*(Normal(torch.tensor(m, dtype=torch.float64), s) for m, s in ((m1, s1), (m2, s2))))
        assert theory.gaussian_kl(m1, s1, m2, s2) == pytest.approx(wanted.item(), rel=1e-8)
    with pytest.raises(DataError, match="std"):
        theory.gaussian_kl(0.0, 0.0, 0.0, 1.0)


def test_the_matched_normal_has_the_mixtures_moments():
    means, stds = np.array([-1.0, 0.5, 3.0]), np.array([0.3, 1.0, 2.0])
    draws = RNG.normal(np.repeat(means, 200_000), np.repeat(stds, 200_000))
    mean, within, between = theory.moment_matched(means, stds)
    assert mean == pytest.approx(draws.mean(), rel=0.05)
    assert within + between == pytest.approx(draws.var(), rel=0.05)
    assert within + between == pytest.approx((stds**2 + means**2).mean() - means.mean() ** 2, rel=1e-8)
    assert theory.moment_matched([2.0, 2.0], [1.0, 3.0]) == (2.0, 5.0, 0.0)


def test_the_ensembles_error_is_its_members_less_their_spread():
    f, y = RNG.normal(size=(5, 30)), RNG.normal(size=30)
    members = np.mean([mean_squared_error(y, each) for each in f])
    ensemble = mean_squared_error(y, f.mean(axis=0))
    assert members - theory.ambiguity(f).mean() == pytest.approx(ensemble, rel=1e-8)


def test_disagreement_is_the_information_of_the_member_about_the_class():
    """Mutual information by its definition over the joint table of member and class."""
    p = RNG.dirichlet(np.ones(4), 6)
    joint = p / 6
    wanted = sum(
        joint[k, c] * math.log(joint[k, c] / (joint[k].sum() * joint[:, c].sum())) for k in range(6) for c in range(4)
    )
    assert float(theory.bald(p)) == pytest.approx(wanted, rel=1e-8)
    assert wanted > 0
    assert float(theory.bald([p[0]] * 3)) == pytest.approx(0, abs=1e-12)
