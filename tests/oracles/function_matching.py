"""Function matching: L = T^2 KL(t^T(u) || p^T(u)) on mixtures u that student and teacher both see, without labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, external_teacher

OTHER = {"temperature": 2.0, "mixing": 0.3}


def oracle(run: Recorded, temperature: float = 1.0, mixing: float = 1.0) -> tuple[list[float], nn.Module]:
    model, teacher = run.model(), external_teacher()
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x = batch["x"].x
        share = torch.distributions.Beta(mixing, mixing).sample()
        assert 0 <= share <= 1
        u = torch.stack([share * one + (1 - share) * other for one, other in zip(x, reversed(x), strict=True)])
        with torch.no_grad():
            t = F.softmax(teacher(u) / temperature, 1)
        kl = F.kl_div(F.log_softmax(model(u) / temperature, 1), t, reduction="batchmean")
        loss = temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
