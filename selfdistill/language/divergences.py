"""How far a student is from its teacher, token by token, without ever holding all logits.

Two doors lead to one pass over the tokens (`sweep`), and differ in when the gradients are made:

* `divergence` makes them in the forward pass, of sum_i w_i D_i with weights given beforehand. Logits are computed once
  and memory is flat in the number of tokens. ``total`` is that sum and differentiable; ``values`` are for logs, masks
  and statistics, and carry no gradient.
* `per_token` returns differentiable values of which anything may be made afterwards. Its backward pass computes the
  logits again and is exact for any upstream gradient: six matrix products where the other takes four, as flat.

No gradient flows to a teacher. Arithmetic is float32 whatever the inputs are, float64 where one of them is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..errors import RecipeError
from .kinds import K2, ForwardKL, JensenShannon, Kind, LogProbability, PolicyGradient, ReverseKL, SkewKL, TotalVariation
from .matched import matched
from .sources import Cached, Head, Source, tensors
from .sweep import Comparison, Top, Wanted, Weights

Parts = tuple[Tensor | None, ...]


class Compared(NamedTuple):
    """What `divergence` found: the differentiable sum, and per token what went into it (0 where masked)."""

    total: Tensor
    values: Tensor
    cross_entropy: Tensor | None
    count: int

    @property
    def mean(self) -> Tensor:
        """The total over the number of tokens that the mask kept; 0 if it kept none."""
        return self.total / max(1, self.count)


def divergence(
    student: Source,
    teacher: Source | Cached,
    kind: Kind = ForwardKL(),
    *,
    support: Top | Tensor | None = None,
    weight: Tensor | float = 1.0,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    label_weight: Tensor | float = 1.0,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> Compared:
    """sum_i w_i D(q_i, p_i), and with labels + sum_i v_i CE(y_i, p_i), from one computation of the logits.

    Args:
        student, teacher: a `Head` or logits, with the same leading shape of tokens (...); widths may differ. The
            teacher may be `Cached`.
        kind: which divergence D, its temperature and clip. The cross-entropy is at temperature 1.
        support: None for the full vocabulary, `Top`, or ids (..., k) that do not repeat; all other ids are one bucket.
            For a sampled kind the ids (...) of the sampled tokens.
        weight, label_weight: w and v, constants: (...), what broadcasts to it, or a number.
        mask: (...), False drops a token before anything is computed for it.
        labels: ids (...) for the cross-entropy.
        vocabulary: how many outputs are real; padding beyond it has no probability on either side.
        chunk: tokens whose logits are held at once [default: by memory, `sweep.CHUNK`].

    Raises:
        DataError: shapes or ids do not fit each other.
        RecipeError: a setting is out of range, or the support does not fit the kind.

    >>> head = Head(torch.randn(5, 8), torch.randn(11, 8).requires_grad_())
    >>> found = divergence(head, torch.randn(5, 11), JensenShannon(0.5), support=Top(3))
    >>> found.mean.backward()
    >>> found.values.shape, head.weight.grad.shape
    (torch.Size([5]), torch.Size([11, 8]))
    """
    task = matched(student, teacher, kind, support, mask, labels, vocabulary, chunk)
    by_label = None if labels is None else task.weight(label_weight, "label_weight")
    weights, parts = Weights(task.weight(weight, "weight"), by_label), tensors(task.comparison.student)
    total, values, entropies = _Total.apply(task.comparison, weights, _wanted(parts), *parts)
    return Compared(total, task.back(values), None if labels is None else task.back(entropies), len(values))


def per_token(
    student: Source,
    teacher: Source | Cached,
    kind: Kind = ForwardKL(),
    *,
    support: Top | Tensor | None = None,
    mask: Tensor | None = None,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """D(q_i, p_i) of every token (...), differentiable; 0 where masked. Arguments and errors as of `divergence`.

    >>> z = torch.randn(2, 3, 7, requires_grad=True)
    >>> per_token(z, z.detach(), ReverseKL()).square().mean().backward()
    >>> float(z.grad.abs().max()) < 1e-6
    True
    """
    task = matched(student, teacher, kind, support, mask, None, vocabulary, chunk)
    values: Tensor = _PerToken.apply(task.comparison, *tensors(task.comparison.student))
    return task.back(values)


def log_probabilities(
    student: Source,
    ids: Tensor,
    *,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    vocabulary: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """log p(y_i) of given ids (...), differentiable; 0 where masked. Minus it is the cross-entropy.

    >>> log_probabilities(torch.zeros(2, 4), torch.tensor([0, 3])).exp().tolist()
    [0.25, 0.25]
    """
    nothing = Cached(ids, torch.zeros(ids.shape, device=ids.device))
    kind = LogProbability(temperature=temperature)
    return per_token(student, nothing, kind, mask=mask, vocabulary=vocabulary, chunk=chunk)


class Estimates(NamedTuple):
    """Three estimates of KL(p || q) from tokens sampled from p, per token; to look at, without gradient."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


def estimates(log_p: Tensor, log_q: Tensor) -> Estimates:
    """With r = log q(y) - log p(y): k1 = -r (unbiased), k2 = r^2 / 2 (biased, steady), k3 = e^r - 1 - r (both virtues).

    They measure. To learn from sampled tokens take `PolicyGradient` or `K2`: backpropagating k3 descends KL(q || p), and
    k1 nothing at all. Source: Schulman 2020.

    >>> [round(k.item(), 3) for k in estimates(torch.tensor(-1.0), torch.tensor(-1.5))]
    [0.5, 0.125, 0.107]
    """
    r = log_q.detach() - log_p.detach()
    return Estimates(-r, 0.5 * r.square(), torch.expm1(r) - r)


def importance(
    log_p: Tensor, log_sampler: Tensor, cap: float = 2.0, *, mask: Tensor | None = None, per: str = "token"
) -> Tensor:
    """min(exp(log p(y) - log sampler(y)), cap): weights for tokens that another policy (or another engine) sampled.

    Args:
        log_p, log_sampler: log-probabilities of the sampled tokens (sequences, tokens); no gradient flows.
        cap: the largest weight.
        mask: (sequences, tokens), False for padding, which gets weight 0.
        per: "token", or "sequence": each token gets the mean over its sequence.

    Raises:
        RecipeError: ``per`` is neither, or the cap is not above 0.

    >>> importance(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -3.0]]), per="sequence").tolist()
    [[1.5, 1.5]]
    """
    if per not in ("token", "sequence") or not cap > 0:
        raise RecipeError(f"importance weights are per 'token' or 'sequence' with a cap above 0, not {per!r} and {cap}")
    weights = torch.exp(log_p.detach() - log_sampler.detach()).clamp(max=cap)
    kept = torch.ones_like(weights, dtype=torch.bool) if mask is None else mask
    weights = weights.masked_fill(~kept, 0.0)  # not a product: padding may be nan
    if per == "token":
        return weights
    mean = weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
    return mean.expand_as(weights).masked_fill(~kept, 0.0)


def _wanted(parts: Parts) -> Wanted:
    first, weight, bias = (torch.is_grad_enabled() and x is not None and x.requires_grad for x in parts)
    return first, weight, bias


class _Total(torch.autograd.Function):
    """The weighted sum, with its gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, comparison: Comparison, weights: Weights, wanted: Wanted, *parts: Tensor | None) -> Any:
        swept = comparison.sweep(weights, wanted)
        ctx.gradients = swept.gradients
        total = (weights.divergence * swept.values).sum()
        ctx.mark_non_differentiable(swept.values)
        if swept.cross_entropy is not None and weights.label is not None:
            total = total + (weights.label * swept.cross_entropy).sum()
            ctx.mark_non_differentiable(swept.values, swept.cross_entropy)
        return total, swept.values, swept.cross_entropy

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, *rest: Tensor | None) -> Any:
        if ctx.gradients is None:
            raise RecipeError(
                "the gradients of `divergence` are handed out once; `per_token` makes them again each time"
            )
        gradients, ctx.gradients = ctx.gradients, None  # in place and given away: a copy of the matrix less
        return None, None, None, *(None if g is None else g.mul_(upstream) for g in gradients)


class _PerToken(torch.autograd.Function):
    """Values per token; the backward pass goes over the tokens once more with the upstream gradient as weights."""

    @staticmethod
    def forward(ctx: Any, comparison: Comparison, *parts: Tensor | None) -> Tensor:
        ctx.save_for_backward(*parts)  # refuses what was changed in place since
        ctx.comparison = comparison
        return comparison.sweep().values

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor) -> Any:
        ctx.saved_tensors  # noqa: B018
        wanted = ctx.needs_input_grad[1:]
        return None, *ctx.comparison.sweep(Weights(upstream.to(ctx.comparison.dtype)), wanted).gradients


__all__ = [
    "K2", "Cached", "Compared", "Estimates", "ForwardKL", "Head", "JensenShannon", "Kind", "LogProbability",
    "PolicyGradient", "ReverseKL", "SkewKL", "Source", "Top", "TotalVariation", "divergence", "estimates", "importance",
    "log_probabilities", "per_token",
]  # fmt: skip
