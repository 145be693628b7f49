"""OKDDip: peers attend to each other, a leader follows their mean; both sides of each divergence learn.

A divergence is reported by its two halves, one for each side that learns.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"branches": 3, "temperature": 2.0, "weight": 0.5, "ramp": 0.9}


def divergence(t: torch.Tensor, p: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 KL(t^T || p^T), (batch,); gradient to both."""
    log_t, log_p = (t / temperature).log_softmax(-1), (p / temperature).log_softmax(-1)
    return temperature**2 * (log_t.exp() * (log_t - log_p)).sum(-1)


def oracle(
    run: Recorded, branches: int = 4, temperature: float = 3.0, weight: float = 1.0, ramp: float = 4 / 15
) -> tuple[list[float], nn.Module]:
    model: Any = cast(Any, run.model())
    optimizer = run.optimizer(model)
    losses = list[float]()
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        for stage in model.trunk:
            x = stage(x)
        f = [model.members[k](x) for k in range(branches)]
        *z, leader = [model.classifiers[k](f[k]) for k in range(branches)]
        w = weight * math.exp(-5 * (1 - min(1, clock.epoch / (ramp * clock.epochs))) ** 2)
        teach, loss = torch.zeros(()), F.cross_entropy(leader, y)
        for k in range(branches - 1):
            match = [(model.query(f[k]) * model.key(f[j])).sum(1) for j in range(branches - 1)]
            a = torch.stack(match, 1).softmax(1)
            attended = torch.stack([a[:, j, None] * z[j] for j in range(branches - 1)]).sum(0)
            teach = teach + divergence(attended, z[k], temperature).mean()
            loss = loss + F.cross_entropy(z[k], y)
        teach = teach + divergence(torch.stack(z).mean(0), leader, temperature).mean()
        optimizer.zero_grad()
        (loss + w * teach).backward()
        optimizer.step()
        losses.append((loss + 2 * w * teach).item())
    return losses, cast(nn.Module, model)
