"""Beyond the teacher: generations on xi t + (1 - xi) y, cut off at 0 for the cross-entropy, as it is for squares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"xi": 3.0, "generations": 3, "loss": "squared"}


def oracle(run: Recorded, xi: float = 1.5, generations: int = 2, loss: str = "ce") -> tuple[list[float], nn.Module]:
    losses: list[float] = []
    teacher = model = run.model(0)
    assert len(run.starts) == generations
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, F.one_hot(batch["x"].y, CLASSES).float()
            p, t = model(x).softmax(1), y
            if generation:
                with torch.no_grad():
                    t = teacher(x).softmax(1)
            if loss == "squared":
                squares = [(one - p).square().sum(1).mean() for one in (y, t)]
                total = (1 - xi) * squares[0] + xi * squares[1]
            else:
                mixed = (xi * t + (1 - xi) * y).clamp(min=0)
                total = -(mixed / mixed.sum(1, keepdim=True) * p.log()).sum(1).mean()
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        teacher = model.eval()
    return losses, model
