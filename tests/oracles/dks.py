"""DKS: L = sum_i CE(y, p_i) + w T^2 sum_{i != j} KL(sg p_j^T || p_i^T) over exits and last classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(run: Recorded, weight: float = 1.0, temperature: float = 1.0) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner = model.get_submodule("model")
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        out = inner(x)
        each = [*out["exits"].unbind(1), out["logits"]]
        loss = torch.stack([F.cross_entropy(z, y) for z in each]).sum()
        for i, z in enumerate(each):
            for j, other in enumerate(each):
                if i != j:
                    q = F.softmax(other.detach() / temperature, 1)
                    kl = F.kl_div(F.log_softmax(z / temperature, 1), q, reduction="batchmean")
                    loss = loss + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
