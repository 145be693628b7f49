"""SimSiam: L = 1 - (cos(q(z_1), z_2) + cos(q(z_2), z_1)) / 2, the z of the other side held; a forward for each view."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded


def oracle(run: Recorded, width: int = 256) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner, g, q = (model.get_submodule(name) for name in ("model", "projector", "predictor"))
    kinds = [type(layer).__name__ for layer in [*g.children(), *q.children()]]
    assert kinds == [*["Linear", "BatchNorm1d", "ReLU"] * 2, "Linear", "BatchNorm1d", "Linear", "BatchNorm1d", "ReLU",
                     "Linear"]  # fmt: skip
    shapes = [tuple(p.shape) for p in [*g.parameters(), *q.parameters()] if p.dim() == 2]
    assert shapes == [(width, 6), (width, width), (width, width), (width // 4, width), (width, width // 4)]
    optimizer, losses = run.optimizer(model), list[float]()
    for _, batch in run.batches():
        assert (batch["x"].id == batch["other"].id).all()
        z, p = [], []
        for view in ("x", "other"):
            f = batch[view].x
            for stage in inner.get_submodule("stages").children():
                f = stage(f)
            z.append(g(f.mean((2, 3))))
            p.append(q(z[-1]))
        cosines = [(F.normalize(p[i]) * F.normalize(z[1 - i].detach())).sum(1) for i in range(2)]
        loss = 1 - torch.stack(cosines).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, run.settled(model)
