"""One pass over the tokens: values per token and, made on the way, the gradients of their weighted sum.

Logits exist for one chunk of tokens at a time. Within it the arithmetic goes over a few tokens at a time, so that its
many short steps stay in the processor's cache; the gradient of the logits then overwrites them, and two matrix
products take it on to hidden states and output matrix. So memory is the matrix's gradient and two chunks of logits,
however many tokens there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.logits import Gradients, Logits, SparseLogProbs, lowest, read, tensors
from .blocks import block, fused, whole
from .definitions import Divergence, Swept, Weights

#: Logits of a chunk, and logits that the arithmetic takes at once; a GPU takes whole chunks.
CHUNK, CHUNK_ON_GPU, BLOCK = 2**24, 2**27, 2**18

Wanted = tuple[bool, bool, bool]  # gradients of hidden states (or logits), matrix, bias


@dataclass(frozen=True)
class TopK:
    """The k most probable ids of a side ("teacher", "student" or "union"), and all others as one bucket."""

    k: int
    of: str = "teacher"


@dataclass(frozen=True)
class Truncated(TopK):
    """The k most probable ids of a side alone: what lies outside of them is left out.

    Args:
        renormalised: both sides sum to 1 over these ids, as a divergence needs; otherwise they keep their
            probabilities, which `PartialKL` compares.

    Source: teacher top-K local support matching, arXiv 2603.25562, 2026, eq. 7 and 8.

    >>> Truncated(32)
    Truncated(k=32, of='teacher', renormalised=True)
    """

    renormalised: bool = True


@dataclass(frozen=True)
class TokenComparison:
    """A student, a teacher, and how far apart they are; all checked, tokens in one row."""

    kind: Divergence
    student: Logits
    teacher: Logits | SparseLogProbs
    support: TopK | Tensor | None
    labels: Tensor | None
    vocabulary: int
    dtype: torch.dtype
    chunk: int | None

    @torch.no_grad()
    def sweep(self, weights: Weights | None = None, needs_gradient: Wanted = (False, False, False)) -> Swept:
        """Values, and gradients of what is wanted where weights are given."""
        first = tensors(self.student)[0]
        tokens, device = len(first), first.device
        chunk = self.chunk or max(1, (CHUNK_ON_GPU if device.type == "cuda" else CHUNK) // self.vocabulary)
        few_at_once = chunk if device.type == "cuda" else max(1, BLOCK // self.vocabulary)
        values = torch.zeros(tokens, dtype=self.dtype, device=device)
        entropies = None if self.labels is None else torch.zeros_like(values)
        room = [torch.empty(min(chunk, tokens), self.vocabulary, dtype=self.dtype, device=device) for _ in range(2)]
        learns = weights and any(needs_gradient)
        grads = Gradients(self.student, needs_gradient, self.vocabulary, self.dtype) if learns else None
        with torch.autocast(device.type, enabled=False):
            for start in range(0, tokens, chunk):
                rows = slice(start, min(start + chunk, tokens))
                z = read(self.student, rows, room[0][: rows.stop - start])
                t = None if isinstance(self.teacher, SparseLogProbs) else read(self.teacher, rows, room[1][: len(z)])
                for a in range(start, rows.stop, few_at_once):
                    few = slice(a, min(a + few_at_once, rows.stop))
                    at = slice(a - start, few.stop - start)
                    part = self._block(z[at], None if t is None else t[at], few, weights if grads else None)
                    values[few] = part.values
                    if entropies is not None and part.cross_entropy is not None:
                        entropies[few] = part.cross_entropy
                if grads:
                    grads.add(rows, z)
        return Swept(values, entropies, grads.result() if grads else (None, None, None))

    def _block(self, z: Tensor, t: Tensor | None, rows: slice, weights: Weights | None) -> Swept:
        """Values of a few tokens from their logits; ``z`` becomes the gradient where weights are given."""
        few = None if weights is None else weights.of(rows)
        label = None if self.labels is None else self.labels[rows]
        if self.support is None and t is not None:
            return (fused if z.is_cuda else whole)(self.kind, z, t, few, label)
        return block(self.kind, z, t, few, label, lambda lp, p, far: self._some(lp, p, far, rows))

    def _some(self, lp: Tensor, p: Tensor, t: Tensor | None, rows: slice) -> tuple[Tensor, Tensor]:
        """The same over some ids and, for distributions, the tail as one bucket."""
        truncated = isinstance(self.support, Truncated)
        alone = isinstance(self.support, Truncated) and self.support.renormalised  # the other ids do not move
        tail = not (self.kind.sampled or truncated)
        if isinstance(self.teacher, SparseLogProbs):
            ids, lq = self.teacher.ids[rows], self.teacher.log_probs[rows].to(lp.dtype).clamp(min=lowest(lp.dtype))
            tail = tail and ids.shape[1] < self.vocabulary
            rest = _log_rest(lq) if tail else lq
        else:
            assert t is not None
            every = torch.log_softmax(t, -1)
            ids = self._ids(lp, every, rows)
            lq = every.gather(1, ids)
            rest = _log(every.exp_().scatter_(1, ids, 0.0).sum(-1, keepdim=True)) if tail else lq
        outside = p.scatter(1, ids, 0.0)
        mass = outside.sum(-1, keepdim=True)
        lp = lp.gather(1, ids)
        if isinstance(self.support, TopK) and self.support.of == "union":
            again = torch.zeros_like(ids, dtype=torch.bool)
            again[:, 1:] = ids[:, 1:] == ids[:, :-1]  # ids are sorted; what both sides chose counts once
            lp, lq = (side.masked_fill(again, lowest(lp.dtype)) for side in (lp, lq))
        if tail:
            lp, lq = torch.cat([lp, _log(mass)], 1), torch.cat([lq, rest], 1)
        if alone:
            lp, lq = lp.log_softmax(-1), lq.log_softmax(-1)
        inside = lp.exp()
        d, g = self.kind.entries(lp, inside, lq.exp(), lq - lp)
        values, total = d.sum(-1), g.sum(-1, keepdim=True)
        k = ids.shape[1]
        spread = g[:, k:] / mass.clamp(min=torch.finfo(mass.dtype).tiny) - total if tail else -total * (not alone)
        return values, outside.mul_(spread).scatter_add_(1, ids, torch.addcmul(g, inside, total, value=-1.0)[:, :k])

    def _ids(self, lp: Tensor, lq: Tensor, rows: slice) -> Tensor:
        if isinstance(self.support, Tensor):
            return self.support[rows]
        assert self.support is not None
        sides = {"student": (lp,), "teacher": (lq,), "union": (lp, lq)}[self.support.of]
        chosen = [side.topk(self.support.k, -1).indices for side in sides]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen, 1).sort(-1).values


def _log(mass: Tensor) -> Tensor:
    """log of what lies outside; an empty rest is as good as the least number, on both sides."""
    return mass.clamp(min=torch.finfo(mass.dtype).tiny).log()


def _log_rest(lq: Tensor) -> Tensor:
    """log(1 - sum exp lq), at least the rounding of that sum: log(-expm1(x)) near 0, log1p(-exp(x)) elsewhere."""
    x = lq.logsumexp(-1, keepdim=True).clamp(max=-torch.finfo(lq.dtype).eps)
    return torch.where(x > -math.log(2.0), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
