"""iBOT: DINO on the classifier's token of crops with hidden patches, and the same cross-entropy on hidden patches."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import Recorded, forgetting

OTHER = {
    "decay": 0.7, "temperature": 0.2, "sharp": 0.1, "settled": 0.15, "warm_up": 0.6, "centring": 0.5, "prototypes": 24,
    "crops": 1, "hidden": 0.5, "spread": 0.1, "unmasked": 0.25,
}  # fmt: skip


def tokens_of(wrapped: nn.Module, x: Tensor) -> Tensor:
    """What the transformer says of every token (rows, 1 + 16, 8); a patch of minus ones is the learnt token's."""
    model = wrapped.get_submodule("model")
    hidden = (x.unfold(2, 2, 2).unfold(3, 2, 2) == -1).flatten(4).all(4)[:, 0].flatten(1)  # (rows, 16)
    patches = model.get_submodule("patches")(x).flatten(2).transpose(1, 2)
    patches = torch.where(hidden[:, :, None], wrapped.get_parameter("hidden"), patches)
    first = model.get_parameter("token").expand(len(x), -1, -1)
    h = torch.cat([first, patches], 1) + model.get_parameter("places")
    block = model.get_submodule("blocks.0")
    q, k, v = block.get_submodule("qkv")(block.get_submodule("norm1")(h)).view(len(x), 17, 3, 2, 4).unbind(2)
    weights = (torch.einsum("rihd,rjhd->rhij", q, k) / 2).softmax(-1)  # the root of four, a head's width
    seen = torch.einsum("rhij,rjhd->rihd", weights, v).flatten(2)
    h = h + block.get_submodule("projection")(seen)
    h = h + block.get_submodule("linear2")(F.gelu(block.get_submodule("linear1")(block.get_submodule("norm2")(h))))
    out: Tensor = model.get_submodule("norm")(h)
    return out


def scores(wrapped: nn.Module, x: Tensor) -> Tensor:
    """Cosines of every token's projection with the prototypes."""
    z = wrapped.get_submodule("projector")(tokens_of(wrapped, x))
    cosines: Tensor = F.normalize(z, dim=-1) @ F.normalize(wrapped.get_parameter("prototypes.directions")).T
    return cosines


def oracle(
    run: Recorded,
    decay: float | None = None,
    temperature: float = 0.1,
    sharp: float = 0.04,
    settled: float = 0.07,
    warm_up: float = 0.1,
    centring: float = 0.9,
    prototypes: int = 1024,
    crops: int = 2,
    hidden: float = 0.3,
    spread: float = 0.2,
    unmasked: float = 0.5,
) -> tuple[list[float], nn.Module]:
    model = run.model()
    assert [type(layer).__name__ for layer in model.get_submodule("projector").children()][1::2] == ["GELU"] * 2
    assert model.get_parameter("prototypes.directions").shape == (prototypes, 128)
    teacher, centres = copy.deepcopy(model), [torch.zeros(prototypes), torch.zeros(prototypes)]
    optimizer, losses, hides = run.optimizer(model), list[float](), list[float]()
    for clock, batch in run.batches():
        assert len(batch) == 4 + crops
        small = [batch[name].x for name in ("small1", "small2")[:crops]]
        full, blind = [batch["x"].x, batch["other"].x], [batch["x_hidden"].x, batch["other_hidden"].x]
        gone = [(b == -1) for b in blind]
        assert all(bool(((b == w) | g).all()) for b, w, g in zip(blind, full, gone, strict=True))
        hides += [float(one) for g in gone for one in g.flatten(1).float().mean(1)]
        heat = settled + (sharp - settled) * max(0.0, 1.0 - clock.step / clock.length / warm_up)
        said = [scores(model, x) for x in [*blind, *small]]
        with torch.no_grad():
            told = [scores(teacher, x) for x in full]
            first = [((t[:, 0] - centres[0]) / heat).softmax(1) for t in told]
            rest = [((t[:, 1:] - centres[1]) / heat).softmax(2) for t in told]
        pairs = [
            -(first[w] * (said[v][:, 0] / temperature).log_softmax(1)).sum(1).mean()
            for w in range(2)
            for v in range(2 + crops)
            if v != w
        ]
        patches = []
        for v in range(2):
            where = gone[v][:, 0, ::2, ::2].flatten(1)  # (rows, 16)
            each = -(rest[v] * (said[v][:, 1:] / temperature).log_softmax(2)).sum(2)
            patches.append(((each * where).sum(1) / where.sum(1).clamp(min=1)).mean())
        loss = torch.stack(pairs).mean() + torch.stack(patches).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        start = forgetting(clock, 0.996, 125_000, 0.97) if decay is None else decay
        d = 1 - (1 - start) * (math.cos(math.pi * clock.step / clock.length) + 1) / 2
        with torch.no_grad():
            both = torch.cat(told)
            for i, now in enumerate((both[:, 0].mean(0), both[:, 1:].mean((0, 1)))):
                centres[i] = centring * centres[i] + (1 - centring) * now
            for mean, here in zip(teacher.parameters(), model.parameters(), strict=True):
                mean.copy_(d * mean + (1 - d) * here)
    unseen = hides.count(0.0) / len(hides)
    assert abs(unseen - unmasked) < 0.1
    assert hidden + spread - 0.125 < max(hides) <= hidden + spread  # of sixteen patches two more or fewer
    return losses, run.settled(model)
