"""FRSKD: CE of model and pyramid, KL from pyramid to model, and the model's maps strong where the pyramid's are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import Recorded

OTHER = {"weight": 1.0, "feature": 30.0, "temperature": 2.0, "width": 1, "layers": ("stages.0", "stages.1")}


def strong(maps: Tensor) -> Tensor:
    squares = (maps**2).mean(1).flatten(1)
    return F.normalize(squares, dim=1)  # with these weights a rounding grows to 1e-5 within two epochs


def oracle(
    run: Recorded, weight: float = 2.0, feature: float = 100.0, temperature: float = 4.0, width: int = 2,
    layers: tuple[str, ...] = ("stages.0", "stages.1", "stages.2"),
) -> tuple[list[float], nn.Module]:  # fmt: skip
    model = run.model()
    inner, pyramid = model.get_submodule("model"), model.get_submodule("pyramid")
    lateral, up, down, above, below = (
        list(pyramid.get_submodule(name).children()) for name in ("lateral", "up", "down", "above", "below")
    )
    after, before = lateral[-1].get_parameter("0.weight").shape[:2]
    assert after == width * before
    optimizer = run.optimizer(model)
    losses = []

    def fuse(fusion: nn.Module, maps: list[Tensor]) -> Tensor:
        w = fusion.get_parameter("weights").relu()
        mixed = torch.zeros_like(maps[0])
        for number, one in enumerate(maps):
            mixed = mixed + w[number] / (w.sum() + 1e-6) * one
        return fusion.get_submodule("layers")(mixed)  # type: ignore[no-any-return]

    for _, batch in run.batches():
        f, y, said = batch["x"].x, batch["x"].y, {}
        for number, stage in enumerate(inner.get_submodule("stages").children()):
            f = said[f"stages.{number}"] = stage(f)
        z = inner.get_submodule("classifiers.0")(f.mean((2, 3)))
        own = [said[layer] for layer in layers]
        n = len(own)
        side = [lateral[i](own[i]) for i in range(n)]
        p: list[Tensor] = [side[-1]]
        for i in range(n - 2, -1, -1):
            p.insert(0, fuse(above[i], [side[i], F.interpolate(up[i](p[0]), side[i].shape[2:])]))
        t = [p[0]]
        for i in range(1, n):
            smaller = F.adaptive_max_pool2d(down[i - 1](t[-1]), side[i].shape[2:])
            t.append(fuse(below[i - 1], [side[i], p[i], smaller] if i < n - 1 else [side[i], smaller]))
        taught = model.get_submodule("classifier")(t[-1].mean((2, 3)))
        q = (taught.detach() / temperature).softmax(1)
        kl = F.kl_div((z / temperature).log_softmax(1), q, reduction="batchmean")
        loss = F.cross_entropy(z, y) + F.cross_entropy(taught, y) + weight * temperature**2 * kl
        for mine, theirs in zip(own, t, strict=True):
            loss = loss + feature * (strong(mine) - strong(theirs).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
