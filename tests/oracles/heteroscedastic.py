"""Pseudo-labels with a variance: NLL_beta(labels) + w mean_u v / (v + s_t^2) KL(last generation || model)."""

from __future__ import annotations

import torch
from torch import nn

from tests.harness import Recorded
from tests.normal import divergence, likelihood, split

OTHER = {"generations": 3, "weight": 0.7, "ratio": 2.0, "variance": 0.3, "beta": 0.2}
BATCH = 12  # labelled rows of a full batch


def oracle(
    run: Recorded,
    generations: int = 2,
    weight: float = 1.0,
    ratio: float = 1.0,
    variance: float = 1.0,
    beta: float = 0.5,
) -> tuple[list[float], nn.Module]:
    losses, teacher = list[float](), None
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y, u = batch["labelled"].x, batch["labelled"].y, batch["unlabelled"].x
            assert len(u) == ratio * BATCH
            mean, z = split(model, torch.cat([x, u]))
            loss = likelihood(y, mean[: len(x)], z[: len(x)], beta).mean()
            if teacher is not None:
                with torch.no_grad():
                    t, zt = split(teacher, u)
                trust = variance / (variance + zt.exp())
                loss = loss + weight * (trust * divergence(t, zt, mean[len(x) :], z[len(x) :])).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        teacher = model.eval()
    return losses, model
