"""From an ensemble to one model: M trainings on the labels, then one on (1 - a) CE(y, p) + a T^2 KL(mean^T || p^T)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"members": 2, "alpha": 0.6, "temperature": 2.0}


def oracle(
    run: Recorded, members: int = 4, alpha: float = 1.0, temperature: float = 1.0
) -> tuple[list[float], nn.Module]:
    losses, trained = list[float](), list[nn.Module]()
    for generation in range(members + 1):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            z = model(x)
            loss = F.cross_entropy(z, y)
            if len(trained) == members:
                with torch.no_grad():
                    mean = torch.stack([member(x).softmax(1) for member in trained]).mean(0)
                    t = mean ** (1 / temperature)
                    t = t / t.sum(1, keepdim=True)
                kl = F.kl_div((z / temperature).log_softmax(1), t, reduction="batchmean")
                loss = (1 - alpha) * loss + alpha * temperature**2 * kl
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        trained.append(model.eval())
    return losses, model
