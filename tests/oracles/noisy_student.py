"""Noisy Student: L = CE_e(y, p(x)) + r mean CE(t, p(u)), t = what the last generation says of the clean row."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import nn

from tests.harness import CLASSES, Recorded

BATCH = 12  # labelled rows of a full batch


def oracle(
    run: Recorded,
    generations: int = 4,
    ratio: float = 1.0,
    min_confidence: float = 0.3,
    hard: bool = False,
    smoothing: float = 0.1,
) -> tuple[list[float], nn.Module]:
    losses, admitted, said = [], Counter[int](), torch.zeros(len(run.data.y), CLASSES)
    pool = run.data.unlabelled
    smooth = torch.eye(CLASSES) * (1 - smoothing) + (1 - torch.eye(CLASSES)) * smoothing / (CLASSES - 1)
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        seen = [Counter[int]() for _ in range(2)]
        for clock, batch in run.batches(generation):
            labelled, unlabelled = batch["labelled"], batch["unlabelled"]
            log_p = model(torch.cat([labelled.x, unlabelled.x])).log_softmax(1)
            loss = -(smooth[labelled.y] * log_p[: len(labelled.x)]).sum(1).mean()
            if len(unlabelled.x):
                t = said[unlabelled.id]
                t = torch.eye(CLASSES)[t.argmax(1)] if hard else t
                loss = loss - ratio * (t * log_p[len(labelled.x) :]).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            seen[clock.epoch].update(unlabelled.id.tolist())
            assert torch.isin(labelled.id, run.data.labelled).all()
            assert len(unlabelled.id) == (ratio * BATCH if admitted else 0)
        for epoch in seen:  # every chosen row, as often as it was chosen, before any comes again
            assert set(epoch) == set(admitted)
            rounds = epoch.total() / max(admitted.total(), 1)
            assert all(int(rounds) * n <= epoch[i] <= math.ceil(rounds) * n for i, n in admitted.items())
        model.eval()
        with torch.no_grad():
            said[pool] = model(run.data.rows(pool)).softmax(1)
        admitted.clear()
        each, guess = math.ceil(len(pool) / CLASSES), said[pool].argmax(1)
        for c in range(CLASSES):
            mine = pool[(guess == c) & (said[pool].max(1).values >= min_confidence)]
            mine = mine[said[mine, c].argsort(descending=True, stable=True)][:each]
            admitted.update(int(mine[k % len(mine)]) for k in range(each) if len(mine))
    return losses, model
