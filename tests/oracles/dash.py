"""Dash: FixMatch where the pseudo-label's own loss is below r b^-k, which falls; soft labels until it has fallen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded, beside, risen, short_share

OTHER = {
    "weight": 0.5, "base": 1.1, "floor": 1.2, "warm_up": 0.25, "period": 0.15, "temperature": 0.7,
    "ratio": 2.0, "ramp": 0.7,
}  # fmt: skip


def oracle(
    run: Recorded,
    weight: float = 1.0,
    base: float = 1.27,
    floor: float = 0.05,
    warm_up: float | None = None,
    period: float | None = None,
    temperature: float = 0.5,
    ratio: float | None = None,
    ramp: float = 1.0,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    first, last = 0.0, dict[int, float]()
    for clock, batch in run.batches():
        waits = short_share(clock, 0.4, 10 / 1024) if warm_up is None else warm_up
        each_time = short_share(clock, 0.08, 9 / 1024) if period is None else period
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == beside(clock, ratio)
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        each, length = F.cross_entropy(z, y, reduction="none"), clock.epochs * clock.per_epoch
        loss = each.mean()
        if first:
            falls = 1.0001 * first * base ** -int(max(0.0, clock.step / length - waits) / each_time)
            q, guess = w.detach().softmax(1), w.detach().argmax(1)
            kept = -torch.log(q.amax(1)) <= max(falls, floor)
            soft = q ** (1 / temperature) / (q ** (1 / temperature)).sum(1, keepdim=True)
            t = soft if falls > floor else F.one_hot(guess, q.shape[1]).float()
            if kept.any():
                loss = loss + weight * risen(clock, ramp) * F.cross_entropy(s[kept], t[kept])
        else:
            last.update(zip(batch["labelled"].id.tolist(), each.tolist(), strict=True))
            if (clock.step + 1) / length >= waits:
                first = sum(last.values()) / len(last)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
