"""Layouts of a stored target: all outputs as they are, or the most probable ones in 32 bits each.

A packed word holds 17 bits of id and a half-precision number without its sign. A probability has no sign, so the bit
that half precision spends on it is the id's seventeenth. The number is p x 2^15, which puts the range of half precision
where probabilities are: relative error 2^-12 down to p = 2^-29, and smaller ones in steps of 2^-39. Vocabularies above
2^17 take a bit of id, and leave one of the number, for each doubling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import DataError

ID_BITS, MOST_BITS = 17, 20  # the smallest field of an id; at 2^20 ids a probability has a relative error of 2^-9


SCALE = 2.0**15


LEAST = 2.0**-40  # what stands for less than half of the smallest step

Words = NDArray[np.uint32]


def id_bits(width: int) -> int:
    """Bits of an id among ``width`` outputs.

    Raises:
        DataError: more than 2^20.

    >>> id_bits(32_000), id_bits(131_072), id_bits(151_936)
    (17, 17, 18)
    """
    bits = max(ID_BITS, (width - 1).bit_length())
    if bits > MOST_BITS:
        raise DataError(f"{width} outputs do not fit an id of {MOST_BITS} bits; keep them dense")
    return bits


def pack(ids: NDArray[np.integer], probabilities: NDArray[np.floating], width: int) -> Words:
    """Words of ids and probabilities of one shape; the probabilities are rounded to the nearest.

    >>> words = pack(np.array([131_071]), np.array([0.25]), 131_072)
    >>> words.dtype, [float(part[0]) for part in unpack(words, 131_072)]
    (dtype('uint32'), [131071.0, 0.25])
    """
    bits = id_bits(width)
    if ids.size and not (int(ids.min()) >= 0 and int(ids.max()) < width):
        raise DataError(f"ids lie within 0 and {width - 1}; here are {int(ids.min())} to {int(ids.max())}")
    if not bool(((probabilities >= 0) & (probabilities <= 1)).all()):
        raise DataError("probabilities lie within 0 and 1; are these logits or logarithms?")
    shift = bits - ID_BITS
    x = np.asarray(probabilities, np.float64) * SCALE
    if shift:  # rounded once, to the numbers with fewer bits, which half precision then holds exactly
        step = np.exp2(np.maximum(np.frexp(x)[1], -13) - 11.0 + shift)
        x = np.rint(x / step) * step
    half: Words = x.astype(np.float16).view(np.uint16).astype(np.uint32) >> np.uint32(shift)
    return ids.astype(np.uint32) | (half << np.uint32(bits))


@lru_cache
def decoded_values(bits: int) -> NDArray[np.float32]:
    """The probability for each code above an id of so many bits."""
    codes = (np.arange(1 << (32 - bits), dtype=np.uint32) << (bits - ID_BITS)).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # codes that stand for no number are never written
        values = (codes.view(np.float16).astype(np.float64) / SCALE).astype(np.float32)
    values[0] = LEAST  # so that its logarithm is a number
    return values


def unpack(words: Words, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and probabilities of words, in their shape."""
    bits = id_bits(width)
    return (words & np.uint32((1 << bits) - 1)).astype(np.int64), decoded_values(bits).take(words >> np.uint32(bits))


ROUNDING = 1e-2  # what a sum of probabilities in bfloat16 may be off 1


Columns = dict[str, NDArray[Any]]  # name -> (elements, ...)


class Sparse(NamedTuple):
    """The most probable outputs, best first: ids (elements, k) int64, true log-probabilities (elements, k) float32, and
    log of the probability of all others (elements,). Together they are 1: nothing is renormalised."""

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor


@dataclass(frozen=True)
class Dense:
    """All ``width`` outputs of an element, in float32 (exact) or float16.

    >>> layout = Dense(2, "float16")
    >>> layout.decode(layout.encode(torch.tensor([[0.5, -3.0]]))).tolist(), layout.bytes
    ([[0.5, -3.0]], 4)
    """

    width: int
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float16"):
            raise DataError(f"dense targets are float32 or float16, not {self.dtype!r}")

    @property
    def bytes(self) -> int:
        """Of an element."""
        return self.width * np.dtype(self.dtype).itemsize

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> dtype and shape of an element's part."""
        return {"values": (self.dtype, (self.width,))}

    def encode(self, values: Tensor) -> Columns:
        """Of outputs (elements, width)."""
        _check_width(values, self.width)
        with np.errstate(over="ignore"):  # it is refused below
            array = values.detach().cpu().float().numpy().astype(self.dtype)
        if not bool(np.isfinite(array).all()):
            raise DataError(f"a target is not finite in {self.dtype}; keep float32, or look at the teacher's outputs")
        return {"values": array}

    def decode(self, columns: Mapping[str, NDArray[Any]]) -> Tensor:
        """Outputs (elements, width), float32."""
        return torch.from_numpy(np.ascontiguousarray(columns["values"], dtype=np.float32))


@dataclass(frozen=True)
class Top:
    """The ``k`` most probable of ``width`` outputs, with true probabilities, and the probability of all others.

    An element takes 4 k + 2 bytes. The rest is kept apart from the others, because as a difference from 1 it would be
    lost in the rounding of large ones; what rounding leaves over goes to the largest part.

    >>> layout = Top(131_072, 32)
    >>> layout.bytes
    130
    """

    width: int
    k: int

    def __post_init__(self) -> None:
        id_bits(self.width)
        if not 1 <= self.k < self.width:
            raise DataError(f"the most probable {self.k} of {self.width} outputs: keep 1 to {self.width - 1} of them")

    @property
    def bytes(self) -> int:
        """Of an element."""
        return 4 * self.k + 2

    def columns(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Name -> dtype and shape of an element's part."""
        return {"words": ("uint32", (self.k,)), "rest": ("float16", ())}

    def encode(self, values: Tensor) -> Columns:
        """Of logits, or log-probabilities, (elements, width)."""
        _check_width(values, self.width)
        p = torch.softmax(values.detach().float(), -1)
        best, ids = p.topk(self.k, -1)
        rest = p.scatter_(-1, ids, 0.0).sum(-1)
        return self.packed(ids.cpu().numpy(), best.cpu().numpy(), rest.cpu().numpy())

    def packed(self, ids: NDArray[Any], probabilities: NDArray[Any], rest: NDArray[Any]) -> Columns:
        """Of ids and their probabilities (elements, k), best first, and that of all others (elements,).

        Raises:
            DataError: they do not add up to 1, as what was renormalised or cut short does not.
        """
        total = probabilities.astype(np.float64).sum(-1) + rest
        if not bool((np.abs(total - 1.0) < ROUNDING).all()):
            total_off = float(total[np.abs(total - 1.0).argmax()])
            raise DataError(
                f"probabilities and the rest add up to {total_off:.4g}, not 1; give true ones, not renormalised"
            )
        rest = (rest * SCALE).astype(np.float16)
        return {"words": pack(ids, np.minimum(probabilities, 1.0), self.width), "rest": rest}

    def decode(self, columns: Mapping[str, NDArray[Any]]) -> Tensor:
        """Log-probabilities (elements, width), which are logits too; all other outputs share the rest evenly."""
        ids, log_probs, log_rest = self.sparse(columns)
        even = log_rest.unsqueeze(-1) - float(np.log(self.width - self.k))
        return even.expand(-1, self.width).scatter(-1, ids, log_probs)

    def sparse(self, columns: Mapping[str, NDArray[Any]]) -> Sparse:
        """The parts as they were kept."""
        ids, p = unpack(columns["words"], self.width)
        rest = columns["rest"].astype(np.float32)
        rest *= np.float32(1 / SCALE)
        np.maximum(rest, np.float32(LEAST), out=rest)
        best, tail = p[:, 0].copy(), p @ _other_shares(self.k)
        most = best >= rest
        p[:, 0] = np.where(most, np.maximum(1.0 - rest - tail, LEAST), best)
        rest = np.where(most, rest, np.maximum(1.0 - best - tail, LEAST))
        return Sparse(torch.from_numpy(ids), torch.from_numpy(np.log(p, out=p)), torch.from_numpy(np.log(rest)))


@lru_cache
def _other_shares(k: int) -> NDArray[np.float32]:
    """Adds up all but the first."""
    ones = np.ones(k, np.float32)
    ones[0] = 0.0
    return ones


Layout = Dense | Top


def _check_width(values: Tensor, width: int) -> None:
    if values.dim() != 2 or values.shape[1] != width:
        raise DataError(f"targets (elements, {width}) are wanted, not {tuple(values.shape)}")
