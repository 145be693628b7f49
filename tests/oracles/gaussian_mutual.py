"""Peers with a mean and a variance: each learns the normal distribution with the moments of the others' mixture."""

from __future__ import annotations

import torch
from torch import nn

from tests.harness import Recorded
from tests.normal import divergence, likelihood, split

OTHER = {"peers": 3, "weight": 0.5, "beta": 0.2}


def oracle(run: Recorded, peers: int = 2, weight: float = 1.0, beta: float = 0.5) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    for _, batch in run.batches():
        x, y = batch["x"].x, batch["x"].y
        said = [split(model.get_submodule(f"members.{k}"), x) for k in range(peers)]
        loss = torch.zeros(())
        for k, (mean, z) in enumerate(said):
            others = [(m.detach(), v.detach().exp()) for j, (m, v) in enumerate(said) if j != k]
            first = sum(m for m, _ in others) / len(others)
            variance = sum(v + (m - first) ** 2 for m, v in others) / len(others)
            kl = divergence(torch.as_tensor(first), torch.as_tensor(variance).log(), mean, z)
            loss = loss + likelihood(y, mean, z, beta).mean() + weight * kl.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
