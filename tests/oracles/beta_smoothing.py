"""Beta smoothing: L = (1 - alpha) CE(y, p) + alpha CE(q, p), q_y = the k-th largest of B draws of Beta(a, 1)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded


def oracle(run: Recorded, alpha: float = 0.6, a: float = 3.0, decay: float = 0.999) -> tuple[list[float], nn.Module]:
    model = run.model()
    teacher, optimizer = copy.deepcopy(model), run.optimizer(model)
    losses = []
    for clock, batch in run.batches():
        x, y, ids = batch["x"].x, batch["x"].y, batch["x"].id
        z = model(x)
        with torch.no_grad():
            sure = teacher(x).softmax(1)[range(len(y)), y].tolist()
        drawn = sorted(u ** (1 / a) for u in run.uniform("beta", clock, ids).tolist())
        q = torch.zeros(len(y), CLASSES)
        for b, row in zip(drawn, sorted(range(len(y)), key=lambda i: sure[i]), strict=True):
            q[row] = (1 - b) / (CLASSES - 1)
            q[row, y[row]] = b
        loss = (1 - alpha) * F.cross_entropy(z, y) + alpha * F.cross_entropy(z, q)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        d = min(1 - 1 / (clock.step + 2), decay)  # this step is done: one more
        for mine, theirs in zip(teacher.parameters(), model.parameters(), strict=True):
            mine.data = d * mine.data + (1 - d) * theirs.data
    return losses, model
