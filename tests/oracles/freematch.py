"""FreeMatch: FixMatch with the threshold t m_k / max m of running means, and minus the entropy of what is said."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded, beside, forgetting, risen

OTHER = {"weight": 0.5, "fairness": 0.3, "decay": 0.6, "ratio": 2.0, "ramp": 0.7}


def oracle(
    run: Recorded,
    weight: float = 1.0,
    fairness: float = 0.05,
    decay: float | None = None,
    ratio: float | None = None,
    ramp: float = 0.4,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    t, m, h = torch.tensor(1 / CLASSES), torch.full((CLASSES,), 1 / CLASSES), torch.full((CLASSES,), 1 / CLASSES)
    for clock, batch in run.batches():
        d = forgetting(clock, 0.999) if decay is None else decay
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == beside(clock, ratio)
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        q = w.detach().softmax(1)
        sure, guess = q.max(1)
        t = d * t + (1 - d) * sure.mean()
        m = d * m + (1 - d) * q.mean(0)
        h = d * h + (1 - d) * torch.eye(CLASSES)[guess].mean(0)
        kept = sure >= t * m[guess] / m.max()
        loss = F.cross_entropy(z, y) + weight * risen(clock, ramp) * F.cross_entropy(
            s[kept], guess[kept], reduction="sum"
        ) / len(weak)
        if kept.any():
            p = s[kept].softmax(1)
            counts = torch.eye(CLASSES)[p.argmax(1)].mean(0)
            said = torch.zeros(CLASSES)
            said[counts > 0] = p.mean(0)[counts > 0] / counts[counts > 0]
            so_far = torch.where(h > 0, m / h, 0.0)
            said, so_far = said / said.sum(), so_far / so_far.sum()
            loss = loss + fairness * risen(clock, ramp) * (so_far * torch.log(said + 1e-12)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
