"""DINO: L = mean over pairs of -sum softmax((t - c) / S) log softmax(s / T), t of a large view, s of any other."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import Recorded, forgetting

OTHER = {"decay": 0.7, "temperature": 0.2, "sharp": 0.1, "centring": 0.5, "prototypes": 24, "crops": 1, "norm": False}


def scores(model: nn.Module, x: Tensor) -> Tensor:
    for stage in model.get_submodule("model.stages").children():
        x = stage(x)
    z = model.get_submodule("projector")(x.mean((2, 3)))
    w = model.get_parameter("prototypes.directions")
    cosines: Tensor = F.normalize(z) @ F.normalize(w).T
    return cosines


def oracle(
    run: Recorded,
    decay: float | None = None,
    temperature: float = 0.1,
    sharp: float = 0.04,
    centring: float = 0.9,
    prototypes: int = 1024,
    crops: int = 2,
    norm: bool = True,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    layers = list(model.get_submodule("projector").children())
    between = ["BatchNorm1d", "ReLU"] if norm else ["GELU"]
    assert [type(layer).__name__ for layer in layers] == ["Linear", *between] * 2 + ["Linear"]
    shapes = [tuple(layer.get_parameter("weight").shape) for layer in layers[:: len(between) + 1]]
    assert shapes == [(512, 6), (512, 512), (128, 512)]
    assert model.get_parameter("prototypes.directions").shape == (prototypes, 128)
    teacher, centre = copy.deepcopy(model), torch.zeros(prototypes)
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        assert set(batch) == {"x", "other", *(f"small{i + 1}" for i in range(crops))}
        views = [batch[name].x for name in ("x", "other", "small1", "small2")[: 2 + crops]]
        said = [scores(model, x) for x in views]
        with torch.no_grad():
            told = [scores(teacher, x) for x in views[:2]]
            told_p = [((t - centre) / sharp).softmax(1) for t in told]
        pairs = [
            -(told_p[w] * (said[v] / temperature).log_softmax(1)).sum(1).mean()
            for w in range(2)
            for v in range(2 + crops)
            if v != w
        ]
        loss = torch.stack(pairs).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        start = forgetting(clock, 0.996, 125_000, 0.97) if decay is None else decay
        d = 1 - (1 - start) * (math.cos(math.pi * clock.step / clock.length) + 1) / 2
        with torch.no_grad():
            centre = centring * centre + (1 - centring) * torch.cat(told).mean(0)
            for mean, now in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.copy_(d * mean + (1 - d) * now)
    return losses, run.settled(model)
