"""Matrix products without gradient, by what is fastest on a CPU.

Where logits come from, a chunk of tokens at a time: hidden states and an output matrix, or logits as they are.
"""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError

MANY = 2**14  # numbers made at once, from which on oneDNN pays


HERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # no public name has it


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + c for x (rows, inputs); in float32 on a CPU by oneDNN.

    Where the CPU is AMD's that is 3 to 10 % faster than MKL, and a third for a few rows and a whole vocabulary.

    >>> product(torch.ones(1, 2), torch.ones(3, 2)).tolist()
    [[2.0, 2.0, 2.0]]
    """
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if HERE and plain and len(x) * len(weight) >= MANY and not torch.is_grad_enabled():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return nn.functional.linear(x, weight, bias)


#: Entries of a matrix that are converted at once where it is not in the dtype of the arithmetic.
TILE = 2**22


#: Tokens whose logits `product` makes in two thirds of the time, copying included; of more, a copy is too large.
FEW = 64


class Projection(NamedTuple):
    """Lazy logits: hidden @ matrix.T + bias, computed a block at a time by whatever reads them.

    ``hidden`` (..., width), ``matrix`` (outputs, width), ``bias`` (outputs,); outputs beyond the ``vocabulary`` are
    padding and have no probability. It stands in for a tensor of logits where a loss is ``lazy``.
    """

    hidden: Tensor
    matrix: Tensor
    bias: Tensor | None = None
    vocabulary: int | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the logits, (..., vocabulary)."""
        return torch.Size((*self.hidden.shape[:-1], outputs(self)))

    @property
    def dtype(self) -> torch.dtype:
        return self.hidden.dtype

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def float(self) -> Projection:
        """As it is: what reads it does so in float32."""
        return self

    def detach(self) -> Projection:
        """Without the graph of the hidden states."""
        return self._replace(hidden=self.hidden.detach())

    def new_full(self, size: Sequence[int], value: builtins.float) -> Tensor:
        """A tensor of its dtype, on its device."""
        return self.hidden.new_full(size, value)


class SparseLogProbs(NamedTuple):
    """What a teacher said before: ids (..., k) with their true log-probabilities at the divergence's temperature.

    The rest of the probability is the tail. For one sampled token each, both have the shape of the tokens (...).
    """

    ids: Tensor
    log_probs: Tensor


Logits = Projection | Tensor


def dense(source: Logits) -> Tensor:
    """All logits at once, (..., vocabulary): for a few tokens."""
    if isinstance(source, Tensor):
        return source
    return nn.functional.linear(source.hidden, *source[1:3])[..., : outputs(source)]


def scattered(source: Any, rows: Tensor, shape: torch.Size) -> Any:
    """Logits (rows, T, ...) at these rows of a larger batch of the given shape (all rows, T, ...), 0 elsewhere."""
    if len(rows) == shape[0] and source.shape[: len(shape)] == shape:
        return source
    first = source if isinstance(source, Tensor) else source.hidden
    whole = first.new_zeros(*shape, *first.shape[len(shape) :])
    if len(shape) > 1:
        whole[rows, : first.shape[1]] = first
    else:
        whole[rows] = first
    return whole if isinstance(source, Tensor) else source._replace(hidden=whole)


def blended(parts: Sequence[tuple[builtins.float, Logits]]) -> Logits:
    """The distribution with log q = sum_i w_i log q_i + const: logits are linear in what they are made of."""
    weights, sources = [w for w, _ in parts], [s for _, s in parts]
    heads = [s for s in sources if isinstance(s, Projection)]
    if len(heads) < len(sources) or any(h.bias is not None for h in heads):
        logits = [dense(s) for s in sources]
        return sum((w * z for w, z in zip(weights, logits, strict=True)), torch.zeros_like(logits[0]))
    if all(h.matrix is heads[0].matrix for h in heads):
        zero = torch.zeros_like(heads[0].hidden)
        return heads[0]._replace(hidden=sum((w * h.hidden for w, h in zip(weights, heads, strict=True)), zero))
    hidden = torch.cat([w * h.hidden for w, h in zip(weights, heads, strict=True)], -1)
    return Projection(hidden, torch.cat([h.matrix for h in heads], -1), None, heads[0].vocabulary)


def lowest(dtype: torch.dtype) -> float:
    """Stands for log 0: finite, so that 0 times it is 0."""
    return float(torch.finfo(dtype).min) / 16


def outputs(source: Logits) -> int:
    """How many entries the logits have; of a projection that knows its vocabulary, without padding."""
    if isinstance(source, Tensor):
        return source.shape[-1]
    return len(source.matrix) if source.vocabulary is None else source.vocabulary


def tensors(source: Logits) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Logits, or hidden states, matrix and bias."""
    return (source, None, None) if isinstance(source, Tensor) else source[:3]


def checked(source: Logits, who: str) -> Logits:
    """The source with its tokens in one row, (tokens, width); refuses parts that do not fit each other."""
    if isinstance(source, Tensor):
        if source.dim() < 2:
            raise DataError(f"the {who}'s logits are (tokens, vocabulary), not of shape {tuple(source.shape)}")
        return source.flatten(0, -2)
    hidden, weight, bias = source[:3]
    if hidden.dim() < 2 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[1]:
        raise DataError(
            f"the {who}'s hidden states {tuple(hidden.shape)} do not fit its output matrix {tuple(weight.shape)}: "
            "(tokens, width) and (vocabulary, width)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise DataError(f"the {who}'s bias {tuple(bias.shape)} does not fit its {len(weight)} outputs")
    return source._replace(hidden=hidden.flatten(0, -2))


def picked(source: Logits, keep: Tensor) -> Logits:
    """The same for some tokens; gradients find their way back."""
    return source[keep] if isinstance(source, Tensor) else source._replace(hidden=source.hidden[keep])


def read(source: Logits, rows: slice, out: Tensor) -> Tensor:
    """Write the logits of some tokens into ``out`` (tokens, vocabulary); what lies beyond its width is not computed."""
    vocabulary = out.shape[1]
    if isinstance(source, Tensor):
        return out.copy_(source[rows, :vocabulary]).clamp_(min=lowest(out.dtype))  # where -inf stands for padding
    hidden, weight = source.hidden[rows], source.matrix[:vocabulary]
    if halved(hidden, weight, out):
        torch.mm(hidden, weight.t(), out_dtype=out.dtype, out=out)  # exact products, summed in float32
    elif weight.is_cpu and weight.dtype == out.dtype and len(out) <= FEW and len(out) * len(weight) >= MANY:
        out.copy_(product(hidden.to(out.dtype), weight))
    elif weight.dtype == out.dtype:
        torch.mm(hidden.to(out.dtype), weight.t(), out=out)
    else:
        hidden = hidden.to(out.dtype)
        for tile in tiles(weight):
            out[:, tile] = hidden @ weight[tile].to(out.dtype).t()
    if source.bias is not None:
        out.add_(source.bias[:vocabulary]).clamp_(min=lowest(out.dtype))
    return out


def halved(hidden: Tensor, weight: Tensor, arithmetic: Tensor) -> bool:
    """Can a GPU multiply hidden states and matrix as they are, in bfloat16, though the arithmetic is float32?"""
    dtypes = (hidden.dtype, weight.dtype, arithmetic.dtype)
    return weight.is_cuda and dtypes == (torch.bfloat16, torch.bfloat16, torch.float32)


def halves(g: Tensor) -> tuple[Tensor, Tensor]:
    """Two bfloat16 tensors whose sum is ``g`` to 2^-17 of each entry; ``g`` is overwritten.

    >>> high, low = halves(torch.tensor([1 / 3]))
    >>> round(high.double().add(low).item(), 5), round(high.item(), 5)
    (0.33333, 0.33398)
    """
    high = g.to(torch.bfloat16)
    return high, g.sub_(high).to(torch.bfloat16)


def tiles(weight: Tensor) -> list[slice]:
    """Rows of the matrix, in pieces."""
    step = max(1, TILE // weight.shape[1])
    return [slice(start, min(start + step, len(weight))) for start in range(0, len(weight), step)]


class Gradients:
    """Gradients of a source's tensors, summed chunk by chunk in the dtype of the arithmetic."""

    def __init__(self, source: Logits, wanted: tuple[bool, bool, bool], vocabulary: int, dtype: torch.dtype) -> None:
        self.source, self.vocabulary = source, vocabulary
        first, weight, bias = tensors(source)
        self.first = torch.zeros_like(first) if wanted[0] else None
        self.weight = torch.zeros_like(weight, dtype=dtype) if weight is not None and wanted[1] else None
        self.bias = torch.zeros_like(bias, dtype=dtype) if bias is not None and wanted[2] else None

    def add(self, rows: slice, g: Tensor) -> None:
        """Take the gradient of the logits of some tokens, which may be overwritten."""
        if isinstance(self.source, Tensor):
            if self.first is not None:
                self.first[rows, : self.vocabulary] = g
            return
        hidden, weight = self.source.hidden[rows], self.source.matrix[: self.vocabulary]
        if self.bias is not None:
            self.bias[: self.vocabulary].add_(g.sum(0))
        if halved(hidden, weight, g):
            parts = halves(g)
            if self.first is not None:
                self.first[rows] = sum(torch.mm(part, weight, out_dtype=g.dtype) for part in parts)
            if self.weight is not None:
                for part in parts:
                    self.weight[: self.vocabulary].add_(torch.mm(part.t(), hidden, out_dtype=g.dtype))
            return
        if self.first is not None:
            self.first[rows] = _back(g, weight)
        if self.weight is not None:
            self.weight[: self.vocabulary].addmm_(g.t(), hidden.to(g.dtype))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """In the dtypes of the source."""
        both = zip((self.first, self.weight, self.bias), tensors(self.source), strict=True)
        first, weight, bias = (None if g is None or of is None else g.to(of.dtype) for g, of in both)
        return first, weight, bias


def _back(g: Tensor, weight: Tensor) -> Tensor:
    if weight.dtype == g.dtype:
        return g @ weight
    total = g.new_zeros(len(g), weight.shape[1])
    for tile in tiles(weight):
        total.addmm_(g[:, tile], weight[tile].to(g.dtype))
    return total
