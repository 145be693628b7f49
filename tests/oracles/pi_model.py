"""Pi-model, algorithm 1: L = sum of CE over labelled rows / B + w(t) ||p - p'||^2 / (B C), through both passes."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"weight": 40.0, "ramp": 0.7}


def oracle(
    run: Recorded, weight: float = 100.0, ramp: float = 80 / 300, labelled: float = 0.5
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    known, every = len(run.data.labelled), len(run.data.labelled) + len(run.data.unlabelled)
    for clock, batch in run.batches():
        y = batch["x"].y
        z, other = model(batch["x"].x), model(batch["other"].x)  # two forwards, one after another
        t = min(1.0, clock.step / (clock.epochs * clock.per_epoch) / ramp)
        apart = (z.softmax(1) - other.softmax(1)).pow(2).sum() / (CLASSES * len(y))
        label = F.cross_entropy(z, y, ignore_index=-1, reduction="sum") / len(y)
        w = weight * known / every * math.exp(-5 * (1 - t) ** 2)
        optimizer.zero_grad()
        (label + w * apart).backward()  # through both passes
        optimizer.step()
        losses.append((label + 2 * w * apart).item())
    return losses, model
