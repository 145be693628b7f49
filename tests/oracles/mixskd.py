"""MixSKD: logits and features of a mixture, and the mixture of logits and features, teach each other."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import CLASSES, Recorded

OTHER = {"temperature": 2.0, "mixing": 1.0, "feature": 0.3}


def oracle(
    run: Recorded, temperature: float = 3.0, mixing: float = 0.4, feature: float = 1.0
) -> tuple[list[float], nn.Module]:
    model = run.model()
    inner, h = model.get_submodule("model"), model.get_submodule("fused")
    optimizer = run.optimizer(model)
    losses = []

    def kl(teacher: Tensor, student: Tensor) -> Tensor:
        q, log_p = (teacher.detach() / temperature).softmax(1), (student / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(log_p, q, reduction="batchmean")

    for _, batch in run.batches():
        x, y, rows = batch["x"].x, batch["x"].y, len(batch["x"].y)
        s = float(torch.distributions.Beta(mixing, mixing).sample())
        partner = torch.arange(rows - 1, -1, -1)
        out = inner(torch.cat([x, s * x + (1 - s) * x[partner]]))
        logits = [*out["exits"].unbind(1), out["logits"]]
        features = [*out["features"].unbind(1), out["feature"]]
        soft = s * F.one_hot(y, CLASSES) + (1 - s) * F.one_hot(y[partner], CLASSES)
        mixed = [z[rows:] for z in logits]
        between = [s * z[:rows] + (1 - s) * z[:rows][partner] for z in logits]
        f_mixed = [f[rows:] for f in features]
        f_between = [s * f[:rows] + (1 - s) * f[:rows][partner] for f in features]
        h_mixed, h_between = h(torch.cat(f_mixed, 1)), h(torch.cat(f_between, 1))
        parts = [F.cross_entropy(z[:rows], y) for z in logits]
        parts += [F.cross_entropy(z, soft) for z in (*mixed, h_mixed, h_between)]
        parts += [kl(z, w) + kl(w, z) for z, w in zip(mixed[:-1], between[:-1], strict=True)]
        parts += [kl(h_mixed, between[-1]), kl(h_between, mixed[-1])]
        squares = torch.stack([F.mse_loss(a, b) for a, b in zip(f_mixed, f_between, strict=True)]).sum()
        loss = torch.stack(parts).sum() + feature * squares
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((loss + feature * squares).item())  # told once for each side
    return losses, model
