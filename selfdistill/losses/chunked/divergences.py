"""Divergences of a student from its teacher, token by token, without holding all logits at once.

`divergence` makes the gradients of sum_i w_i D_i while it goes over the tokens, so weights must be known beforehand.
``total`` is that sum and differentiable; ``values`` are for logs and statistics and carry no gradient. With
``recompute`` the values are differentiable too, whatever is made of them afterwards: the backward pass computes the
logits again with the true upstream gradient, six matrix products instead of four. Both are exact, and flat in memory.
No gradient flows to a teacher. Arithmetic is float32 whatever comes in, float64 where an input is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...core.logits import Logits, Projection, SparseLogProbs, checked, outputs, picked, tensors
from ...core.parts import Loss
from ...core.targets import Target
from ...errors import DataError, RecipeError
from .definitions import (
    K2,
    Divergence,
    ForwardKL,
    JensenShannon,
    LogProbability,
    PartialKL,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    TotalVariation,
    Weights,
)
from .sweep import TokenComparison, TopK, Truncated

__all__ = [
    "K2",
    "Compared",
    "Divergence",
    "Estimates",
    "ForwardKL",
    "JensenShannon",
    "LogProbability",
    "Logits",
    "PartialKL",
    "Projection",
    "ReverseKL",
    "SampledReverseKL",
    "SkewKL",
    "SparseLogProbs",
    "TokenCrossEntropy",
    "TokenDivergence",
    "TopK",
    "TotalVariation",
    "Truncated",
    "divergence",
    "entropies",
    "estimates",
    "importance",
    "log_probabilities",
]

#: A log-probability may be above 0 by what bfloat16 rounds of logits of a few tens.
PROBABLE = 0.1


class MaskedComparison(NamedTuple):
    """A comparison, and the way from its tokens back to the shape of all."""

    comparison: TokenComparison
    shape: torch.Size
    keep: Tensor | None

    def weight(self, weight: Tensor | float, name: str, differentiable: bool) -> Tensor:
        """A weight for every kept token."""
        like = tensors(self.comparison.student)[0]
        weights = torch.as_tensor(weight, dtype=self.comparison.dtype, device=like.device)
        if weights.requires_grad and not differentiable:
            raise RecipeError(f"{name} is a constant of a divergence: detach it, or set recompute=True")
        try:
            weights = weights.expand(self.shape).reshape(-1)
        except RuntimeError:
            raise DataError(f"{name} {tuple(weights.shape)} does not fit tokens {tuple(self.shape)}") from None
        return weights if self.keep is None else weights[self.keep]

    def back(self, values: Tensor) -> Tensor:
        """Values of the kept tokens at their places, 0 elsewhere."""
        if self.keep is not None:
            values = values.new_zeros(self.shape.numel()).index_put((self.keep,), values)
        return values.view(self.shape)


def matched(
    student: Logits,
    teacher: Logits | SparseLogProbs,
    kind: Divergence,
    support: TopK | Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    vocabulary: int | None,
    chunk: int | None,
) -> MaskedComparison:
    """Check all against each other, and leave out the tokens that the mask drops."""
    shape, student = tensors(student)[0].shape[:-1], checked(student, "student")
    size = _vocabulary(student, teacher, vocabulary)
    _check(kind, teacher, support, size, chunk)
    if isinstance(teacher, SparseLogProbs):
        ids = _ids(teacher.ids, shape, size, kind)
        _fits("cached log-probabilities", teacher.log_probs, teacher.ids.shape)
        if bool((teacher.log_probs > PROBABLE).any()):
            raise DataError("cached log-probabilities lie above 0; are they probabilities or logits?")
        teacher = SparseLogProbs(ids, teacher.log_probs.reshape(ids.shape))
    elif len(tensors(teacher := checked(teacher, "teacher"))[0]) != shape.numel():
        there = len(tensors(teacher)[0])
        raise DataError(f"the student has {shape.numel()} tokens, the teacher {there}; they are compared in pairs")
    support = _ids(support, shape, size, kind) if isinstance(support, Tensor) else support
    keep = None
    if mask is not None:
        _fits("mask", mask, shape)
        keep = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
    if labels is not None:
        _fits("labels", labels, shape)
        labels = labels.flatten()
    if keep is not None:
        student = picked(student, keep)
        teacher = (
            SparseLogProbs(*(x[keep] for x in teacher))
            if isinstance(teacher, SparseLogProbs)
            else picked(teacher, keep)
        )
        support = support[keep] if isinstance(support, Tensor) else support
        labels = None if labels is None else labels[keep]
    if labels is not None:
        _within("labels (mask tokens without one)", labels, size)
    floats = [*tensors(student), *((teacher.log_probs,) if isinstance(teacher, SparseLogProbs) else tensors(teacher))]
    dtype = torch.float64 if any(x is not None and x.dtype == torch.float64 for x in floats) else torch.float32
    return MaskedComparison(TokenComparison(kind, student, teacher, support, labels, size, dtype, chunk), shape, keep)


def _vocabulary(student: Logits, teacher: Logits | SparseLogProbs, vocabulary: int | None) -> int:
    sizes = [outputs(student)] + ([] if isinstance(teacher, SparseLogProbs) else [outputs(teacher)])
    if vocabulary is None and len(set(sizes)) > 1:
        raise DataError(f"the student has {sizes[0]} outputs, the teacher {sizes[1]}: say vocabulary=, the real ones")
    if vocabulary is not None and not 1 <= vocabulary <= min(sizes):
        raise DataError(f"vocabulary={vocabulary} is not within the {min(sizes)} outputs that there are")
    return vocabulary or sizes[0]


def _check(kind: Divergence, teacher: object, support: TopK | Tensor | None, size: int, chunk: int | None) -> None:
    if isinstance(teacher, SparseLogProbs) and support is not None:
        raise RecipeError("a SparseLogProbs teacher brings its own ids; leave out support=")
    if kind.sampled and not isinstance(teacher, SparseLogProbs) and not isinstance(support, Tensor):
        raise RecipeError(f"{type(kind).__name__} reads sampled tokens: support= takes their ids")
    if isinstance(support, TopK) and support.of not in ("teacher", "student", "union"):
        raise RecipeError(f"TopK is of 'teacher', 'student' or 'union', not {support.of!r}")
    if isinstance(support, TopK) and not 1 <= support.k <= size:
        raise RecipeError(f"{support} does not fit a vocabulary of {size}")
    if chunk is not None and chunk < 1:
        raise RecipeError(f"chunk counts tokens, from 1 on, not {chunk}")


def _fits(name: str, tensor: Tensor, shape: torch.Size) -> None:
    if tensor.shape != shape:
        raise DataError(f"{name} {tuple(tensor.shape)} do not fit {tuple(shape)}")
    if name == "mask" and tensor.dtype != torch.bool:
        raise DataError(f"a mask is True or False for each token, not {tensor.dtype}")


def _ids(ids: Tensor, shape: torch.Size, size: int, kind: Divergence) -> Tensor:
    """Ids (tokens, k) that are there and do not repeat; one each for a sampled kind."""
    columns = ids.unsqueeze(-1) if kind.sampled else ids
    if columns.dim() != len(shape) + 1 or columns.shape[:-1] != shape:
        raise DataError(f"ids {tuple(ids.shape)} do not fit tokens {tuple(shape)}{'' if kind.sampled else ', k each'}")
    columns = columns.flatten(0, -2)
    _within("ids", columns, size)
    ordered = columns.sort(-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise DataError("the ids of a token repeat; their probability would count twice")
    return columns


def _within(name: str, ids: Tensor, size: int) -> None:
    low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= size or ids.is_floating_point():
        raise DataError(f"{name} are whole numbers from 0 to {size - 1}; here {ids.dtype} from {low} to {high}")


class Compared(NamedTuple):
    """The differentiable sum; what each token gave it, 0 where masked; and how many tokens were not masked."""

    total: Tensor
    values: Tensor
    cross_entropy: Tensor | None
    tokens: int

    @property
    def mean(self) -> Tensor:
        """The total over the number of tokens that the mask kept; 0 if it kept none."""
        return self.total / max(1, self.tokens)


def divergence(
    student: Logits,
    teacher: Logits | SparseLogProbs,
    kind: Divergence,
    *,
    support: TopK | Tensor | None = None,
    weight: Tensor | float = 1.0,
    mask: Tensor | None = None,
    labels: Tensor | None = None,
    label_weight: Tensor | float = 1.0,
    vocabulary: int | None = None,
    chunk: int | None = None,
    recompute: bool = False,
) -> Compared:
    """sum_i w_i D(q_i, p_i), and with labels + sum_i v_i CE(y_i, p_i), from one computation of the logits.

    Args:
        student, teacher: a `Projection` or logits, with the same number of tokens (...); widths may differ. The
            teacher may be `SparseLogProbs`.
        kind: which divergence D, its temperature and clip. The cross-entropy is at temperature 1.
        support: None for the full vocabulary, `TopK`, or ids (..., k) that do not repeat; all other ids are one bucket.
            For a sampled kind the ids (...) of the sampled tokens.
        weight, label_weight: w and v, constants: (...), what broadcasts to it, or a number.
        mask: (...), False drops a token before anything is computed for it.
        labels: ids (...) for the cross-entropy.
        vocabulary: how many outputs are real; padding beyond it has no probability on either side.
        chunk: tokens whose logits are held at once [default: 2^24 logits, 2^27 on a GPU].
        recompute: make the gradients in the backward pass; values, cross-entropies and weights are differentiable.

    Raises:
        DataError: shapes or ids do not fit each other.
        RecipeError: a setting is out of range, or the support does not fit the kind.

    >>> head = Projection(torch.randn(5, 8), torch.randn(11, 8).requires_grad_())
    >>> result = divergence(head, torch.randn(5, 11), JensenShannon(0.5), support=TopK(3))
    >>> result.mean.backward()
    >>> result.values.shape, head.matrix.grad.shape
    (torch.Size([5]), torch.Size([11, 8]))
    """
    task = matched(student, teacher, kind, support, mask, labels, vocabulary, chunk)
    w = task.weight(weight, "weight", recompute)
    v = None if labels is None else task.weight(label_weight, "label_weight", recompute)
    parts = tensors(task.comparison.student)
    if recompute:
        values, entropies = _Values.apply(task.comparison, *parts)  # type: ignore[no-untyped-call]
        total = (w * values).sum() + (0.0 if v is None else (v * entropies).sum())
    else:
        settings = (task.comparison, Weights(w, v), torch.is_grad_enabled())
        total, values, entropies = _Total.apply(*settings, *parts)  # type: ignore[no-untyped-call]
    return Compared(total, task.back(values), None if v is None else task.back(entropies), len(values))


class _Total(torch.autograd.Function):
    """The weighted sum, with its gradients made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, comparison: TokenComparison, weights: Weights, learning: bool, *parts: Tensor | None) -> Any:
        needs_gradient = ctx.needs_input_grad[3:] if learning else (False,) * 3
        values, entropies, ctx.gradients = comparison.sweep(weights, needs_gradient)
        total = (weights.divergence * values).sum()
        if entropies is not None and weights.label is not None:
            total += (weights.label * entropies).sum()
        ctx.mark_non_differentiable(*(x for x in (values, entropies) if x is not None))
        return total, values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *rest: Tensor | None) -> Any:
        if ctx.gradients is None:
            raise RecipeError("the gradients of a divergence are handed out once; recompute=True makes them every time")
        gradients, ctx.gradients = ctx.gradients, None  # given away, so that no copy of the matrix is made
        return None, None, None, *(None if g is None else g.mul_(upstream) for g in gradients)


class _Values(torch.autograd.Function):
    """Values per token; the backward pass goes over the tokens again, with the upstream gradient as weights."""

    @staticmethod
    def forward(ctx: Any, comparison: TokenComparison, *parts: Tensor | None) -> Any:
        ctx.comparison = comparison
        ctx.save_for_backward(*parts)
        values, entropies, _ = comparison.sweep()
        return values, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_label: Tensor | None) -> Any:
        assert ctx.saved_tensors  # asking for them refuses what was changed in place since
        weights = Weights(by_value, by_label if ctx.comparison.labels is not None else None)
        return None, *ctx.comparison.sweep(weights, ctx.needs_input_grad[1:]).gradients


def log_probabilities(student: Logits, ids: Tensor, *, temperature: float = 1.0, **options: Any) -> Tensor:
    """log p(y_i) of given ids (...), differentiable, 0 where masked; ``mask``, ``vocabulary``, ``chunk`` as above.

    >>> log_probabilities(torch.zeros(2, 4), torch.tensor([0, 3])).exp().tolist()
    [0.25, 0.25]
    """
    nothing = SparseLogProbs(ids, torch.zeros(ids.shape, device=ids.device))
    return divergence(student, nothing, LogProbability(temperature=temperature), recompute=True, **options).values


@torch.no_grad()
def entropies(source: Logits, mask: Tensor | None = None) -> Tensor:
    """-sum_v p_v log p_v of every token (...) in nats, from log V - KL(p || uniform): flat in memory, no gradient.

    >>> [round(h, 4) for h in entropies(torch.zeros(2, 4)).tolist()]
    [1.3863, 1.3863]
    """
    first, vocabulary = tensors(source)[0], outputs(source)
    uniform = Projection(first.new_zeros(*first.shape[:-1], 1), first.new_zeros(vocabulary, 1))
    return math.log(vocabulary) - divergence(uniform, source, ForwardKL(), mask=mask, vocabulary=vocabulary).values


@dataclass(frozen=True)
class TokenDivergence(Loss):
    """D(q_t, p_t) of each token, q_t the teacher and p_t the student, in one sweep with flat memory.

    Args:
        divergence: which divergence, its temperature and clip.
        support: None for the full vocabulary, or the ``TopK`` k ids of a side (k is an upper bound).
    """

    divergence: Divergence = ForwardKL()
    support: TopK | None = None
    target_spaces: ClassVar[frozenset[str] | None] = frozenset({"logits"})
    student_spaces: ClassVar[frozenset[str] | None] = frozenset({"logits"})
    lazy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.divergence.sampled:
            raise RecipeError(f"{self.divergence} reads sampled tokens; TeacherReturns learns from those")

    def total(self, student: Logits, target: Target, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        size, (mask, weight) = min(outputs(student), outputs(target.value)), _weighed(student, target, weight)
        support = self.support and replace(self.support, k=min(self.support.k, size))
        result = divergence(student, target.value, self.divergence, support=support, weight=weight, mask=mask)
        return result.total, result.values


@dataclass(frozen=True)
class TokenCrossEntropy(Loss):
    """-log p(y_t) of each token y_t of a completion: what supervised fine-tuning minimises."""

    target_spaces: ClassVar[frozenset[str] | None] = frozenset({"classes"})
    student_spaces: ClassVar[frozenset[str] | None] = frozenset({"logits"})
    lazy: ClassVar[bool] = True

    def total(self, student: Logits, target: Target, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        mask, weight = _weighed(student, target, weight)
        values = -log_probabilities(student, target.value, mask=mask)
        return (weight[mask] * values[mask]).sum(), values.detach()


def _weighed(student: Logits, target: Target, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which tokens count, and the weight of each, (rows, T)."""
    mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    mask = mask if target.valid is None else target.valid
    weight = mask.float() if weight is None else weight
    return mask & (weight != 0), weight


class Estimates(NamedTuple):
    """Three estimates of KL(p || q), per token sampled from p; to look at, without gradient."""

    k1: Tensor
    k2: Tensor
    k3: Tensor


def estimates(log_p: Tensor, log_q: Tensor) -> Estimates:
    """With r = log q(y) - log p(y): k1 = -r and k3 = e^r - 1 - r are unbiased, k2 = r^2 / 2 is not but varies little.

    They measure. To learn from sampled tokens take `SampledReverseKL` or `K2`: backpropagated, k3 descends the *other*
    divergence, KL(q || p), and k1 none at all, in expectation. Source: Schulman 2020.

    >>> [round(k.item(), 3) for k in estimates(torch.tensor(-1.0), torch.tensor(-1.5))]
    [0.5, 0.125, 0.107]
    """
    _same("log_q", log_q, log_p)
    r = log_q.detach() - log_p.detach()
    return Estimates(-r, 0.5 * r.square(), torch.expm1(r) - r)


def importance(
    log_p: Tensor, log_sampler: Tensor, cap: float = 2.0, *, mask: Tensor | None = None, per: str = "token"
) -> Tensor:
    """min(exp(log p(y) - log sampler(y)), cap), constants: weights for tokens that another policy or engine sampled.

    Args:
        log_p, log_sampler: log-probabilities of the sampled tokens (sequences, tokens).
        cap: the largest weight.
        mask: (sequences, tokens), False for padding, which gets weight 0.
        per: "token", or "sequence": each token gets the mean over its sequence.

    Raises:
        RecipeError: ``per`` is neither, or the cap is not above 0.
        DataError: shapes differ.

    >>> importance(torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -3.0]]), per="sequence").tolist()
    [[1.5, 1.5]]
    """
    if per not in ("token", "sequence") or not cap > 0:
        raise RecipeError(f"importance weights are per 'token' or 'sequence' with a cap above 0, not {per!r} and {cap}")
    kept = torch.ones_like(log_p, dtype=torch.bool) if mask is None else mask
    _same("log_sampler", log_sampler, log_p)
    _same("mask", kept, log_p)
    weights = torch.exp(log_p.detach() - log_sampler.detach()).clamp(max=cap)
    weights = weights.masked_fill(~kept, 0.0)  # not a product: padding may be nan
    if per == "sequence":
        mean = weights.sum(-1, keepdim=True) / kept.sum(-1, keepdim=True).clamp(min=1)
        weights = mean.expand_as(weights).masked_fill(~kept, 0.0)
    return weights


def _same(name: str, tensor: Tensor, log_p: Tensor) -> None:
    if tensor.shape != log_p.shape:
        raise DataError(f"{name} {tuple(tensor.shape)} does not fit log_p {tuple(log_p.shape)}")
