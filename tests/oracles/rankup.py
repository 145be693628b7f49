"""RankUp: a value, and which of two rows has the larger one; optionally values with the distribution of the labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, beside, risen

OTHER = {"weight": 0.7, "confidence": 0.505, "ratio": 2.0, "rda": 0.8, "ramp": 0.7}
BATCH = 12  # labelled rows of a full batch


def order(a: torch.Tensor, i: int, j: int) -> torch.Tensor:
    return torch.log_softmax(a[i] - a[j], 0)


def oracle(
    run: Recorded,
    weight: float = 0.2,
    confidence: float = 0.95,
    ratio: float | None = None,
    rda: float = 0.0,
    ramp: float = 0.4,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    labels = np.sort(run.data.targets[run.data.labelled].numpy())
    said, aligned = dict[int, float](), dict[int, float]()
    for clock, batch in run.batches():
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"], batch["strong"]
        assert len(weak.x) == beside(clock, ratio, 7.0, 2**18)
        out = model.get_submodule("model")(torch.cat([x, strong.x, weak.x]))
        (f, a), (_, s), (w, q) = ((o[:, 0], o[:, 1:]) for o in out.split([len(x), len(strong.x), len(weak.x)]))
        loss = (y - f).abs().mean()
        pairs, sure = torch.zeros(()), torch.zeros(())
        for i in range(len(x)):
            for j in range(len(x)):
                above = 1.0 if y[i] > y[j] else 0.0 if y[i] < y[j] else 0.5
                p = order(a, i, j)
                pairs = pairs - (above * p[0] + (1 - above) * p[1]) / len(x) ** 2
        for i in range(len(weak.x)):
            for j in range(len(weak.x)):
                top, best = order(q.detach(), i, j).exp().max(0)
                if top >= confidence:
                    sure = sure - order(s, i, j)[best] / len(weak.x) ** 2
        loss = loss + weight * (pairs + risen(clock, ramp, 2**18) * sure)
        if rda:
            known = [(k, aligned[i]) for k, i in enumerate(weak.id.tolist()) if i in aligned]
            if known:
                places, goal = [k for k, _ in known], torch.tensor([v for _, v in known])
                share = min(1.0, clock.step / clock.length / 0.4)
                loss = loss + rda * share * F.mse_loss(w[places], goal.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        said.update(zip(weak.id.tolist(), w.detach().tolist(), strict=True))
        if (clock.step + 1) % clock.per_epoch == 0:
            rows = sorted(said)
            ranks = np.argsort(np.argsort([said[i] for i in rows], kind="stable"), kind="stable")
            grid = np.arange(len(labels)) / (len(labels) - 1)
            aligned = dict(zip(rows, np.interp(ranks / (len(rows) - 1), grid, labels).tolist(), strict=True))
    return losses, model
