"""The committee: one target for all peers, combined from each peer's prediction for its own view (KDCL)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import Buffers
from ..core.parts import BaseTerm, BindArgs, GenerationData, Teacher
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError, SpaceError
from ..models.peers import PeerModels

HOW = ("naive", "linear", "minlogit", "general")


HALVINGS, SWEEPS = 40, 12  # of the interval for a pair's share; over all pairs, where there are more than one


MOST = 1000  # training rows that the weights of "general" are estimated from


def convex(z: Tensor, y: Tensor) -> Tensor:
    """The weights a (rows, K) of the convex combination of logits (rows, K, classes) with the least CE(y, sum a_k z_k).

    The loss is convex in a, so along a line that moves weight from one peer to another its slope rises, and bisection
    finds the minimum, for each pair in turn over several sweeps. Two peers are one pair. In float64.

    >>> convex(torch.tensor([[[2.0, 0.0], [0.0, 0.0]]]), torch.tensor([0])).tolist()
    [[1.0, 0.0]]
    """
    z = z.double()
    rows, peers, _ = z.shape
    a = torch.full((rows, peers), 1.0 / peers, dtype=z.dtype, device=z.device)
    pairs = [(i, j) for i in range(peers) for j in range(i + 1, peers)]
    for _ in range(SWEEPS if len(pairs) > 1 else 1):
        for i, j in pairs:
            total, difference = a[:, i] + a[:, j], z[:, i] - z[:, j]
            start = (a.unsqueeze(-1) * z).sum(1) - a[:, i, None] * difference  # all of what both have lies with j
            low, high = torch.zeros_like(total), total.clone()
            target = difference.gather(1, y[:, None]).squeeze(1)
            for _ in range(HALVINGS):
                midpoint = (low + high) / 2
                positive = (F.softmax(start + midpoint[:, None] * difference, dim=-1) * difference).sum(-1) > target
                low, high = torch.where(positive, low, midpoint), torch.where(positive, midpoint, high)
            share = torch.where(high >= total, total, torch.where(low <= 0, torch.zeros_like(low), (low + high) / 2))
            a[:, i], a[:, j] = share, total - share
    return a


def best_weights(p: Tensor, y: Tensor) -> Tensor:
    """The weights (K,) of the mean of predictions (rows, K, classes) with the least squared error, summing to 1.

    Equation::

        w_k = sum_j (C^-1)_kj / sum_ij (C^-1)_ij,  C_ij = mean over rows of <p_i - y, p_j - y>

    They may be negative. C gets a millionth of its mean diagonal added, lest peers that agree make it singular.

    Source: Perrone and Cooper, When Networks Disagree: Ensemble Methods for Hybrid Neural Networks, 1993.
    """
    errors = (p - F.one_hot(y, p.shape[-1]).unsqueeze(1).to(p)).double()
    c = torch.einsum("nic,njc->ij", errors, errors) / len(errors)
    c = c + 1e-6 * c.diagonal().mean() * torch.eye(len(c), dtype=c.dtype, device=c.device)
    w = torch.linalg.solve(c, torch.ones(len(c), dtype=c.dtype, device=c.device))
    weights: Tensor = w / w.sum()
    return weights


class _Weights(Buffers):
    """The weights of "general", and the rows they are estimated from."""

    weights: Tensor
    pool: tuple[GenerationData, ...] = ()

    def __init__(self, peers: int) -> None:
        super().__init__()
        self.register_buffer("weights", torch.full((peers,), 1.0 / peers))


@dataclass(frozen=True)
class Combined(Teacher[_Weights]):
    """One target from the logits of all peers, each on its own one of ``views``, or all on the same one.

    ``naive``: the logits of the peer with the smallest cross-entropy on the label; ``linear``: their convex combination
    with the smallest (`convex`); ``minlogit``: for each class the smallest logit minus that of the label; ``general``:
    their sum with the weights of the least squared error (`best_weights`), estimated after every epoch on up to 1,000
    training rows without augmentation, and equal before.

    Raises:
        RecipeError: an unknown ``how``.
    """

    how: str = "naive"
    views: tuple[str, ...] = ("x",)

    def __post_init__(self) -> None:
        if self.how not in HOW:
            raise RecipeError(f"Combined: how is one of {', '.join(map(repr, HOW))}, not {self.how!r}")

    def start(self, model: nn.Module, args: BindArgs) -> _Weights:
        return _Weights(len(self.views))

    def key(self, term: BaseTerm) -> Hashable:
        return self, term.head

    def space(self, head: str) -> str:
        if head != "logits":
            raise SpaceError(f"Combined needs the head 'logits', not {head!r}")
        return "logits"

    def target(self, state: _Weights, forward: Forward, term: BaseTerm) -> Target:
        z = torch.stack([forward.student(view, term.head).detach() for view in self.views], dim=1)  # (rows, K, classes)
        if self.how == "general":
            return Target(torch.einsum("k,nkc->nc", state.weights.to(z), z), "logits")
        y = forward.labels(term.view)
        labelled, label = y >= 0, y.clamp(min=0)
        if self.how == "linear":
            value = (convex(z, label).unsqueeze(-1) * z).sum(1).to(z)
        elif self.how == "minlogit":
            value = (z - z.gather(2, label[:, None, None].expand(-1, z.shape[1], 1))).amin(1)
        else:
            losses = -F.log_softmax(z, dim=-1).gather(2, label[:, None, None].expand(-1, z.shape[1], 1)).squeeze(2)
            value = z[torch.arange(len(z), device=z.device), losses.argmin(1)]
        return Target(value, "logits", labelled)

    def prepare(self, state: _Weights, pool: GenerationData) -> None:
        if self.how == "general":
            state.pool = (pool,)

    def update(self, state: _Weights, forwards: Sequence[Forward], term: BaseTerm) -> None:
        clock, peers = forwards[0].clock, forwards[0].owner
        if not state.pool or not isinstance(peers, PeerModels) or (clock.step + 1) % clock.per_epoch:
            return
        pool = state.pool[0]
        ids, y = pool.labelled[:MOST], pool.targets[:MOST]
        p = torch.stack([F.softmax(pool.predict(member, ids), dim=-1) for member in peers.members], dim=1)
        state.weights = best_weights(p, y.to(p.device)).to(state.weights)
