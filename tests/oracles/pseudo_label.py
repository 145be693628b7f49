"""Pseudo-label: L = CE(y, p(x)) + a(t) mean over u of 1[max p >= c] CE(argmax p(u), p(u))."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, Shares, beside, bounded

OTHER = {"weight": 2.0, "start": 0.3, "end": 0.8, "ratio": 2.0, "confidence": 0.33, "balance": "uniform"}


def oracle(
    run: Recorded,
    weight: float = 3.0,
    start: float = 0.1,
    end: float = 0.6,
    ratio: float | None = None,
    confidence: float = 0.0,
    max_error: float | None = None,
    balance: str = "",
) -> tuple[list[float], nn.Module]:
    model, shares = run.model(), Shares()
    limit = confidence if max_error is None else float("inf")
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        x, y, u = batch["labelled"].x, batch["labelled"].y, batch["unlabelled"].x
        assert len(u) == beside(clock, ratio, 8.0)
        z, v = model(torch.cat([x, u])).split([len(x), len(u)])
        q = v.detach().softmax(1)
        sure, guess = (shares.even(clock, q) if balance else q).max(1)
        pseudo = F.cross_entropy(v, guess, reduction="none")[sure >= limit].sum() / len(u)
        t = clock.step / (clock.epochs * clock.per_epoch)
        a = 0.0 if t < start else weight if t >= end else weight * (t - start) / (end - start)
        loss = F.cross_entropy(z, y) + a * pseudo
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max_error is not None and (clock.step + 1) % clock.per_epoch == 0:
            limit = bounded(run, model, max_error)
    return losses, model
