"""UCVME: a shared variance where there are labels, means of several passes of both networks where there are none."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from tests.harness import Recorded, risen
from tests.normal import split

OTHER = {"weight": 4.0, "passes": 3, "ratio": 2.0, "ramp": 0.7}
BATCH = 12  # labelled rows of a full batch


def oracle(
    run: Recorded, weight: float = 10.0, passes: int = 5, ratio: float = 1.0, ramp: float = 0.4
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    nets = [model.get_submodule(f"members.{k}") for k in range(2)]
    for clock, batch in run.batches():
        x, y, u = batch["labelled"].x, batch["labelled"].y, batch["unlabelled"].x
        assert len(u) == ratio * BATCH
        n, both = len(x), [split(net, torch.cat([x, u])) for net in nets]
        mean, z = (torch.stack([one[i] for one in both], 1) for i in range(2))  # (rows, networks)
        copies = copy.deepcopy(nets)  # their batch norm learns nothing of these passes
        with torch.no_grad():
            drawn = [split(net, u) for _ in range(passes) for net in copies]
        target, variance = (torch.stack([one[i] for one in drawn], 1).mean(1, keepdim=True) for i in range(2))
        shared = (z[:n, :1] + z[:n, 1:]) / 2
        known = ((y[:, None] - mean[:n]) ** 2 * torch.exp(-shared) + shared + math.log(2 * math.pi)) / 2
        agree = (z[:n] - z[:n].detach().flip(1)) ** 2
        taught = ((target - mean[n:]) ** 2 * torch.exp(-variance) + variance) / 2
        same = (variance - z[n:]) ** 2
        loss = (known.sum() + agree.sum()) / n + weight * risen(clock, ramp, 10_000) * (
            taught.sum() / len(u) + same.sum() / len(u)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
