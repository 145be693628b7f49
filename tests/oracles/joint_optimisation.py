"""Joint optimisation: soft labels from the last epochs' predictions, kept apart and sharp; then learnt afresh."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"prior": 0.5, "entropy": 0.3, "window": 1, "wait": 1.0}


def divergence(t: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
    """Sum of t (log t - log p) over all entries; 0 log 0 = 0."""
    return (torch.xlogy(t, t) - t * log_p).sum()


def oracle(
    run: Recorded, prior: float = 1.2, entropy: float = 0.8, window: int = 10, wait: float = 0.35
) -> tuple[list[float], nn.Module]:
    losses, said = list[float](), dict[int, list[torch.Tensor]]()
    labels = F.one_hot(run.data.y.clamp(min=0), CLASSES).float()
    for generation in (0, 1):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for clock, batch in run.batches(generation):
            x, ids = batch["x"].x, batch["x"].id
            log_p = model(x).log_softmax(1)
            p, late = log_p.exp(), generation or clock.epoch >= wait * clock.epochs
            rows = ids.tolist()
            means = [torch.stack(said[i][-window:]).mean(0) if late and i in said else labels[i] for i in rows]
            loss = divergence(torch.stack(means), log_p) / len(rows)
            if generation == 0:
                spread = -p.mean(0).log().mean() - math.log(CLASSES)
                loss = loss + prior * spread - entropy * (p * log_p).sum(1).mean()
                for i, row in zip(rows, p.detach(), strict=True):
                    said.setdefault(i, []).append(row)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses, model
