"""SAD: L = CE(y, p) + w sum_l ||A(f_l) - sg A(f_{l+1})||^2 after a while, A a softmax over positions of squares."""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from tests.harness import Recorded

OTHER = {"weight": 3.0, "wait": 0.0, "layers": ("stages.0", "stages.2")}


def oracle(
    run: Recorded, weight: float = 0.1, wait: float = 0.5,
    layers: tuple[str, ...] = ("stages.0", "stages.1", "stages.2"),
) -> tuple[list[float], nn.Module]:  # fmt: skip
    model = run.model()
    inner = model.get_submodule("model")
    optimizer = run.optimizer(model)
    losses = []
    for clock, batch in run.batches():
        f, y, said = batch["x"].x, batch["x"].y, {}
        for number, stage in enumerate(inner.get_submodule("stages").children()):
            f = said[f"stages.{number}"] = stage(f)
        loss = F.cross_entropy(inner.get_submodule("classifiers.0")(f.mean((2, 3))), y)
        maps = [(said[layer] ** 2).sum(1, keepdim=True) for layer in layers]
        if clock.epoch >= wait * clock.epochs:
            for number, here in enumerate(maps[:-1]):
                deeper = maps[number + 1]
                wide = F.interpolate(deeper.detach(), here.shape[2:], mode="bilinear")
                apart = here.flatten(1).softmax(1) - wide.flatten(1).softmax(1)
                loss = loss + weight * apart.square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
