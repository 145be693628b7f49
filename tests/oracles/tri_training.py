"""Tri-training: three networks; each learns what the other two agree on, on unlabelled rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.harness import Recorded, beside

OTHER = {"weight": 0.5, "share": 0.8, "ratio": 2.0, "ramp": 0.7}
K = 3


def drawn(ident: int, peer: int, share: float) -> bool:
    """Is a sample one of those that a peer has drawn?"""
    h = (2654435761 * ident + 668265263 * (peer + 1)) % 2**32
    for factor in (2246822519, 3266489917):
        h = factor * (h ^ (h // 2**15)) % 2**32
    return h < share * 2**32


def oracle(
    run: Recorded, weight: float = 1.0, share: float = 0.632, ratio: float | None = None, ramp: float = 0.4
) -> tuple[list[float], nn.Module]:
    model = run.model()
    optimizer, losses = run.optimizer(model), list[float]()
    for clock, batch in run.batches():
        x, y, ids, more = batch["labelled"].x, batch["labelled"].y, batch["labelled"].id, batch["unlabelled"].x
        assert len(more) == beside(clock, ratio)
        z, u = model(torch.cat([x, more]))["peers"].split([len(x), len(more)])
        given, taught = list[Tensor](), list[Tensor]()
        for k in range(K):
            for row, ident in enumerate(ids.tolist()):
                if drawn(ident, k, share):
                    given.append(F.cross_entropy(z[row, k][None], y[row][None]))
            for row in range(len(u)):
                guesses = {int(u[row, j].argmax()) for j in range(K) if j != k}
                if len(guesses) > 1:
                    continue
                guess = guesses.pop()
                taught.append(F.cross_entropy(u[row, k][None], torch.tensor([guess])))
        loss = K * torch.stack(given).sum() / len(given)
        if taught:
            loss = loss + weight * min(1.0, clock.step / clock.length / ramp) * torch.stack(taught).sum() / len(u)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model
