"""USKD: CE, a label term weighed by its own probability, Zipf's law in the order of weak and own, a weak classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"target": 1.0, "others": 0.5, "weak": 0.3, "layer": "stages.0"}


def oracle(
    run: Recorded, target: float = 0.1, others: float = 0.1, weak: float = 0.1, layer: str = "stages.1"
) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner, weakling = model.get_submodule("model"), model.get_submodule("learnt.0")
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        f, y, said = batch["x"].x, batch["x"].y, {}
        for number, stage in enumerate(inner.get_submodule("stages").children()):
            f = stage(f)
            said[f"stages.{number}"] = f.mean((2, 3))
        z, v = inner.get_submodule("classifiers.0")(f.mean((2, 3))), weakling(said[layer])
        p, w = z.detach().softmax(1), v.detach().softmax(1)
        s = p[range(len(y)), y]
        weights = s**2 + 1 - (s**2).mean()
        loss = F.cross_entropy(z, y) + target * (weights * F.cross_entropy(z, y, reduction="none")).mean()
        smooth = torch.full_like(v, 0.1 / (CLASSES - 1)).scatter(1, y[:, None], 0.9)
        loss = loss + weak * F.cross_entropy(v, smooth)
        for row, label in enumerate(y.tolist()):
            score = w[row] / (1 - w[row, label]) + p[row] / (1 - p[row, label])
            order = score.argsort(descending=True).tolist()
            rest = [c for c in range(CLASSES) if c != label]
            q = torch.tensor([1 / (1 + order.index(c)) for c in rest])
            q = q / q.sum()
            loss = loss + others * (q * (q.log() - z[row, rest].log_softmax(0))).sum() / len(y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
