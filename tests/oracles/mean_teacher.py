"""Mean Teacher: L = CE(y, p(x)) + w(t) mean_c (p_c(x') - p'_c(x))^2, theta' the moving average of theta."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, forgetting, short_share

OTHER = {"weight": 20.0, "decay": 0.7, "ramp": 0.8}  # all rows have a label here


def oracle(
    run: Recorded, weight: float = 100.0, decay: float | None = None, ramp: float = 0.4, labelled: float = 0.25
) -> tuple[list[float], nn.Module]:
    model = run.model()
    teacher = copy.deepcopy(model).eval()
    optimizer = run.optimizer(model)
    losses = []
    for clock, batch in run.batches():
        x, y, other = batch["x"].x, batch["x"].y, batch["other"].x
        assert (y >= 0).sum() >= labelled * 12
        with torch.no_grad():
            t = teacher(x).softmax(1)
        z, moved = model(torch.cat([x, other])).chunk(2)
        share = short_share(clock, ramp, 5 / 180, 150_000)
        w = weight * math.exp(-5 * (1 - min(1.0, clock.step / clock.length / share)) ** 2)
        squared = (moved.softmax(1) - t).square().mean(1)  # (batch,): labelled rows and unlabelled ones
        loss = F.cross_entropy(z[y >= 0], y[y >= 0]) + w * squared.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        d = forgetting(clock, 0.999, 150_000, 0.97) if decay is None else decay
        d = min(1 - 1 / (len(losses) + 1), d)
        with torch.no_grad():
            for mean, now in zip(
                teacher.state_dict().values(), model.state_dict().values(), strict=True
            ):  # parameters and batch-norm statistics alike; the count of batches is copied
                mean.copy_(d * mean + (1 - d) * now if mean.is_floating_point() else now)
    return losses, model
