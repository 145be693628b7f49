"""Pseudo-label: L = CE(y, p(x)) + a(t) mean over u of 1[max p >= c] CE(argmax p(u), p(u))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, beside

OTHER = {"weight": 2.0, "start": 0.3, "end": 0.8, "ratio": 2.0, "confidence": 0.33}


def oracle(
    run: Recorded,
    weight: float = 3.0,
    start: float = 0.1,
    end: float = 0.6,
    ratio: float | None = None,
    confidence: float = 0.0,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        x, y, u = batch["labelled"].x, batch["labelled"].y, batch["unlabelled"].x
        assert len(u) == beside(clock, ratio, 8.0)
        z, v = model(torch.cat([x, u])).split([len(x), len(u)])
        sure, guess = v.detach().softmax(1).max(1)
        pseudo = F.cross_entropy(v, guess, reduction="none")[sure >= confidence].sum() / len(u)
        t = clock.step / (clock.epochs * clock.per_epoch)
        a = 0.0 if t < start else weight if t >= end else weight * (t - start) / (end - start)
        loss = F.cross_entropy(z, y) + a * pseudo
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
