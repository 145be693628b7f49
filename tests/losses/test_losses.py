"""Losses against closed forms, `torch.distributions` and brute force: none of it shares their code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from selfdistill.core.targets import Target
from selfdistill.errors import SpaceError
from selfdistill.losses import KL, CrossEntropy, GaussianKL, GaussianNLL, LogOneMinusInner, Squared, check_spaces

CLASSES = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_probabilities(rows: int = 7, seed: int = 3) -> Tensor:
    weights = normal(rows, CLASSES, seed=seed).exp()
    return weights / weights.sum(-1, keepdim=True)


def one_hot(labels: Tensor) -> Tensor:
    return (labels[:, None] == torch.arange(CLASSES)).double()


Z, V, P = normal(7, CLASSES, seed=1), normal(7, CLASSES, seed=2), some_probabilities()
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 2])


def target(value: Tensor, space: str = "probabilities") -> Target:
    return Target(value, space)


# squared and cross-entropy identities ---------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.floats(-5, 5), st.integers(0, 1000))
def test_squared_mixes_targets_for_every_real_xi(xi, seed):
    """xi (yh - f)^2 + (1 - xi)(y - f)^2 = (t - f)^2 + xi (1 - xi)(yh - y)^2 with t = xi yh + (1 - xi) y."""
    f, y, yh = (normal(6, 3, seed=seed + i) for i in range(3))
    loss = Squared()
    left = xi * loss(f, target(yh, "values")) + (1 - xi) * loss(f, target(y, "values"))
    mixed = loss(f, target(xi * yh + (1 - xi) * y, "values"))
    torch.testing.assert_close(left, mixed + xi * (1 - xi) * (yh - y).pow(2).sum(-1), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("xi", [-0.5, 0.0, 0.3, 1.0, 1.7])
def test_cross_entropy_is_linear_in_its_target(xi):
    """xi CE(p, q) + (1 - xi) CE(y, q) = CE(xi p + (1 - xi) y, q)."""
    loss = CrossEntropy()
    left = xi * loss(Z, target(P)) + (1 - xi) * loss(Z, target(LABELS, "classes"))
    torch.testing.assert_close(left, loss(Z, target(xi * P + (1 - xi) * one_hot(LABELS))))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_cross_entropy_less_entropy(temperature):
    """KL / T^2 = CE - H(t), both at the temperature; and it is the divergence of `torch.distributions`."""
    t = Categorical(logits=V / temperature)
    ce = CrossEntropy(temperature)(Z, target(V, "logits"))
    divergence = KL(temperature)(Z, target(V, "logits")) / temperature**2
    torch.testing.assert_close(divergence, ce - t.entropy())
    torch.testing.assert_close(divergence, kl_divergence(t, Categorical(logits=Z / temperature)))


def test_kl_of_a_label_is_its_surprise():
    """A one-hot target has no entropy: 0 log 0 counts as 0, in value and gradient."""
    z = Z.clone().requires_grad_()
    loss = KL()(z, target(one_hot(LABELS)))
    torch.testing.assert_close(loss, F.cross_entropy(Z, LABELS, reduction="none"))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    torch.testing.assert_close(gradient, Categorical(logits=Z).probs - one_hot(LABELS))


def test_kl_and_cross_entropy_have_the_same_gradient_at_temperature_one():
    """The entropy of a target does not depend on the student."""
    gradients = []
    for loss in (KL(), CrossEntropy()):
        z = Z.clone().requires_grad_()
        gradients.append(torch.autograd.grad(loss(z, target(P)).sum(), z)[0])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("xi", [0.1, 0.5])
def test_a_teacher_that_knows_nothing_is_label_smoothing(xi):
    """A uniform teacher of weight xi is PyTorch's smoothing xi, and ours of xi (C - 1) / C."""
    loss, uniform = CrossEntropy(), torch.full_like(P, 1 / CLASSES)
    taught = xi * loss(Z, target(uniform)) + (1 - xi) * loss(Z, target(LABELS, "classes"))
    torch.testing.assert_close(taught, F.cross_entropy(Z, LABELS, label_smoothing=xi, reduction="none"))
    ours = CrossEntropy(smoothing=xi * (CLASSES - 1) / CLASSES)
    torch.testing.assert_close(taught, ours(Z, target(LABELS, "classes")))
    torch.testing.assert_close(taught, ours(Z, target(one_hot(LABELS))))


def test_smoothing_leaves_the_label_what_it_says():
    """1 - e stays on the label; e / (C - 1) goes to each other class."""
    log_q = torch.log_softmax(Z, -1)
    spread = one_hot(LABELS) * 0.8 + (1 - one_hot(LABELS)) * 0.2 / (CLASSES - 1)
    torch.testing.assert_close(CrossEntropy(smoothing=0.2)(Z, target(LABELS, "classes")), -(spread * log_q).sum(-1))


def test_hard_takes_the_best_class_alone():
    """``hard`` turns a distribution, or logits, into the label of its largest component."""
    best = P.argmax(-1)
    for given_target in (target(P), target(P.log(), "logits")):
        found = CrossEntropy(hard=True)(Z, given_target)
        torch.testing.assert_close(found, F.cross_entropy(Z, best, reduction="none"))


# temperature ----------------------------------------------------------------------------------------------------------


def kl_gradient(z: Tensor, v: Tensor, temperature: float) -> Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(KL(temperature)(z, target(v, "logits")).sum(), z)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1e3])
def test_gradient_of_the_tempered_kl(temperature):
    """d/dz [T^2 KL(p_T || q_T)] = T (q_T - p_T)."""
    q, p = (Categorical(logits=x / temperature).probs for x in (Z, V))
    torch.testing.assert_close(kl_gradient(Z, V, temperature), temperature * (q - p), atol=1e-11, rtol=1e-9)


def test_high_temperature_matches_logits():
    """For zero-mean logits C times the gradient tends to z - v: errors fall from about 1 to about 1e-3 as T grows."""
    z, v = (x - x.mean(-1, keepdim=True) for x in (Z, V))
    errors = [(CLASSES * kl_gradient(z, v, t) - (z - v)).abs().max().item() for t in (1.0, 4.0, 1e3)]
    assert 0.3 < errors[0] < 3
    assert 0.1 < errors[1] < errors[0]
    assert errors[2] < 4e-3
    assert (z - v).abs().max() > 1


# log(1 - <p, t>) ------------------------------------------------------------------------------------------------------


def test_log_one_minus_inner_and_its_gradient():
    """log(1 - <p, t>) with gradient p (<p, t> - t) / (1 - <p, t>), as ELR derives it."""
    z = Z.clone().requires_grad_()
    p = Categorical(logits=Z).probs
    inner = torch.einsum("rc,rc->r", p, P)
    loss = LogOneMinusInner()(z, target(P))
    torch.testing.assert_close(loss, torch.log1p(-inner))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    torch.testing.assert_close(gradient, p * (inner[:, None] - P) / (1 - inner[:, None]))


def test_log_one_minus_inner_stays_finite_where_the_student_is_sure():
    """At full agreement the clamp keeps log(1 - 1) at log(clamp)."""
    sure = 100 * one_hot(LABELS)
    loss = LogOneMinusInner(clamp=1e-4)(sure, target(one_hot(LABELS)))
    torch.testing.assert_close(loss, torch.full_like(loss, math.log(1e-4)))


# normal distributions -------------------------------------------------------------------------------------------------


def gaussian(mean: Tensor, deviation: Tensor) -> Tensor:
    return torch.stack([mean, 2 * deviation.log()], -1)


def test_gaussian_kl_against_integration():
    """KL(target || student) by the trapezoidal rule on a fine grid, and by `torch.distributions`."""
    m1, s1, m2, s2 = torch.tensor([[0.3, 0.7, -0.4, 1.2], [-1.0, 2.0, 0.5, 0.6]], dtype=torch.float64).T
    teacher, student = Normal(m1, s1), Normal(m2, s2)
    x = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    integrand = teacher.log_prob(x).exp() * (teacher.log_prob(x) - student.log_prob(x))
    found = GaussianKL()(gaussian(m2, s2), target(gaussian(m1, s1), "gaussian"))
    torch.testing.assert_close(found, torch.trapezoid(integrand, x, dim=0), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(found, kl_divergence(teacher, student))


def test_gaussian_nll_is_minus_the_log_density():
    """Of the normal distribution that the head names, for values (rows, 1)."""
    mean, deviation, y = normal(9, seed=4), normal(9, seed=5).exp(), normal(9, seed=6)
    found = GaussianNLL()(gaussian(mean, deviation), target(y[:, None], "values"))
    torch.testing.assert_close(found, -Normal(mean, deviation).log_prob(y))


def test_the_best_single_gaussian_for_an_ensemble_matches_its_moments():
    """mean_k KL(N_k || N) is stationary at m = mean m_k, s^2 = mean(s_k^2 + m_k^2) - m^2, and larger around it."""
    means, deviations = normal(4, seed=7), normal(4, seed=8).exp()
    mean = means.mean()
    variance = (deviations**2 + means**2).mean() - mean**2
    torch.testing.assert_close(variance, deviations.pow(2).mean() + means.var(unbiased=False))

    def cost(student: Tensor) -> Tensor:
        return GaussianKL()(student.expand(4, 2), target(gaussian(means, deviations), "gaussian")).mean()

    best = torch.stack([mean, variance.log()]).requires_grad_()
    (gradient,) = torch.autograd.grad(cost(best), best)
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.float64), atol=1e-12, rtol=0)
    for step in 0.1 * normal(8, 2, seed=9):
        assert cost(best + step) > cost(best)


# ensembles ------------------------------------------------------------------------------------------------------------


def test_ambiguity_decomposition():
    """(fbar - y)^2 = mean_k (f_k - y)^2 - mean_k (f_k - fbar)^2 (Krogh and Vedelsby): what peers can teach."""
    f, y = normal(6, 4, 1, seed=10), normal(6, 1, seed=11)  # (rows, peers, outputs)
    fbar = f.mean(1)
    loss = Squared()
    own = loss(f, target(y, "values").spread(f)).mean(1)
    ambiguity = loss(f, target(fbar, "values").spread(f)).mean(1)
    torch.testing.assert_close(loss(fbar, target(y, "values")), own - ambiguity)


def test_bald_is_the_mean_divergence_to_the_mean():
    """H(mean p_k) - mean H(p_k) = mean_k KL(p_k || pbar); 0 if and only if the members agree."""
    members = torch.stack([some_probabilities(seed=s) for s in range(4)], 1)  # (rows, K, classes)
    pbar = members.mean(1)
    student = pbar.log()[:, None].expand_as(members)
    bald = KL()(student, target(members)).mean(1)
    torch.testing.assert_close(bald, Categorical(pbar).entropy() - Categorical(members).entropy().mean(1))
    assert (bald > 1e-3).all()
    agree = members[:, :1].expand_as(members)
    torch.testing.assert_close(KL()(agree.log(), target(agree)), torch.zeros(7, 4, dtype=torch.float64))


# squared on distributions, and what is refused ------------------------------------------------------------------------


def test_squared_compares_logits_as_probabilities():
    """The consistency cost of Mean Teacher; ``mean`` divides by the number of classes."""
    q, t = Categorical(logits=Z).probs, Categorical(logits=V).probs
    pairs = zip(q.tolist(), t.tolist(), strict=True)
    brute = torch.tensor([sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) for rows in pairs])
    torch.testing.assert_close(Squared()(Z, target(V, "logits")), brute, check_dtype=False)
    torch.testing.assert_close(Squared(mean=True)(Z, target(V, "logits")), brute / CLASSES, check_dtype=False)


@pytest.mark.parametrize(
    ("loss", "student", "wrong"),
    [
        (Squared(), torch.zeros(2, 3), Target(torch.zeros(2, 1), "values")),
        (Squared(), torch.zeros(2, 1), Target(torch.zeros(2, 3), "features")),
        (GaussianNLL(), torch.zeros(2, 2), Target(torch.zeros(2, 2), "values")),
        (CrossEntropy(hard=True), torch.zeros(2, 3), Target(torch.zeros(2, 9), "logits")),
        (KL(), torch.zeros(2, 3), Target(torch.zeros(2, 1), "probabilities")),
        (LogOneMinusInner(), torch.zeros(2, 3), Target(torch.ones(2, 1), "probabilities")),
    ],
)
def test_nothing_is_stretched_by_broadcasting(loss, student, wrong):
    """A target of another width is refused where PyTorch would broadcast it in silence."""
    with pytest.raises(SpaceError, match="does not fit"):
        loss(student, wrong)


@pytest.mark.parametrize(
    ("loss", "student", "space", "fault"),
    [
        (KL(), "features", "logits", "KL compares a student of logits, not of features"),
        (KL(), "logits", "features", "not of features"),
        (CrossEntropy(), "logits", "values", "not of values"),
        (Squared(), "values", "features", "a student of values and a target of features"),
        (Squared(), "logits", "values", "a student of logits and a target of values"),
        (Squared(), "features", "probabilities", "a student of features and a target of probabilities"),
        (LogOneMinusInner(), "logits", "logits", "not of logits"),
        (GaussianNLL(), "gaussian", "gaussian", "not of gaussian"),
        (GaussianKL(), "gaussian", "values", "not of values"),
        (KL(), "logits", "classes", None),
        (Squared(), "logits", "probabilities", None),
        (GaussianKL(), "gaussian", "gaussian", None),
    ],
)
def test_spaces_that_do_not_match_are_named(loss, student, space, fault):
    """The message says what is there and what was wanted."""
    found = check_spaces(loss, student, space)
    assert found is None if fault is None else fault in str(found)
