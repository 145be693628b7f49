"""UPS: cross-entropy of labels and certain classes, and -log(1 - p) of classes that rows surely do not have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {
    "generations": 3, "positive": 0.28, "spread": 0.1, "negative": 0.22, "negative_spread": 0.02, "passes": 4,
    "balanced": 1, "fewest": 2,
}  # fmt: skip


def oracle(
    run: Recorded,
    generations: int = 5,
    positive: float = 0.7,
    spread: float = 0.05,
    negative: float = 0.05,
    negative_spread: float = 0.005,
    passes: int = 10,
    balanced: int = 6,
    fewest: int = 25,
) -> tuple[list[float], nn.Module]:
    losses, pool = list[float](), run.data.unlabelled
    target, wrong = run.data.y.clone(), torch.zeros(len(run.data.y), CLASSES)
    for generation in range(generations):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for _, batch in run.batches(generation):
            x, ids = batch["x"].x, batch["x"].id
            assert ((target[ids] >= 0) | wrong[ids].any(1)).all()
            z = model(x)
            loss = F.cross_entropy(z, target[ids], ignore_index=-1)
            rows = wrong[ids].any(1)
            if rows.any():
                m, left = wrong[ids][rows], 1 - z[rows].softmax(1)
                loss = loss - ((m * left.log()).sum(1) / m.sum(1)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        model.eval()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.train()
        said = []
        for k in range(passes):
            run.seeded("certain", generation + 1, k)
            with torch.no_grad():
                said.append(model(run.data.rows(pool)).softmax(1))
        q = sum(said) / passes
        s = (sum((p - q) ** 2 for p in said) / (passes - 1)) ** 0.5
        target[pool], wrong[pool] = -1, 0.0
        certain = {c: list[tuple[float, int]]() for c in range(CLASSES)}  # rows by class, the least uncertain first
        for i, row, apart in zip(pool.tolist(), q, s, strict=True):
            best = int(row.argmax())
            if row[best] >= positive and apart[best] <= spread:
                certain[best].append((float(apart[best]), i))
        number = max(fewest, min(map(len, certain.values()))) if generation < balanced else len(pool)
        kept = {i for rows in certain.values() for _, i in sorted(rows)[:number]}
        for i, row, apart in zip(pool.tolist(), q, s, strict=True):
            best = int(row.argmax())
            if i in kept:
                target[i] = best
                continue
            for c in range(CLASSES):
                wrong[i, c] = float(c != best and row[c] <= negative and apart[c] <= negative_spread)
    return losses, model
