"""The likelihood of a mean and a variance, weighed by the variance to the power beta."""

from __future__ import annotations

from torch import nn

from tests.harness import Recorded
from tests.normal import likelihood, split


def oracle(run: Recorded, beta: float = 0.5) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    for _, batch in run.batches():
        loss = likelihood(batch["x"].y, *split(model, batch["x"].x), beta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
