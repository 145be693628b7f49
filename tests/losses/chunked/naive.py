"""Divergences as the papers write them: full logits, probabilities, autograd. Nothing of the package is used."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Entries = Callable[[Tensor, Tensor], Tensor]  # (q, p) -> one entry for each id, or bucket


def kl(a: Tensor, b: Tensor) -> Tensor:
    return a * (a / b).log()


def js(beta: float) -> Entries:
    def entries(q: Tensor, p: Tensor) -> Tensor:
        m = beta * q + (1 - beta) * p
        return (beta * kl(q, m) + (1 - beta) * kl(p, m)) / (beta * (1 - beta))

    return entries


def skew(alpha: float, reverse: bool = False) -> Entries:
    if reverse:
        return lambda q, p: kl(p, alpha * p + (1 - alpha) * q)
    return lambda q, p: kl(q, alpha * q + (1 - alpha) * p)


def clipped(entries: Entries, clip: float) -> Entries:
    return lambda q, p: torch.minimum(entries(q, p), torch.tensor(clip, dtype=p.dtype))


def forward(q: Tensor, p: Tensor) -> Tensor:
    return kl(q, p)


def reverse(q: Tensor, p: Tensor) -> Tensor:
    return kl(p, q)


def variation(q: Tensor, p: Tensor) -> Tensor:
    return (q - p).abs() / 2


def probabilities(z: Tensor, vocabulary: int, temperature: float) -> Tensor:
    e = (z[:, :vocabulary] / temperature).exp()
    return e / e.sum(1, keepdim=True)


def top(p: Tensor, k: int) -> list[list[int]]:
    return [row.sort(descending=True).indices[:k].tolist() for row in p]


def bucketed(p: Tensor, ids: list[list[int]]) -> list[Tensor]:
    """Per token the probabilities of its ids, and of all others together."""
    rows = []
    for row, chosen in zip(p, ids, strict=True):
        others = [v for v in range(len(row)) if v not in chosen]
        rows.append(torch.stack([row[v] for v in chosen] + ([row[others].sum()] if others else [])))
    return rows


def compare(entries: Entries, q: Tensor, p: Tensor, ids: list[list[int]] | None = None) -> Tensor:
    """One divergence per token."""
    if ids is None:
        return entries(q, p).sum(1)
    return torch.stack([entries(a, b).sum() for a, b in zip(bucketed(q, ids), bucketed(p, ids), strict=True)])
