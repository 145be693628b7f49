"""FixMatch: L = CE(y, p(x)) + w mean over all u of 1[max q >= c] CE(argmax q, p(strong u)), q = sg p(weak u)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, Shares, beside, bounded, risen

OTHER = {"confidence": 0.35, "weight": 0.5, "ratio": 2.0, "ramp": 0.7, "balance": "uniform"}


def oracle(
    run: Recorded,
    confidence: float = 0.95,
    weight: float = 1.0,
    ratio: float | None = None,
    ramp: float = 0.4,
    max_error: float | None = None,
    balance: str = "",
) -> tuple[list[float], nn.Module]:
    model, shares = run.model(), Shares()
    limit = confidence if max_error is None else float("inf")
    optimizer = run.optimizer(model)
    losses = []
    for clock, batch in run.batches():
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"], batch["strong"]
        assert (weak.id == strong.id).all()
        assert len(weak.id) == beside(clock, ratio)
        z = model(torch.cat([x, strong.x, weak.x]))
        z_labelled, z_strong, z_weak = z.split([len(x), len(strong.x), len(weak.x)])
        q = z_weak.detach().softmax(1)
        sure, guess = (shares.even(clock, q) if balance else q).max(1)
        kept = (sure >= limit).float()
        pseudo = (kept * F.cross_entropy(z_strong, guess, reduction="none")).mean()
        loss = F.cross_entropy(z_labelled, y) + weight * risen(clock, ramp) * pseudo
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max_error is not None and (clock.step + 1) % clock.per_epoch == 0:
            limit = bounded(run, model, max_error)
    return losses, model
