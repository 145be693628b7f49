"""UDA: L = CE(y, p(x)) + w mean 1[max q >= c] CE(q^(1/T) / sum, p(strong u)); labels learnt too soon wait."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded, Shares, beside, bounded, risen

OTHER = {
    "confidence": 0.33, "temperature": 0.7, "weight": 0.5, "annealing": "log", "ratio": 2.0, "ramp": 0.7,
    "balance": "uniform",
}  # fmt: skip


def oracle(
    run: Recorded,
    confidence: float = 0.8,
    temperature: float = 0.4,
    weight: float = 1.0,
    annealing: str = "",
    ratio: float | None = None,
    ramp: float = 0.4,
    max_error: float | None = None,
    balance: str = "",
) -> tuple[list[float], nn.Module]:
    model, shares = run.model(), Shares()
    limit = confidence if max_error is None else float("inf")
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == beside(clock, ratio, 7.0, 500_000)
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        q = w.detach().softmax(1)
        q = shares.even(clock, q) if balance else q
        sharp = q ** (1 / temperature)
        sharp = sharp / sharp.sum(1, keepdim=True)
        each = -(sharp * s.log_softmax(1)).sum(1) * (q.amax(1) >= limit)
        label = F.cross_entropy(z, y, reduction="none")
        if annealing:
            t = clock.step / (clock.epochs * clock.per_epoch)
            a = {"linear": t, "log": 1 - math.exp(-5 * t), "exp": math.exp(5 * (t - 1))}[annealing]
            label = label[label.detach().neg().exp() <= 1 / CLASSES + (1 - 1 / CLASSES) * a]
        loss = label.sum() / max(1, len(label)) + weight * risen(clock, ramp, 500_000) * each.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if max_error is not None and (clock.step + 1) % clock.per_epoch == 0:
            limit = bounded(run, model, max_error)
    return losses, model
