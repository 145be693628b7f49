"""Distances of distributions over two vocabularies, of which some tokens are shared or none is known to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from torch.nn.functional import pad

from ..errors import RecipeError
from ..models.token_spans import SharedTokens

LEAST = 1e-8  # stands for a probability of 0 in logarithms


class CrossDistance(Protocol):
    """A distance of probabilities p (spans, student's tokens) and q (spans, teacher's tokens), (spans,)."""

    def __call__(self, p: Tensor, q: Tensor, shared: SharedTokens) -> Tensor: ...


@dataclass(frozen=True)
class SortedDistance:
    """sum_i |p_(i) - q_(i)| of the probabilities sorted from the largest on, the shorter side filled up with zeros.

    It is the Wasserstein distance for the cost of 1 between any two different tokens, and reads no token's meaning.
    Source: universal logit distillation (ULD), Boizard et al., TMLR 2025 (arXiv 2402.12030), eq. 5.

    >>> import torch
    >>> p, q = torch.tensor([[0.2, 0.8]]), torch.tensor([[0.7, 0.1, 0.2]])
    >>> round(SortedDistance().between(p, q).item(), 6)
    0.2
    """

    def __call__(self, p: Tensor, q: Tensor, shared: SharedTokens) -> Tensor:
        return self.between(p, q)

    @staticmethod
    def between(p: Tensor, q: Tensor) -> Tensor:
        """The distance of two distributions, (spans,)."""
        first, second = p.sort(-1, descending=True).values, q.sort(-1, descending=True).values
        width = max(first.shape[-1], second.shape[-1])
        return (pad(first, (0, width - first.shape[-1])) - pad(second, (0, width - second.shape[-1]))).abs().sum(-1)


@dataclass(frozen=True)
class SharedDivergence:
    """The generalised Jensen-Shannon divergence on shared tokens, and `SortedDistance` on those of one side alone.

    Equation::

        s sum_{v shared} [b q_v log(q_v / m_v) + (1 - b) p_v log(p_v / m_v)] + (1 - s) sum_i |p_(i) - q_(i)|_{others}
        m = b q + (1 - b) p

    At b = 0 and 1 it is KL(q || p) and KL(p || q) on shared tokens. Neither side is normalised again. Source: GOLD
    (general on-policy logit distillation, Hugging Face 2025), hybrid loss of TRL's ``GOLDTrainer``.

    Args:
        beta: Weight b of the teacher in the mixture, between 0 and 1.
        share: Weight s of the shared tokens, between 0 and 1; left open, their share of the teacher's vocabulary.

    Raises:
        RecipeError: One of them is out of range.
    """

    beta: float = 0.5
    share: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("beta", self.beta), ("share", self.share)):
            if value is not None and not 0 <= value <= 1:
                raise RecipeError(f"SharedDivergence: {name} lies between 0 and 1, not at {value}")

    def __call__(self, p: Tensor, q: Tensor, shared: SharedTokens) -> Tensor:
        mine, theirs = p[:, shared.student].clamp(min=LEAST), q[:, shared.teacher].clamp(min=LEAST)
        share = len(shared.teacher) / q.shape[-1] if self.share is None else self.share
        log_p, log_q, beta = mine.log(), theirs.log(), self.beta
        if beta == 0:
            entries = theirs * (log_q - log_p)
        elif beta == 1:
            entries = mine * (log_p - log_q)
        else:
            log_m = (beta * theirs + (1 - beta) * mine).log()
            entries = beta * theirs * (log_q - log_m) + (1 - beta) * mine * (log_p - log_m)
        found = share * entries.sum(-1)
        if len(shared.student_rest) and len(shared.teacher_rest):
            rest = SortedDistance.between(p[:, shared.student_rest], q[:, shared.teacher_rest])
            found = found + (1 - share) * rest
        return found
