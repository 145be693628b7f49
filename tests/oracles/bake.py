"""BAKE: L = CE(y, p) + w T^2 KL(sg Q || p^T), Q the fixed point of Q = omega A Q + (1 - omega) p^T within the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"weight": 0.5, "omega": 0.9, "temperature": 2.0, "mates": 1}


def oracle(
    run: Recorded, weight: float = 1.0, omega: float = 0.5, temperature: float = 4.0, mates: int = 3
) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner = model.get_submodule("model")
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        f, y, ids = batch["x"].x, batch["x"].y, batch["x"].id
        for row in range(len(ids)):  # each group: a row that was drawn, and others of its class
            first = row - row % (mates + 1)
            assert y[row] == y[first]
            assert ids[row] not in ids[first:row]
        for stage in inner.get_submodule("stages").children():
            f = stage(f)
        f = f.mean((2, 3))
        z = inner.get_submodule("classifiers.0")(f)
        with torch.no_grad():
            own, unit = (z / temperature).softmax(1), f / f.norm(dim=1, keepdim=True)
            a = torch.zeros(len(y), len(y))
            for i in range(len(y)):
                others = [j for j in range(len(y)) if j != i]
                a[i, others] = (unit[others] @ unit[i]).softmax(0)
            q = own
            for _ in range(300):
                q = omega * a @ q + (1 - omega) * own
        kl = F.kl_div((z / temperature).log_softmax(1), q, reduction="batchmean")
        loss = F.cross_entropy(z, y) + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
