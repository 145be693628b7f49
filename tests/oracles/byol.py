"""BYOL: L = sum over views of ||q(z) / |q(z)| - z' / |z'|||^2, z' of the other view by averaged parameters."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import Recorded, forgetting


def projected(model: nn.Module, x: Tensor) -> Tensor:
    for stage in model.get_submodule("model.stages").children():
        x = stage(x)
    z: Tensor = model.get_submodule("projector")(x.mean((2, 3)))
    return z


def oracle(
    run: Recorded, decay: float | None = None, hidden: int = 512, width: int = 128
) -> tuple[list[float], nn.Module]:
    model = run.model()
    target, q = copy.deepcopy(model), model.get_submodule("predictor")
    layers = [*model.get_submodule("projector").children(), *q.children()]
    assert [type(layer).__name__ for layer in layers] == ["Linear", "BatchNorm1d", "ReLU", "Linear"] * 2
    shapes = [tuple(layer.get_parameter("weight").shape) for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == [(hidden, 6), (width, hidden), (hidden, width), (width, hidden)]
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        views = [batch["x"].x, batch["other"].x]
        said = [q(projected(model, x)) for x in views]
        with torch.no_grad():
            told = [projected(target, x) for x in reversed(views)]
        cosines = [(F.normalize(p) * F.normalize(t)).sum(1) for p, t in zip(said, told, strict=True)]
        apart = [2 - 2 * cosine for cosine in cosines]  # squared distances on the sphere
        loss = apart[0].mean() + apart[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        start = forgetting(clock, 0.996, 312_500, 0.97) if decay is None else decay
        d = 1 - (1 - start) * (math.cos(math.pi * clock.step / clock.length) + 1) / 2
        with torch.no_grad():
            for mean, now in zip(target.parameters(), model.parameters(), strict=True):
                mean.copy_(d * mean + (1 - d) * now)
    return losses, run.settled(model)
