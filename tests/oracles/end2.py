"""EnD^2: M trainings on the labels, then one on -mean_m log Dirichlet(p_m; exp(z / T)), T falling to 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.harness import CLASSES, Recorded

OTHER = {"members": 2, "start": 5.0, "share": 0.9, "smoothing": 0.01}


def oracle(
    run: Recorded, members: int = 4, start: float = 10.0, share: float = 0.5, smoothing: float = 1e-4
) -> tuple[list[float], nn.Module]:
    losses, trained = list[float](), list[nn.Module]()
    for generation in range(members + 1):
        model = run.model(generation)
        optimizer = run.optimizer(model)
        for clock, batch in run.batches(generation):
            x, y = batch["x"].x, batch["x"].y
            z = model(x)
            loss = F.cross_entropy(z, y)
            if len(trained) == members:
                heat = max(1.0, start + (1 - start) * clock.step / clock.length / share)
                density = torch.distributions.Dirichlet((z / heat).exp(), validate_args=False)
                with torch.no_grad():
                    p = torch.stack([(member(x) / heat).softmax(1) for member in trained])
                    p = (1 - smoothing) * p + smoothing / CLASSES
                loss = -torch.stack([density.log_prob(one) for one in p]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        trained.append(model.eval())
    return losses, model
