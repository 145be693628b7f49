"""One Triton kernel for KL, reverse KL and JS over the full vocabulary: a program for each token's row of logits.

Both normalisations take one pass over the row; the value, and the sum that the gradient of two of them needs, one more;
the gradient, written in the logits' place, the last. `kinds` says what is summed; where it has in-place steps in the
order that keeps digits, this has the same terms in the same form. Measured by
``python -m benchmarks.gpu_divergence`` beside what
the compiler makes of `blocks.whole`, which remains for all else: clips, labels, other divergences.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .definitions import Divergence, ForwardKL, JensenShannon, ReverseKL, Swept, Weights

BLOCK = 4096  # logits at once


MOST = 0.9 * math.log(torch.finfo(torch.float32).max)  # a log-ratio above it is cut, as in `kinds`


_FORWARD, _REVERSE, _JS = 0, 1, 2


def covers(kind: Divergence, z: Tensor, label: Tensor | None) -> bool:
    """Is the kernel for this?"""
    known = type(kind) in (ForwardKL, ReverseKL, JensenShannon) and getattr(kind, "clip", None) is None
    return known and label is None and z.dtype == torch.float32 and z.stride(-1) == 1


def rows(kind: Divergence, z: Tensor, t: Tensor, weights: Weights | None, label: Tensor | None = None) -> Swept:
    """As `blocks.whole`."""
    beta = kind.beta if isinstance(kind, JensenShannon) else float(isinstance(kind, ReverseKL))
    what = _JS if 0.0 < beta < 1.0 else _REVERSE if beta else _FORWARD
    values = torch.empty(len(z), dtype=z.dtype, device=z.device)
    scale = values if weights is None else weights.divergence.contiguous()
    learning = weights is not None
    _row[len(z),](
        z, t, scale, values, z.stride(0), t.stride(0), 1.0 / kind.temperature, beta, z.shape[1], what, beta > 0.5,
        learning, min(BLOCK, triton.next_power_of_2(z.shape[1])), MOST, num_warps=16,
    )  # fmt: skip
    return Swept(values.clamp_(min=0.0), None)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _expm1(u):  # type: ignore[no-untyped-def]
    """exp(u) - 1, by its series where that would cancel."""
    s = 1.0 + u / 8.0 * (1.0 + u / 9.0 * (1.0 + u / 10.0))
    s = 1.0 + u / 4.0 * (1.0 + u / 5.0 * (1.0 + u / 6.0 * (1.0 + u / 7.0 * s)))
    return tl.where(tl.abs(u) < 0.7, u * (1.0 + u / 2.0 * (1.0 + u / 3.0 * s)), tl.exp(u) - 1.0)


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _log1p(x):  # type: ignore[no-untyped-def]
    """log(1 + x), near 0 by the series of 2 artanh(x / (2 + x))."""
    s = x / (2.0 + x)
    r = s * s
    series = 1.0 + r * (1.0 / 3.0 + r * (1.0 / 5.0 + r * (1.0 / 7.0 + r * (1.0 / 9.0 + r * (1.0 / 11.0 + r / 13.0)))))
    return tl.where(tl.abs(x) < 0.4, 2.0 * s * series, tl.log(1.0 + x))


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _entries(lp, lq, beta, KIND: tl.constexpr, HIGH: tl.constexpr, CAP: tl.constexpr):  # type: ignore[no-untyped-def]
    """p, d and g of some entries."""
    p, q, u = tl.exp(lp), tl.exp(lq), lq - lp
    if KIND == 0:
        e = _expm1(u)
        near = tl.abs(u) < 0.7
        g = tl.where(near, -p * e, p - q)
        d = tl.where(near, p * ((1.0 + e) * u - e), q * u + g)
    elif KIND == 1:
        g = -u * p
        d = tl.where(tl.abs(u) < 0.7, p * (_expm1(u) - u), q - p + g)
    else:
        if HIGH:  # read from q's side, as in `kinds`
            u = tl.maximum(u, -CAP)
            to_q = _log1p((1.0 - beta) * _expm1(-u))
            to_p = to_q + u
        else:
            u = tl.minimum(u, CAP)
            to_p = _log1p(beta * _expm1(u))
            to_q = to_p - u
        g = -to_p * p / beta
        d = g - to_q * q / (1.0 - beta)
    return p, d, g


@triton.jit  # type: ignore[untyped-decorator,unused-ignore]
def _row(  # type: ignore[no-untyped-def]
    z_of, t_of, weight_of, value_of, z_step, t_step, over, beta, V: tl.constexpr, KIND: tl.constexpr,
    HIGH: tl.constexpr, LEARNING: tl.constexpr, BLOCK: tl.constexpr, CAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    z_of += row * z_step
    t_of += row * t_step
    high, sum_, high_t, sum_t = -1e38, 0.0, -1e38, 0.0
    for start in range(0, V, BLOCK):
        at = start + tl.arange(0, BLOCK)
        z = tl.load(z_of + at, mask=at < V, other=-1e38) * over
        t = tl.load(t_of + at, mask=at < V, other=-1e38) * over
        new, new_t = tl.maximum(high, tl.max(z, 0)), tl.maximum(high_t, tl.max(t, 0))
        sum_ = sum_ * tl.exp(high - new) + tl.sum(tl.where(at < V, tl.exp(z - new), 0.0), 0)
        sum_t = sum_t * tl.exp(high_t - new_t) + tl.sum(tl.where(at < V, tl.exp(t - new_t), 0.0), 0)
        high, high_t = new, new_t
    norm, norm_t, total, value = high + tl.log(sum_), high_t + tl.log(sum_t), 0.0, 0.0
    if KIND != 0 or not LEARNING:
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            lp = tl.load(z_of + at, mask=at < V, other=0.0) * over - norm
            lq = tl.load(t_of + at, mask=at < V, other=0.0) * over - norm_t
            _, d, g = _entries(lp, lq, beta, KIND, HIGH, CAP)
            value += tl.sum(tl.where(at < V, d, 0.0), 0)
            total += tl.sum(tl.where(at < V, g, 0.0), 0)
    if LEARNING:
        scale = tl.load(weight_of + row) * over
        for start in range(0, V, BLOCK):
            at = start + tl.arange(0, BLOCK)
            lp = tl.load(z_of + at, mask=at < V, other=0.0) * over - norm
            lq = tl.load(t_of + at, mask=at < V, other=0.0) * over - norm_t
            p, d, g = _entries(lp, lq, beta, KIND, HIGH, CAP)
            if KIND == 0:  # its g sums to 0
                value += tl.sum(tl.where(at < V, d, 0.0), 0)
                tl.store(z_of + at, scale * g, mask=at < V)
            else:
                tl.store(z_of + at, scale * (g - p * total), mask=at < V)
    tl.store(value_of + row, value)
