"""The arithmetic of a block of logits: values per token, and the gradient of their weighted sum in the logits' place.

On a GPU, where Triton and a C compiler are, a kernel takes its place for the usual divergences and the same code runs
compiled for the others: what are a dozen passes over the logits one by one are then few.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from .definitions import Divergence, Swept, Weights

Entries = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]  # log p, p, teacher -> values, gradient


def whole(kind: Divergence, z: Tensor, t: Tensor, weights: Weights | None, label: Tensor | None) -> Swept:
    """A block over the full vocabulary; ``z`` and ``t`` are overwritten."""

    def entries(lp: Tensor, p: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
        assert t is not None
        lq = torch.log_softmax(t, -1)
        q = lq.exp()
        d, g = kind.entries(lp, p, q, lq.sub_(lp))
        values, total = d.sum(-1), g.sum(-1, keepdim=True)
        return values, g.addcmul_(p, total, value=-1.0)

    return block(kind, z, t, weights, label, entries)


def block(
    kind: Divergence, z: Tensor, t: Tensor | None, weights: Weights | None, label: Tensor | None, entries: Entries
) -> Swept:
    """Values and cross-entropies; where weights are given, ``z`` becomes the gradient of their weighted sum."""
    temperature, entropy = kind.temperature, None
    plain = lp = torch.log_softmax(z, -1)
    if temperature != 1.0:
        lp = torch.log_softmax(z / temperature, -1)
        t = None if t is None else t.div_(temperature)
    if label is not None:
        entropy = -plain.gather(1, label[:, None]).squeeze(1)
    p = lp.exp()
    values, g = entries(lp, p, t)
    if not kind.signed:
        values.clamp_(min=0.0)
    if weights is not None:
        torch.mul(g, weights.divergence[:, None] / temperature, out=z)
        if label is not None and weights.label is not None:
            w = weights.label[:, None]
            z.addcmul_(p if temperature == 1.0 else plain.exp_(), w).scatter_add_(1, label[:, None], -w)
    return Swept(values, entropy)


def fused(kind: Divergence, z: Tensor, t: Tensor, weights: Weights | None, label: Tensor | None) -> Swept:
    """`whole` by the kernel for it, or compiled; where neither works, said once, as it is written."""
    if _broken or not _triton():
        return whole(kind, z, t, weights, label)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the compiler advises its own users
            return _fast(kind, z, label)(kind, z, t, weights, label)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError) as error:  # of the compiler or of Triton, before anything was overwritten
        _broken.append(str(error).splitlines()[0])
        warnings.warn(f"divergences run uncompiled, which is slower: the compiler says {_broken[0]}", stacklevel=2)
        return whole(kind, z, t, weights, label)


_broken: list[str] = []  # what the compiler said, once it has failed


@functools.cache
def _triton() -> bool:
    return find_spec("triton") is not None


def _fast(kind: Divergence, z: Tensor, label: Tensor | None) -> Callable[..., Swept]:
    from . import triton_kernel

    return triton_kernel.rows if triton_kernel.covers(kind, z, label) else compiled()


@functools.cache
def compiled() -> Callable[..., Swept]:
    """`whole`, compiled at its first call."""
    return torch.compile(whole, dynamic=True)
