"""Curriculum labelling: stage s of S learns, afresh, the most confident s / S of the pool, as many of each class."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import nn

from tests.harness import CLASSES, Recorded


def oracle(
    run: Recorded, stages: int = 5, balanced: bool = True, hard: bool = True, confidence: float = 0.0
) -> tuple[list[float], nn.Module]:
    losses, pool = [], run.data.unlabelled
    target = torch.zeros(len(run.data.y), CLASSES)  # of every sample id; zeros where there is none (yet)
    target[run.data.labelled] = torch.eye(CLASSES)[run.data.y[run.data.labelled]]
    for stage in range(stages + 1):
        model = run.model(stage)
        optimizer = run.optimizer(model)
        seen = [Counter[int]() for _ in range(2)]
        for clock, batch in run.batches(stage):
            x, ids = batch["x"].x, batch["x"].id
            loss = -(target[ids] * model(x).log_softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen[clock.epoch].update(ids.tolist())
        chosen = [*run.data.labelled.tolist(), *pool[target[pool].any(1)].tolist()]
        for epoch in seen:  # every row of the stage, before any comes again
            assert set(epoch) == set(chosen)
            rounds = epoch.total() / len(chosen)
            assert min(epoch.values()) >= int(rounds) and max(epoch.values()) <= math.ceil(rounds)  # noqa: PT018
        model.eval()
        with torch.no_grad():
            p = model(run.data.rows(pool)).softmax(1)
        sure, guess = p.max(1)
        said = torch.eye(CLASSES)[guess] if hard else p
        share = (stage + 1) / stages * len(pool)
        target[pool] = 0.0
        for c in range(CLASSES) if balanced else [guess]:
            rows = ((guess == c) & (sure >= confidence)).nonzero().squeeze(1)
            rows = rows[sure[rows].argsort(descending=True, stable=True)]
            rows = rows[: math.ceil(share / CLASSES if balanced else share)]
            target[pool[rows]] = said[rows]
    return losses, model
