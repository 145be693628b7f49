"""FreeMatch: FixMatch with the threshold t m_k / max m of running means, and minus the entropy of what is said."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"weight": 0.5, "fairness": 0.3, "decay": 0.6, "ratio": 2.0}


def oracle(
    run: Recorded, weight: float = 1.0, fairness: float = 0.05, decay: float = 0.999, ratio: float = 7.0
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    t, m, h = torch.tensor(1 / CLASSES), torch.full((CLASSES,), 1 / CLASSES), torch.full((CLASSES,), 1 / CLASSES)
    for _, batch in run.batches():
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == 12 * ratio
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        q = w.detach().softmax(1)
        sure, guess = q.max(1)
        t = decay * t + (1 - decay) * sure.mean()
        m = decay * m + (1 - decay) * q.mean(0)
        h = decay * h + (1 - decay) * torch.eye(CLASSES)[guess].mean(0)
        kept = sure >= t * m[guess] / m.max()
        loss = F.cross_entropy(z, y) + weight * F.cross_entropy(s[kept], guess[kept], reduction="sum") / len(weak)
        if kept.any():
            p = s[kept].softmax(1)
            counts = torch.eye(CLASSES)[p.argmax(1)].mean(0)
            said = torch.zeros(CLASSES)
            said[counts > 0] = p.mean(0)[counts > 0] / counts[counts > 0]
            so_far = torch.where(h > 0, m / h, 0.0)
            said, so_far = said / said.sum(), so_far / so_far.sum()
            loss = loss + fairness * (so_far * torch.log(said + 1e-12)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
