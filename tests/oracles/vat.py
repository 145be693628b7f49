"""VAT: L = CE(y, p(x)) + w mean KL(sg p(u) || p(u + r)) + e mean H(p(u)); H d as J' (diag p - p p') J d."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, beside, risen

OTHER = {"size": 2.0, "weight": 0.7, "iterations": 2, "entropy": 0.3, "ratio": 2.0, "ramp": 0.7}


def unit(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x.flatten(1), dim=1).view_as(x)


def oracle(
    run: Recorded,
    size: float = 8.0,
    weight: float = 1.0,
    iterations: int = 1,
    entropy: float = 0.0,
    ratio: float | None = None,
    ramp: float = 0.4,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for clock, batch in run.batches():
        x, y, u = batch["labelled"].x, batch["labelled"].y, batch["unlabelled"].x
        assert len(u) == beside(clock, ratio, 4.0, 48_000)
        d = unit(run.directions(clock, batch["unlabelled"].id, 64).view_as(u))
        z, v = model(torch.cat([x, u])).split([len(x), len(u)])
        for norm in norms:
            norm.track_running_stats = False
        for _ in range(iterations):
            s, along = torch.autograd.functional.jvp(model, u, d)
            p = s.softmax(1)
            fisher = p * (along - (p * along).sum(1, keepdim=True))
            d = unit(torch.autograd.functional.vjp(model, u, fisher)[1])
        q = v.detach().log_softmax(1)
        apart = (q.exp() * (q - model(u + size * d).log_softmax(1))).sum(1).mean()
        for norm in norms:
            norm.track_running_stats = True
        undecided = torch.distributions.Categorical(logits=v).entropy().mean()
        loss = (
            F.cross_entropy(z, y)
            + weight * risen(clock, ramp, 48_000) * apart
            + entropy * risen(clock, ramp, 48_000) * undecided
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
