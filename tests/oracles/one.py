"""ONE: branches on a trunk, each taught by label and by the gated sum of all, which learns from the label too."""

from __future__ import annotations

import math
from typing import Any, cast

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"branches": 2, "temperature": 2.0, "weight": 0.5, "ramp": 0.9}


def oracle(
    run: Recorded, branches: int = 3, temperature: float = 3.0, weight: float = 1.0, ramp: float = 4 / 15
) -> tuple[list[float], nn.Module]:
    model: Any = cast(Any, run.model())
    optimizer = run.optimizer(model)
    losses = list[float]()
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        for stage in model.trunk:
            x = stage(x)
        z = [model.classifiers[k](model.members[k](x)) for k in range(branches)]
        linear, norm, _ = model.gate
        g = norm(linear(x.mean((2, 3)))).relu().softmax(1)
        total = sum(g[:, k, None] * z[k] for k in range(branches))
        t = (total.detach() / temperature).softmax(1)
        w = weight * math.exp(-5 * (1 - min(1, clock.epoch / (ramp * clock.epochs))) ** 2)
        loss = F.cross_entropy(total, y)
        for k in range(branches):
            kl = F.kl_div((z[k] / temperature).log_softmax(1), t, reduction="batchmean")
            loss = loss + F.cross_entropy(z[k], y) + w * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, cast(nn.Module, model)
