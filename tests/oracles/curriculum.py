"""Curriculum labelling: stage s of S learns, afresh, the most confident s / S of the pool, as many of each class."""

from __future__ import annotations

import math
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded


def oracle(run: Recorded, stages: int = 5) -> tuple[list[float], nn.Module]:
    losses, pool = [], run.data.unlabelled
    target = run.data.y.clone()  # of every sample id; -1 where there is none (yet)
    for stage in range(stages + 1):
        model = run.model(stage)
        optimizer = run.optimizer(model)
        seen = [Counter[int]() for _ in range(2)]
        for clock, batch in run.batches(stage):
            x, ids = batch["x"].x, batch["x"].id
            loss = F.cross_entropy(model(x), target[ids], ignore_index=-100)  # a row without target: an error
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen[clock.epoch].update(ids.tolist())
        chosen = [*run.data.labelled.tolist(), *pool[target[pool] >= 0].tolist()]
        for epoch in seen:  # every row of the stage, before any comes again
            assert set(epoch) == set(chosen)
            rounds = epoch.total() / len(chosen)
            assert min(epoch.values()) >= int(rounds) and max(epoch.values()) <= math.ceil(rounds)  # noqa: PT018
        model.eval()
        with torch.no_grad():
            sure, guess = model(run.data.rows(pool)).softmax(1).max(1)
        target[pool] = -1
        each = math.ceil((stage + 1) / stages * len(pool) / CLASSES)
        for c in range(CLASSES):
            order = sure[guess == c].argsort(descending=True, stable=True)
            target[pool[guess == c][order][:each]] = c
    return losses, model
