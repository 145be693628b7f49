"""The engine does what the theory says: its losses, and linear models that it distils, in float32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfdistill import Method, Target, Term, theory
from selfdistill.losses import KL, CrossEntropy, GaussianKL, Squared
from selfdistill.teachers import Generation, Labels
from tests.theory.straight import Array, data

RNG = np.random.default_rng(1)
Z, V = torch.tensor(RNG.normal(size=(2, 8, 5)))
Y = torch.tensor(np.eye(5)[RNG.integers(0, 5, 8)])


@pytest.mark.parametrize("xi", [-1.0, 0.3, 1.6])
def test_squared_mixes_as_the_identity_says(xi):
    def loss(target: Tensor) -> Tensor:
        return Squared()(Z, Target(target, "values"))

    both = xi * loss(V) + (1 - xi) * loss(Y)
    mixed = loss(torch.tensor(theory.mixed_target(V.numpy(), Y.numpy(), xi)))
    remainder = theory.squared_remainder(V.numpy(), Y.numpy(), xi).sum(-1)
    np.testing.assert_allclose(both, mixed.numpy() + remainder, rtol=1e-8)


@pytest.mark.parametrize("xi", [-0.5, 0.3, 1.0])
def test_cross_entropy_mixes_as_the_identity_says(xi):
    p, q = theory.softmax(V.numpy()), theory.softmax(Z.numpy())
    both = xi * CrossEntropy()(Z, Target(V, "logits")) + (1 - xi) * CrossEntropy()(Z, Target(Y.argmax(-1), "classes"))
    np.testing.assert_allclose(both, theory.cross_entropy(theory.mixed_target(p, Y.numpy(), xi), q), rtol=1e-8)
    np.testing.assert_allclose(KL()(Z, Target(V, "logits")), theory.cross_entropy(p, q) - theory.entropy(p), rtol=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 1000.0])
def test_the_gradient_of_kl_is_the_closed_form_at_every_temperature(temperature):
    z = Z.clone().requires_grad_()
    (found,) = torch.autograd.grad(KL(temperature)(z, Target(V, "logits")).sum(), z)
    wanted = theory.temperature_gradient(Z.numpy(), V.numpy(), temperature)
    np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-11)
    if temperature == 1000.0:
        np.testing.assert_allclose(found, theory.temperature_limit(Z.numpy(), V.numpy()), atol=2e-3)


def test_gaussian_kl_is_the_closed_form():
    teacher, student = torch.tensor([[0.3, -0.4]]).double(), torch.tensor([[-1.0, 0.8]]).double()
    wanted = theory.gaussian_kl(0.3, np.exp(-0.2), -1.0, np.exp(0.4))
    assert GaussianKL()(student, Target(teacher, "gaussian")).item() == pytest.approx(wanted, rel=1e-6)


def distilled(X, y, lam: float, xis: list[float]) -> list[Array]:
    """Coefficients of linear models that the engine teaches, generation by generation."""
    inputs, labels = torch.tensor(X, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    batch = {"x": inputs, "y": labels, "id": torch.arange(len(X))}
    previous: nn.Linear | None = None
    betas: list[Array] = []
    for xi in [0.0, *xis]:
        torch.manual_seed(len(betas))
        student = nn.Linear(X.shape[1], 1, bias=False)
        terms = {"label": Term(Labels(), Squared(), head="values", weight=1 - xi)}
        if previous is not None:
            terms["teacher"] = Term(Generation(), Squared(), head="values", weight=xi)
        objective = Method(terms).bind(student, previous=previous)
        optimizer = torch.optim.LBFGS(student.parameters(), max_iter=300, tolerance_grad=1e-9, tolerance_change=0,
                                      line_search_fn="strong_wolfe")  # fmt: skip

        def closure(student=student, objective=objective, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = len(X) * objective(batch) + lam * student.weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        previous = student
        betas.append(student.weight.detach().double().numpy().ravel())
    return betas


def test_generations_of_the_engine_follow_the_power_law_and_collapse_when_it_says():
    X, y, _ = data(2)
    lam = 60.0
    betas = distilled(X, y, lam, [1.0] * 8)
    norms = [float(np.linalg.norm(X @ beta)) for beta in betas]
    for k, beta in enumerate(betas):
        np.testing.assert_allclose(X @ beta, theory.power_law(X, y, lam, k), atol=1e-4 * norms[0])
    assert theory.collapsed_after(norms, 0.5) == theory.rounds_to_collapse(X, y, lam, 0.5)
    assert theory.collapsed_after(norms, 0.5) is not None


def test_generations_of_the_engine_end_at_ridge_with_a_larger_penalty():
    X, y, _ = data(3)
    last = distilled(X, y, 20.0, [0.4] * 12)[-1]
    np.testing.assert_allclose(last, theory.fixed_point(X, y, 20.0, 0.4), atol=1e-4)


def test_steps_of_the_engine_with_weights_of_their_own_are_the_polynomial():
    X, y, _ = data(4)
    xis = [-0.5, 1.4]
    wanted = theory.stepped(X, y, 10.0, theory.step_weights(xis))
    np.testing.assert_allclose(distilled(X, y, 10.0, xis)[-1], wanted, atol=1e-4)
