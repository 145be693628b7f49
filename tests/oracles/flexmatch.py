"""FlexMatch: FixMatch with the threshold c M(b_k), b_k = rows last sure of class k over max(max, rows never sure)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded, beside, risen

OTHER = {"confidence": 0.4, "weight": 0.5, "mapping": "concave", "warm_up": False, "ratio": 2.0, "ramp": 0.7}


def mapped(b: float, mapping: str) -> float:
    return {"convex": b / (2 - b), "linear": b, "concave": math.log(1 + b) / math.log(2)}[mapping]


def oracle(
    run: Recorded,
    confidence: float = 0.95,
    weight: float = 1.0,
    mapping: str = "convex",
    warm_up: bool = True,
    ratio: float | None = None,
    ramp: float = 0.4,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    last = dict[int, int]()  # the class that a row was sure of when it was last sure
    for clock, batch in run.batches():
        x, y, weak, strong = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(weak) == beside(clock, ratio)
        counts = [list(last.values()).count(c) for c in range(CLASSES)]
        most = max(*counts, len(run.data.unlabelled) - sum(counts)) if warm_up else max(counts)
        limits = torch.tensor([confidence * mapped(n / max(1, most), mapping) for n in counts])
        z, s, w = model(torch.cat([x, strong, weak])).split([len(x), len(strong), len(weak)])
        sure, guess = w.detach().softmax(1).max(1)
        pseudo = (F.cross_entropy(s, guess, reduction="none") * (sure > limits[guess])).mean()
        loss = F.cross_entropy(z, y) + weight * risen(clock, ramp) * pseudo
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for i, c, p in zip(batch["weak"].id.tolist(), guess.tolist(), sure, strict=True):
            if p > confidence:
                last[i] = c
    return losses, model
