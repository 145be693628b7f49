"""Definitions of divergences: each as a sum over the vocabulary, with its gradient.

A kind sees, for some ids v of every token, the student's log p_v and p_v, the teacher's q_v, and the log-ratio
u_v = log q_v - log p_v. It returns the entries d_v, whose sum is its value, and the gradient g_v = dD / d log p_v. Any
multiple of p_v may be added to g, because it moves no logit (whose gradient is g_v - p_v sum g), so g is chosen without
cancellation. Likewise p_v - q_v, which sums to 0, is added to entries that are then never negative: what rounding left
of the normalisations enters the value to second order only, and near-identical distributions keep their digits.

``q`` and ``u`` may be overwritten, ``lp`` and ``p`` may not. Both sides are softmax(z / temperature); no factor T^2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ...errors import RecipeError

Entries = tuple[Tensor, Tensor]  # d and g, both of the shape of p


@dataclass(frozen=True)
class Divergence:
    """A divergence of the teacher's distribution q and the student's p at one temperature."""

    temperature: float = field(default=1.0, kw_only=True)
    sampled: ClassVar[bool] = False  # reads one sampled token instead of a distribution

    def __post_init__(self) -> None:
        self.between("temperature", torch.finfo(torch.float32).tiny, math.inf)

    def between(self, name: str, low: float, high: float) -> None:
        """Refuse a setting out of range."""
        if not low <= (value := getattr(self, name)) <= high:
            raise RecipeError(f"{type(self).__name__}: {name} lies between {low:g} and {high:g}, not at {value}")

    @property
    def signed(self) -> bool:
        """May a value be negative? Else what rounding left below 0 is cut off."""
        return self.sampled or getattr(self, "clip", None) is not None

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        """d and g, see above."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it sums")


def _clipped(d: Tensor, g: Tensor, clip: float) -> Entries:
    """min(d, clip): an entry that was cut has no gradient."""
    g.masked_fill_(d > clip, 0.0)
    return d.clamp_(max=clip), g


@dataclass(frozen=True)
class ForwardKL(Divergence):
    """KL(q || p) = sum_v q_v (log q_v - log p_v), teacher first; with ``clip`` c sum_v min(q_v (log q_v - log p_v), c).

    Source: Hinton et al. 2015; the clip of entries: OPSD (arXiv 2601.18734, v3).

    >>> ForwardKL(clip=0.05)
    ForwardKL(temperature=1.0, clip=0.05)
    """

    clip: float | None = None

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        if self.clip is not None:
            return _clipped(u.mul_(q), q.neg(), self.clip)
        g = p - q
        return torch.addcmul(g, q, u), g


@dataclass(frozen=True)
class PartialKL(Divergence):
    """sum_v q_v (log q_v - log p_v) over a part of the vocabulary, teacher first, without what the rest would add.

    It pulls the probabilities of these ids up to the teacher's, and may be negative. Over the whole vocabulary it is
    KL(q || p). Source: the forward part of entropy-aware on-policy distillation, arXiv 2603.07079, 2026.
    """

    @property
    def signed(self) -> bool:
        return True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        return u.mul_(q), q.neg()


@dataclass(frozen=True)
class ReverseKL(Divergence):
    """KL(p || q) = sum_v p_v (log p_v - log q_v), student first; ``clip`` as in `ForwardKL`.

    Its gradient p (log p - log q - KL) is a policy gradient with advantages log q - log p.
    """

    clip: float | None = None

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        g = u.mul_(p).neg_()
        if self.clip is not None:
            return _clipped(g.clone(), g.add_(p), self.clip)
        return q.sub_(p).add_(g), g


@dataclass(frozen=True)
class JensenShannon(Divergence):
    """(beta KL(q || m) + (1 - beta) KL(p || m)) / (beta (1 - beta)), with m = beta q + (1 - beta) p.

    Undivided it vanishes as beta goes to 0 or 1; so it goes to KL(q || p) and KL(p || q), its values there, and one
    learning rate serves every beta. At 1/2 it is four times the usual one. Nothing cancels near the ends:
    log(m / p) = log1p(beta expm1(u)); beta > 1/2 is read from q's side. Source: GKD (Agarwal et al. 2024), rescaled.

    >>> JensenShannon(0.1).beta
    0.1
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("beta", 0.0, 1.0)

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        beta = self.beta
        if beta in (0.0, 1.0):
            return (ForwardKL() if beta == 0.0 else ReverseKL()).entries(lp, p, q, u)
        if beta <= 0.5:
            mixed = _log_mixed(u, beta)  # log(m / p)
            g = (mixed * p).div_(-beta)
            return u.sub_(mixed).mul_(q).div_(1.0 - beta).add_(g), g
        mixed = _log_mixed(u.neg_(), 1.0 - beta)  # log(m / q)
        g = u.sub_(mixed).mul_(p).div_(beta)
        return mixed.mul_(q).div_(beta - 1.0).add_(g), g


def _log_mixed(u: Tensor, share: float) -> Tensor:
    """log(share e^u + 1 - share). Caps u where e^u would overflow: u - result has its limit, -log share, by then."""
    u.clamp_(max=0.9 * math.log(torch.finfo(u.dtype).max))
    return torch.expm1(u).mul_(share).log1p_()


@dataclass(frozen=True)
class SkewKL(Divergence):
    """KL(q || alpha q + (1 - alpha) p), or with ``reverse`` KL(p || alpha p + (1 - alpha) q): at most -log alpha.

    Source: Ko et al. 2024 (DistiLLM).
    """

    alpha: float = 0.1
    reverse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.between("alpha", 0.0, 1.0)

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        alpha = self.alpha
        if alpha == 0.0:
            return (ReverseKL() if self.reverse else ForwardKL()).entries(lp, p, q, u)
        if self.reverse:
            mixed = _log_mixed(u.neg_(), alpha)
            ratio = u.sub_(mixed)  # log(p / m)
            g = (ratio - alpha * ratio.exp()).mul_(p)
            return q.sub_(p).mul_(1.0 - alpha).addcmul_(p, ratio), g
        mixed = _log_mixed(u, alpha)  # log(m / p)
        g = torch.exp(-mixed).mul_(q).mul_(alpha - 1.0)
        return u.sub_(mixed).mul_(q).add_(p - q, alpha=1.0 - alpha), g


@dataclass(frozen=True)
class TotalVariation(Divergence):
    """sum_v |q_v - p_v| / 2, within [0, 1]."""

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        difference = p - q
        return difference.abs().mul_(0.5), difference.sign_().mul_(p).mul_(0.5)


@dataclass(frozen=True)
class SampledReverseKL(Divergence):
    """sg(log p(y) - log q(y)) log p(y) at a sampled token y ~ p: its gradient is that of KL(p || q) in expectation."""

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        g = u.neg_()
        return g * lp, g


@dataclass(frozen=True)
class K2(Divergence):
    """(log p(y) - log q(y))^2 / 2 at a sampled token: the gradient of `SampledReverseKL`, with a value that falls."""

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        return 0.5 * u.square(), u.neg_()


@dataclass(frozen=True)
class LogProbability(Divergence):
    """log p(y) of given tokens; the teacher is not read."""

    sampled: ClassVar[bool] = True

    def entries(self, lp: Tensor, p: Tensor, q: Tensor, u: Tensor) -> Entries:
        return lp, torch.ones_like(lp)


class Swept(NamedTuple):
    """Per-token values and cross-entropies (tokens,), and the gradients of their weighted sum."""

    values: Tensor
    cross_entropy: Tensor | None
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)


class Weights(NamedTuple):
    """The gradients are those of sum(divergence * value + label * cross-entropy), each (tokens,)."""

    divergence: Tensor
    label: Tensor | None = None

    def of(self, rows: slice) -> Weights:
        """Those of some tokens."""
        return Weights(self.divergence[rows], None if self.label is None else self.label[rows])
