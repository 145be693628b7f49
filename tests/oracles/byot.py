"""BYOT: L = CE(y, p) + sum_i [(1 - a) CE(y, p_i) + a CE(sg p^T, p_i^T) + l ||F_i - sg F||^2] over the exits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(
    run: Recorded, alpha: float = 0.3, temperature: float = 3.0, feature: float = 0.03
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        out = model(x)
        deepest = F.softmax(out["logits"].detach() / temperature, 1)
        loss = F.cross_entropy(out["logits"], y)
        for z, f in zip(out["exits"].unbind(1), out["features"].unbind(1), strict=True):
            soft = -(deepest * F.log_softmax(z / temperature, 1)).sum(1).mean()
            distance = (f - out["feature"].detach()).square().sum(1).mean()
            loss = loss + (1 - alpha) * F.cross_entropy(z, y) + alpha * soft + feature * distance
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
