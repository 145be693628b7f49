"""Learning to reweight: w_i = max(0, <g, g_i>) / sum, of the gradients of the clean rows' loss and of a row's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"clean": 0.25}
AUDIT = 12  # rows, of which the clean ones are taken


def oracle(run: Recorded, clean: float | None = None) -> tuple[list[float], nn.Module]:
    clean_ids = {i for _, batch in run.steps[0] for i in batch["clean"].id.tolist()}  # type: ignore[union-attr]
    assert len(clean_ids) == AUDIT * (clean or 0.5)
    assert not clean_ids & set(run.data.labelled.tolist())
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    parameters = list(model.parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for _, batch in run.batches():
        x, y, trusted = batch["x"].x, batch["x"].y, batch["clean"]
        for norm in norms:
            norm.track_running_stats = False
        wanted = torch.autograd.grad(F.cross_entropy(model(trusted.x), trusted.y), parameters)
        gains = []
        for row in F.cross_entropy(model(x), y, reduction="none"):
            slopes = torch.autograd.grad(row, parameters, retain_graph=True)
            gains.append(sum((a * b).sum() for a, b in zip(slopes, wanted, strict=True)))
        for norm in norms:
            norm.track_running_stats = True
        w = torch.stack([torch.as_tensor(gain) for gain in gains]).clamp(min=0)
        w = w / w.sum() if w.sum() > 0 else w
        loss = (w * F.cross_entropy(model(x), y, reduction="none")).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
