"""Experience replay: L = CE(y, p) + w CE(y_r, p(x_r))."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, Reservoir

OTHER = {"memory": 20, "count": 7, "weight": 0.6}


def oracle(run: Recorded, memory: int = 200, count: int = 32, weight: float = 1.0) -> tuple[list[float], nn.Module]:
    model, losses = run.model(), list[float]()
    optimizer, reservoir = run.optimizer(model), Reservoir(run, memory)
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        old_x, old_y, _ = reservoir.draw(clock, "replay", batch, count)
        z = model(x)
        loss = F.cross_entropy(z, y)
        if len(old_x):
            old = model(old_x)
            loss = loss + weight * F.cross_entropy(old, old_y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.offer(clock, x, y, z)
        losses.append(loss.item())
    return losses, model
