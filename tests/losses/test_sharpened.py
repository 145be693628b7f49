"""Sharpening, exclusion and entropy: against the plain formulas, row by row."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError
from selfdistill.losses import KL, CrossEntropy, Entropy, Excluding, GaussianKL, LogOneMinusInner, Sharpened, Squared

Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
T = 2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("temperature", [0.4, 0.5, 1.0, 3.0])
def test_only_the_target_is_sharpened(temperature: float) -> None:
    """CE(softmax(t / T), softmax(z)): the student keeps temperature 1, whatever form the target has."""
    sharp, log_p = F.softmax(T / temperature, dim=1), F.log_softmax(Z, dim=1)
    wanted = -(sharp * log_p).sum(1)
    for target in (Target(T, "logits"), Target(T.softmax(1), "probabilities")):
        torch.testing.assert_close(Sharpened(CrossEntropy(), temperature)(Z, target), wanted)
        torch.testing.assert_close(
            Sharpened(KL(), temperature)(Z, target), (sharp * (sharp.log() - log_p)).sum(1), atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            Sharpened(Squared(), temperature)(Z, target), (sharp - log_p.exp()).square().sum(1), atol=1e-6, rtol=1e-5
        )


def test_sharpening_tends_to_the_best_class_and_keeps_labels() -> None:
    """Temperature to 0: hard cross-entropy. A label is as sharp as can be."""
    hard = CrossEntropy(hard=True)(Z, Target(T, "logits"))
    torch.testing.assert_close(Sharpened(CrossEntropy(), 0.01)(Z, Target(T, "logits")), hard)
    labels = Target(T.argmax(1), "classes")
    torch.testing.assert_close(Sharpened(CrossEntropy(), 0.4)(Z, labels), CrossEntropy()(Z, labels))


def test_a_loss_that_takes_logits_no_more_takes_them_sharpened() -> None:
    """`LogOneMinusInner` wants probabilities, and gets them."""
    sharp = Target(F.softmax(T / 0.5, dim=1), "probabilities")
    loss = Sharpened(LogOneMinusInner(), 0.5)
    assert loss.signed
    torch.testing.assert_close(loss(Z, Target(T, "logits")), LogOneMinusInner()(Z, sharp))


def test_what_cannot_be_sharpened_is_refused() -> None:
    with pytest.raises(RecipeError, match="loss on distributions, not GaussianKL"):
        Sharpened(GaussianKL())
    with pytest.raises(RecipeError, match="above 0"):
        Sharpened(temperature=0.0)


def test_excluding_is_the_mean_log_of_what_is_left() -> None:
    """Row by row and class by class; one class excluded is -log(1 - p)."""
    m = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1], [1, 0, 1, 0], [0, 0, 0, 0]]).float()
    p = Z.softmax(1)
    wanted = [sum(-math.log(1 - p[i, c]) for c in range(4) if m[i, c]) / max(1, int(m[i].sum())) for i in range(6)]
    torch.testing.assert_close(Excluding()(Z, Target(m, "excluded")), torch.tensor(wanted))


@pytest.mark.parametrize("size", [1.0, 20.0, 200.0])
def test_excluding_stays_finite_where_the_student_is_sure_of_an_excluded_class(size: float) -> None:
    """Value and gradient, and the gradient lowers that class as long as float32 sees 1 - p."""
    z = torch.tensor([[size, 0.0, 0.0]], requires_grad=True)
    loss = Excluding()(z, Target(torch.tensor([[1.0, 0.0, 0.0]]), "excluded"))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert bool(loss.isfinite().all())
    assert bool(gradient.isfinite().all())
    assert float(gradient[0, 0]) > 0 or size > 16


def test_entropy_is_that_of_the_student_alone() -> None:
    """Against torch's own distribution; gradient through both factors."""
    z = Z.clone().requires_grad_()
    other: Tensor = torch.distributions.Categorical(logits=z).entropy()
    (wanted,) = torch.autograd.grad(other.sum(), z)
    loss = Entropy()(z, Target(T, "logits"))
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    torch.testing.assert_close(loss, other)
    torch.testing.assert_close(gradient, wanted)
