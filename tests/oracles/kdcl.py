"""KDCL: peers on views of their own learn one target made of what all say, by one of four combinations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"combination": "minlogit", "peers": 3, "weight": 0.5, "temperature": 3.0}


def least(z: list[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """Of two peers, the point between their logits with the smallest cross-entropy, by narrowing a grid."""
    a, b = (one.double() for one in z)
    low, high = torch.zeros(len(y), 1).double(), torch.ones(len(y), 1).double()
    for _ in range(12):
        grid = torch.linspace(0, 1, 21).double()
        places = low + (high - low) * grid
        tried = places[..., None] * a[:, None] + (1 - places[..., None]) * b[:, None]
        best = F.cross_entropy(tried.transpose(1, 2), y[:, None].expand(-1, 21), reduction="none").argmin(1)
        low = places.gather(1, (best - 1).clamp(min=0)[:, None])
        high = places.gather(1, (best + 1).clamp(max=20)[:, None])
    share = (low + high) / 2
    return (share * a + (1 - share) * b).float()


def oracle(
    run: Recorded, combination: str = "naive", peers: int = 2, weight: float = 1.0, temperature: float = 2.0
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, members = run.optimizer(model), list(model.get_submodule("members").children())
    losses, w = list[float](), torch.full((peers,), 1 / peers)
    for clock, batch in run.batches():
        y = batch["x0"].y
        z = [members[k](batch[f"x{k}"].x) for k in range(peers)]
        said = [one.detach() for one in z]
        shifted = torch.stack([one - one.gather(1, y[:, None]) for one in said])
        own = torch.stack([F.cross_entropy(one, y, reduction="none") for one in said])
        if combination == "naive":
            target = torch.stack([said[int(k)][i] for i, k in enumerate(own.argmin(0))])
        elif combination == "linear":
            target = least(said, y)
        elif combination == "minlogit":
            target = shifted.min(0).values
        else:
            target = torch.stack([w[k] * said[k] for k in range(peers)]).sum(0)
        t = (target / temperature).softmax(1)
        loss = torch.zeros(())
        for k in range(peers):
            kl = F.kl_div((z[k] / temperature).log_softmax(1), t, reduction="batchmean")
            loss = loss + F.cross_entropy(z[k], y) + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if combination == "general" and (clock.step + 1) % clock.per_epoch == 0:
            w = weights(run, members)
    return losses, model


def weights(run: Recorded, members: list[nn.Module]) -> torch.Tensor:
    """Of the least squared error on the training rows, by normal equations with the sum held at 1."""
    x, y = run.data.rows(run.data.labelled), run.data.y[run.data.labelled]
    with torch.no_grad():
        off = torch.stack([m.eval()(x).softmax(1) - F.one_hot(y, CLASSES) for m in members]).double().flatten(1)
    for member in members:
        member.train()
    c = off @ off.T / len(y)
    c += 1e-6 * c.trace() / len(members) * torch.eye(len(members))
    total = torch.linalg.inv(c).sum(1)
    best: torch.Tensor = total / total.sum()
    return best.float()
