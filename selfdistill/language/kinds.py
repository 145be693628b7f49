"""What is summed over the vocabulary: every divergence as entries of two distributions, with its gradient.

A kind sees, for some ids v of every token, the student's log p_v and p_v, the teacher's q_v, and the log-ratio
u_v = log q_v - log p_v, and returns the entries d_v, whose sum is its value, with the gradient g_v = dD / d log p_v. Any
multiple of p_v may be added to g, because it moves no logit: the gradient with respect to logit v is g_v - p_v sum g.
So g is chosen without cancellation. Likewise p_v - q_v, which sums to 0, is added to entries that are then never
negative: what rounding left of the two normalisations enters the value to second order only, and near-identical
distributions keep their digits in float32.

``q`` and ``u`` may be overwritten, ``lp`` and ``p`` may not. All is at ``temperature`` (softmax of z / T on both sides);
no factor T^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import RecipeError

Entries = tuple[Tensor, Tensor]  # values d and gradients g, both of the shape of p


@dataclass(frozen=True)
class Kind:
    """A divergence of the teacher's distribution q and the student's p at one temperature."""

    temperature: float = field(default=1.0, kw_only=True)
    sampled: ClassVar[bool] = False  # reads one sampled token instead of a distribution

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"{type(self).__name__}: a temperature is above 0, not {self.temperature}")

    @property
    def signed(self) -> bool:
        """May a value be negative? (Else what rounding leaves below 0 is cut off.)"""
        return self.sampled

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        """d and g, see above."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it sums")


def _within(kind: Kind, name: str, low: float, high: float) -> None:
    value = getattr(kind, name)
    if not low <= value <= high:
        raise RecipeError(f"{type(kind).__name__}: {name} lies in [{low:g}, {high:g}], not at {value}")


def _clipped(d: Tensor, g: Tensor, clip: float) -> Entries:
    """min(d, clip): an entry that was cut has no gradient."""
    g.masked_fill_(d > clip, 0.0)
    return d.clamp_(max=clip), g


@dataclass(frozen=True)
class ForwardKL(Kind):
    """KL(q || p) = sum_v q_v (log q_v - log p_v), teacher first; with ``clip`` c sum_v min(q_v (log q_v - log p_v), c).

    Gradient of logits (no clip): p - q. Source: Hinton et al. 2015; the clip of entries: Zhao et al. 2026 (OPSD v3).

    >>> ForwardKL(clip=0.05)
    ForwardKL(temperature=1.0, clip=0.05)
    """

    clip: float | None = None

    @property
    def signed(self) -> bool:
        return self.clip is not None  # what is cut off may have outweighed the negative entries

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        if self.clip is not None:
            return _clipped(u.mul_(q), q.neg(), self.clip)
        g = p - q
        return torch.addcmul(g, q, u), g


@dataclass(frozen=True)
class ReverseKL(Kind):
    """KL(p || q) = sum_v p_v (log p_v - log q_v), student first; ``clip`` as in `ForwardKL`.

    Gradient of logits (no clip): p (log p - log q - KL), the policy gradient with advantages log q - log p.
    """

    clip: float | None = None

    @property
    def signed(self) -> bool:
        return self.clip is not None

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        g = u.mul_(p).neg_()
        if self.clip is not None:
            return _clipped(g.clone(), g.add_(p), self.clip)
        return q.sub_(p).add_(g), g


@dataclass(frozen=True)
class JensenShannon(Kind):
    """(beta KL(q || m) + (1 - beta) KL(p || m)) / (beta (1 - beta)), with m = beta q + (1 - beta) p.

    The usual Jensen-Shannon divergence vanishes as beta goes to 0 or 1. Divided by beta (1 - beta) it goes to KL(q || p)
    and KL(p || q), which are its values there, so that one learning rate serves every beta. At 1/2 it is four times the
    usual one. Nothing cancels near the ends: log(m / p) = log1p(beta expm1(u)), and beta > 1/2 reads it from q's side.

    Source: Agarwal et al. 2024 (GKD), eq. 1, here rescaled.

    >>> JensenShannon(0.1).beta
    0.1
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "beta", 0.0, 1.0)

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        beta = self.beta
        if beta in (0.0, 1.0):
            return (ForwardKL() if beta == 0.0 else ReverseKL()).entries(lp, p, q, u)
        if beta <= 0.5:
            mixed = _log_mixed(u, beta)  # log(m / p)
            g = (mixed * p).div_(-beta)
            return u.sub_(mixed).mul_(q).div_(1.0 - beta).add_(g), g
        u.neg_()
        mixed = _log_mixed(u, 1.0 - beta)  # log(m / q)
        g = u.sub_(mixed).mul_(p).div_(beta)
        return mixed.mul_(q).div_(beta - 1.0).add_(g), g


def _log_mixed(u: Tensor, share: float) -> Tensor:
    """log(share e^u + 1 - share), exact for any share; u is capped where e^u would overflow and only u - result counts."""
    u.clamp_(max=0.9 * math.log(torch.finfo(u.dtype).max))
    return torch.expm1(u).mul_(share).log1p_()


@dataclass(frozen=True)
class SkewKL(Kind):
    """KL(q || alpha q + (1 - alpha) p), or with ``reverse`` KL(p || alpha p + (1 - alpha) q): bounded by -log alpha.

    Source: Ko et al. 2024 (DistiLLM), eq. 5 and 7; their alpha is 0.1.
    """

    alpha: float = 0.1
    reverse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _within(self, "alpha", 0.0, 1.0)

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        alpha = self.alpha
        if alpha == 0.0:
            return (ReverseKL() if self.reverse else ForwardKL()).entries(lp, p, q, u)
        if self.reverse:
            u.neg_()
            ratio = u.sub_(_log_mixed(u, alpha))  # log(p / m)
            g = (ratio - alpha * ratio.exp()).mul_(p)
            return q.sub_(p).mul_(1.0 - alpha).addcmul_(p, ratio), g
        mixed = _log_mixed(u, alpha)  # log(m / p)
        g = torch.exp(-mixed).mul_(q).mul_(alpha - 1.0)
        return u.sub_(mixed).mul_(q).add_(p - q, alpha=1.0 - alpha), g


@dataclass(frozen=True)
class TotalVariation(Kind):
    """sum_v |q_v - p_v| / 2: half the L1 distance, within [0, 1]."""

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        difference = p - q
        return difference.abs().mul_(0.5), difference.sign_().mul_(p).mul_(0.5)


@dataclass(frozen=True)
class PolicyGradient(Kind):
    """sg(log p(y) - log q(y)) log p(y) at a sampled token y ~ p: its gradient is that of KL(p || q) in expectation."""

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        g = u.neg_()
        return g * lp, g


@dataclass(frozen=True)
class K2(Kind):
    """(log p(y) - log q(y))^2 / 2 at a sampled token: the gradient of `PolicyGradient`, and a value that falls with it.

    Of the estimates of KL(p || q) by `estimates`, k1 has gradient 0 in expectation when it is backpropagated, and k3
    that of the *other* divergence, KL(q || p); so neither is a loss here. Source: Schulman 2020 (the estimates).
    """

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        return 0.5 * u.square(), u.neg_()


@dataclass(frozen=True)
class LogProbability(Kind):
    """log p(y) of given tokens; the teacher is not read."""

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        return lp, torch.ones_like(lp)


__all__ = [
    "K2", "ForwardKL", "JensenShannon", "Kind", "LogProbability", "PolicyGradient", "ReverseKL", "SkewKL",
    "TotalVariation",
]  # fmt: skip
