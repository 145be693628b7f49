"""Online label smoothing: L = a CE(y, p) + (1 - a) CE(S_y, p), S_c = the last epoch's mean p of right rows of c."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded


def oracle(run: Recorded, alpha: float = 0.5) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer = run.optimizer(model)
    losses = []
    soft = torch.full((CLASSES, CLASSES), 1 / CLASSES)
    said: list[list[torch.Tensor]] = [[] for _ in range(CLASSES)]  # by class: what was said of rows that were right
    epoch = 0
    for clock, batch in run.batches():
        if clock.epoch > epoch:
            epoch = clock.epoch
            soft = torch.stack([torch.stack(of).mean(0) if of else torch.full((CLASSES,), 1 / CLASSES) for of in said])
            said = [[] for _ in range(CLASSES)]
        x, y = batch["x"].x, batch["x"].y
        z = model(x)
        loss = alpha * F.cross_entropy(z, y) + (1 - alpha) * F.cross_entropy(z, soft[y])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for label, p in zip(y.tolist(), z.detach().softmax(1), strict=True):
            if int(p.argmax()) == label:
                said[label].append(p)
    return losses, model
