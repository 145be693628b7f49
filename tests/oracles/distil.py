"""Knowledge distillation: L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T) with an external teacher in eval mode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, external_teacher


def oracle(run: Recorded, alpha: float = 0.9, temperature: float = 4.0) -> tuple[list[float], nn.Module]:
    model, teacher = run.model(), external_teacher().eval()
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        with torch.no_grad():
            t = teacher(x)
        z = model(x)
        log_p, q = F.log_softmax(z / temperature, 1), F.softmax(t / temperature, 1)
        kl = F.kl_div(log_p, q, reduction="batchmean")
        loss = (1 - alpha) * F.cross_entropy(z, y) + alpha * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
