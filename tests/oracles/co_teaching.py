"""Co-teaching: each of two networks learns the rows whose loss is smallest for the other one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"noise": 0.6, "ramp": 1.0}


def oracle(run: Recorded, noise: float = 0.4, ramp: float = 0.05) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer = run.optimizer(model)
    losses = []
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        z = model(x)["peers"]  # (batch, 2, classes)
        forget = noise * min(clock.epoch / (ramp * clock.epochs), 1.0)
        keep = int((1 - forget) * len(y))
        first, second = (F.cross_entropy(z[:, k], y, reduction="none") for k in (0, 1))
        loss = first[second.argsort()[:keep]].mean() + second[first.argsort()[:keep]].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
