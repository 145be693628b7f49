"""Snapshot distillation: plain in cycle 1, then (1 + 1 / T) CE(y, p) + w KL(t^T || p), t the end of the last cycle."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"cycles": 2, "temperature": 3.0, "weight": 0.5}


def oracle(
    run: Recorded, cycles: int = 4, temperature: float = 2.0, weight: float = 1.0
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer = run.optimizer(model)
    losses, teacher = [], None
    steps = len(run.steps[0])
    for step, (_, batch) in enumerate(run.batches()):
        if any(step == cycle * steps // cycles for cycle in range(1, cycles)):
            teacher = copy.deepcopy(model).eval()
        x, y = batch["x"].x, batch["x"].y
        z = model(x)
        loss = F.cross_entropy(z, y)
        if teacher is not None:
            with torch.no_grad():
                t = F.softmax(teacher(x) / temperature, 1)
            kl = (t * (t.log() - F.log_softmax(z, 1))).sum(1).mean()
            loss = (1 + 1 / temperature) * loss + weight * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
