"""DDGSD: L = CE of both views + w T^2 (KL both ways) + mmd ||mean f_1 - mean f_2||^2, one forward for both views."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"weight": 0.5, "mmd": 0.3, "temperature": 2.0}


def oracle(
    run: Recorded, weight: float = 1.0, mmd: float = 5e-4, temperature: float = 1.0
) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner = model.get_submodule("model")
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, other, y = batch["x"], batch["other"].x, batch["x"].y
        assert (x.id == batch["other"].id).all()
        f = torch.cat([x.x, other])
        for stage in inner.get_submodule("stages").children():
            f = stage(f)
        f = f.mean((2, 3))
        z1, z2 = inner.get_submodule("classifiers.0")(f).chunk(2)
        f1, f2 = f.chunk(2)
        logs = [F.log_softmax(z / temperature, 1) for z in (z1, z2)]
        kl = sum(
            F.kl_div(logs[i], logs[1 - i].detach().exp(), reduction="batchmean") * temperature**2 for i in range(2)
        )
        apart = (f1.mean(0) - f2.mean(0)).square().sum()
        loss = F.cross_entropy(z1, y) + F.cross_entropy(z2, y) + weight * kl + mmd * apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss + mmd * apart).item())  # told once for each view
    return losses, model
