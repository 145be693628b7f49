"""Learning without forgetting: L = CE(y, p) + w T^2 KL(t^T || p^T); here every class was in the task before."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(
    run: Recorded, weight: float = 1.0, temperature: float = 2.0, generations: int = 2
) -> tuple[list[float], nn.Module]:
    losses, teacher = list[float](), None
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            z = model(x)
            loss = F.cross_entropy(z, y)
            if teacher is not None:
                with torch.no_grad():
                    t = (teacher(x) / temperature).softmax(1)
                kl = (t * (t.log() - (z / temperature).log_softmax(1))).sum(1).mean()
                loss = loss + weight * temperature**2 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        teacher = model.eval()
    return losses, model
