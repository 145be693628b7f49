"""ER with a moving average: L = CE(y, p) + w CE(y_r, p(x_r)) + a mean (z(x_r) - z'(x_r))^2."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, Reservoir

OTHER = {"memory": 20, "count": 7, "weight": 0.6, "alpha": 3.0, "decay": 0.7}


def oracle(
    run: Recorded, memory: int = 200, count: int = 32, weight: float = 1.0, alpha: float = 1.0, decay: float = 0.99
) -> tuple[list[float], nn.Module]:
    model, losses = run.model(), list[float]()
    optimizer, reservoir = run.optimizer(model), Reservoir(run, memory)
    average = copy.deepcopy(model).eval()
    for clock, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        old_x, old_y, _ = reservoir.draw(clock, "replay", batch, count)
        z = model(x)
        loss = F.cross_entropy(z, y)
        if len(old_x):
            old = model(old_x)
            with torch.no_grad():
                target = average(old_x)
            loss = loss + weight * F.cross_entropy(old, old_y) + alpha * F.mse_loss(old, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reservoir.offer(clock, x, y, z)
        with torch.no_grad():
            for mean, now in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                mean.copy_(decay * mean + (1 - decay) * now if mean.is_floating_point() else now)
        losses.append(loss.item())
    return losses, model
