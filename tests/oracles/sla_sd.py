"""SLA+SD: L = mean_m CE((y, m), j(x_m)) + CE(y, p(x)) + w T^2 KL(sg softmax(a / T) || p^T(x)), four rotations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded


def oracle(run: Recorded, weight: float = 1.0, temperature: float = 1.0) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner, joint = model.get_submodule("model"), model.get_submodule("joint")
    optimizer = run.optimizer(model)
    losses = []
    for _, batch in run.batches():
        x, y, rows = batch["x"].x, batch["x"].y, len(batch["x"].y)
        quarter = x.transpose(2, 3).flip(2)  # a turn to the left, as a picture is looked at
        half, three = x.flip(2).flip(3), x.transpose(2, 3).flip(3)
        f = torch.cat([x, quarter, half, three])
        for stage in inner.get_submodule("stages").children():
            f = stage(f)
        f = f.mean((2, 3))
        z = inner.get_submodule("classifiers.0")(f[:rows])
        said = joint(f).reshape(4, rows, 4 * CLASSES)
        loss, a = F.cross_entropy(z, y), torch.zeros(rows, CLASSES)
        for m in range(4):
            loss = loss + F.cross_entropy(said[m], 4 * y + m) / 4
            a = a + said[m, :, m::4].detach() / 4
        kl = F.kl_div((z / temperature).log_softmax(1), (a / temperature).softmax(1), reduction="batchmean")
        loss = loss + weight * temperature**2 * kl
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
