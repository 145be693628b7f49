"""DER++: L = CE(y, p) + a mean (z(x_r) - z_r)^2 + b CE(y_q, p(x_q)); in one task there is nothing to refresh."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, Reservoir

OTHER = {"memory": 20, "count": 7, "alpha": 0.6, "beta": 0.7}


def oracle(
    run: Recorded, memory: int = 200, count: int = 32, alpha: float = 1.0, beta: float = 1.0, refresh: bool = True
) -> tuple[list[float], nn.Module]:
    model, losses = run.model(), list[float]()
    optimizer, reservoir = run.optimizer(model), Reservoir(run, memory)
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        dark_x, _, dark_z = reservoir.draw(clock, "stored", batch, count)
        old_x, old_y, _ = reservoir.draw(clock, "replay", batch, count)
        z = model(x)
        loss = F.cross_entropy(z, y)
        if len(old_x):
            loss = loss + alpha * F.mse_loss(model(dark_x), dark_z) + beta * F.cross_entropy(model(old_x), old_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.offer(clock, x, y, z)
        losses.append(loss.item())
    return losses, model
