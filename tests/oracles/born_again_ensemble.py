"""Born-again ensemble: generation k learns (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T), t the mean of all before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(
    run: Recorded, generations: int = 3, xi: float = 1.0, temperature: float = 1.0
) -> tuple[list[float], nn.Module]:
    losses, earlier = list[float](), list[nn.Module]()
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            z = model(x)
            loss = F.cross_entropy(z, y)
            if earlier:
                with torch.no_grad():
                    mean = torch.stack([teacher(x).softmax(1) for teacher in earlier]).mean(0)
                    t = mean ** (1 / temperature)
                    t = t / t.sum(1, keepdim=True)
                kl = F.kl_div((z / temperature).log_softmax(1), t, reduction="batchmean")
                loss = (1 - xi) * loss + xi * temperature**2 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        earlier.append(model.eval())
    return losses, model
