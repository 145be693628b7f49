"""Deep mutual learning: L = sum_k [CE(y, p_k) + w KL(mean_{l != k} sg p_l || p_k)]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(run: Recorded, peers: int = 2, weight: float = 1.0) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        z = model(x)["peers"]  # (batch, peers, classes)
        p = z.detach().softmax(2)
        loss = torch.zeros(())
        for k in range(peers):
            others = torch.stack([p[:, other] for other in range(peers) if other != k]).mean(0)
            log_p = z[:, k].log_softmax(1)
            loss = loss + F.nll_loss(log_p, y) + weight * F.kl_div(log_p, others, reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
