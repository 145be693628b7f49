"""Born-again networks: generation k learns (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T) from generation k - 1.

The cross-entropy form has CE(t^T, p^T) in the place of T^2 KL.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(
    run: Recorded, generations: int = 2, xi: float = 1.0, temperature: float = 1.0, loss: str = "kl", warm: bool = False
) -> tuple[list[float], nn.Module]:
    losses, teacher = [], None
    for generation in range(generations):
        model = copy.deepcopy(teacher).train() if warm and teacher is not None else run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            z = model(x)
            total = F.cross_entropy(z, y)
            if teacher is not None:
                with torch.no_grad():
                    t = (teacher(x) / temperature).softmax(1)
                cross = -(t * (z / temperature).log_softmax(1)).sum(1).mean()
                kl = cross + (t * t.log()).sum(1).mean()
                total = (1 - xi) * total + xi * (temperature**2 * kl if loss == "kl" else cross)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        teacher = model.eval()
    return losses, model
