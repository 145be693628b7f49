"""What the oracles of normal distributions share: nothing of the package, torch's own distributions."""

from __future__ import annotations

import torch
from torch import nn


def split(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and log variance of a model of two outputs; the second is bounded."""
    mean, raw = model.get_submodule("model")(x).unbind(1)
    return mean, 10 * torch.tanh(raw / 10)


def likelihood(y: torch.Tensor, mean: torch.Tensor, z: torch.Tensor, beta: float) -> torch.Tensor:
    """What torch's normal distribution says of the labels, weighed by the variance to the power beta."""
    nll: torch.Tensor = -torch.distributions.Normal(mean, torch.exp(z / 2)).log_prob(y)
    return torch.exp(z.detach()) ** beta * nll


def divergence(t: torch.Tensor, zt: torch.Tensor, mean: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """KL(N(t, exp zt) || N(mean, exp z)) = log(s / st) + (st^2 + (t - mean)^2) / (2 s^2) - 1 / 2."""
    return (z - zt) / 2 + (zt.exp() + (t - mean) ** 2) / (2 * z.exp()) - 0.5
