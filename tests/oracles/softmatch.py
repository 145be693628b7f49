"""SoftMatch: FixMatch with the weight exp(-min(c - m, 0)^2 / (2 s^2 / n^2)), c the confidence with classes aligned."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded, beside, forgetting, risen

OTHER = {"weight": 0.5, "decay": 0.6, "narrow": 2.0, "aligned": False, "ratio": 2.0, "ramp": 0.7}


def oracle(
    run: Recorded,
    weight: float = 1.0,
    decay: float | None = None,
    narrow: float = 1.0,
    aligned: bool = True,
    ratio: float | None = None,
    ramp: float = 0.4,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    mean, variance, share = torch.tensor(1 / CLASSES), torch.tensor(1.0), None
    for clock, batch in run.batches():
        d = forgetting(clock, 0.999) if decay is None else decay
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == beside(clock, ratio)
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        q = w.detach().softmax(1)
        guess = q.argmax(1)
        if aligned:
            share = q.mean(0) if share is None else d * share + (1 - d) * q.mean(0)
            q = q / share / (q / share).sum(1, keepdim=True)
        c = q.amax(1)
        mean = d * mean + (1 - d) * c.mean()
        variance = d * variance + (1 - d) * ((c - c.mean()) ** 2).sum() / (len(c) - 1)
        v = torch.where(c < mean, torch.exp(-((c - mean) ** 2) / (2 * variance / narrow**2)), 1.0)
        loss = (
            F.cross_entropy(z, y)
            + weight * risen(clock, ramp) * (v * F.cross_entropy(s, guess, reduction="none")).mean()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
