"""Repeated self-training: every generation learns, afresh, what the last one says of rows that nobody has labelled."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"generations": 4, "keep": "anchor", "hard": True, "fresh": 7, "weight": 0.5}


def oracle(
    run: Recorded,
    generations: int = 11,
    keep: str = "accumulate",
    hard: bool = False,
    fresh: int = 120,
    weight: float = 1.0,
) -> tuple[list[float], nn.Module]:
    losses, real, pool = [], run.data.labelled, run.data.unlabelled
    fresh = min(fresh, len(pool))
    target = torch.zeros(len(run.data.y), CLASSES)  # of every sample id; zero where there is none (yet)
    target[real] = torch.eye(CLASSES)[run.data.y[real]]
    said = target  # what a generation says of every row
    earlier = list[int]()  # pseudo-labelled before, since the pool was last exhausted
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        seen = Counter(i for _, batch in run.batches(generation) for i in batch["x"].id.tolist())
        pseudo = [i for i in pool.tolist() if seen[i]]
        if generation:
            new = [i for i in pseudo if i not in earlier] if keep == "accumulate" else pseudo
            spare = len(pool) - len(earlier)
            assert len(new) == min(fresh, spare) if keep == "accumulate" else len(new) == fresh
            assert len(set(earlier) & set(new)) == max(0, fresh - spare) * (keep != "accumulate")
            target[new] = said[new]  # the generation before has said it
            earlier = (earlier if keep == "accumulate" or spare >= fresh else []) + new
        assert pseudo == sorted(earlier if keep == "accumulate" else pseudo)
        assert set(pseudo) | set(real.tolist() if keep != "replace" or not generation else []) == set(seen)
        for _, batch in run.batches(generation):
            x, ids = batch["x"].x, batch["x"].id
            cross = -(target[ids] * model(x).log_softmax(1)).sum(1)
            trust = torch.where(torch.isin(ids, real), 1.0, weight)
            loss = (trust * cross).sum() / len(ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if generation and keep == "anchor":  # real rows weigh (sqrt(k^2 + 4k) - k) / 2, to within a row
            k = len(real) / fresh
            share = ((k * k + 4 * k) ** 0.5 - k) / 2
            assert abs(sum(seen[i] for i in real.tolist()) / seen.total() - share) < 0.03
        model.eval()
        with torch.no_grad():
            said = model(run.data.rows(torch.arange(len(run.data.y)))).softmax(1)
        said = torch.eye(CLASSES)[said.argmax(1)] if hard else said
    return losses, model
