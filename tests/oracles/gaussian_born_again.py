"""Born-again normal distributions: (1 - xi) NLL_beta + xi KL(last generation || model)."""

from __future__ import annotations

import torch
from torch import nn

from tests.harness import Recorded
from tests.normal import divergence, likelihood, split

OTHER = {"generations": 3, "xi": 0.6, "beta": 0.2}


def oracle(run: Recorded, generations: int = 2, xi: float = 1.0, beta: float = 0.5) -> tuple[list[float], nn.Module]:
    losses, teacher = list[float](), None
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            mean, z = split(model, x)
            loss = likelihood(y, mean, z, beta).mean()
            if teacher is not None:
                with torch.no_grad():
                    t, zt = split(teacher, x)
                loss = (1 - xi) * loss + xi * divergence(t, zt, mean, z).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        teacher = model.eval()
    return losses, model
