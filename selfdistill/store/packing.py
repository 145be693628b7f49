"""An id and its probability in one word of 32 bits: 17 bits of id, and a half-precision number without its sign.

A probability has no sign, so the bit that half precision spends on it is the id's seventeenth. The number is p x 2^15,
which puts the range of half precision where probabilities are: relative error 2^-12 down to p = 2^-29, and smaller
ones in steps of 2^-39. Vocabularies above 2^17 take a bit of id, and leave one of the number, for each doubling.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

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
    dropped = bits - ID_BITS
    x = np.asarray(probabilities, np.float64) * SCALE
    if dropped:  # rounded once, to the numbers with fewer bits, which half precision then holds exactly
        step = np.exp2(np.maximum(np.frexp(x)[1], -13) - 11.0 + dropped)
        x = np.rint(x / step) * step
    half: Words = x.astype(np.float16).view(np.uint16).astype(np.uint32) >> np.uint32(dropped)
    return ids.astype(np.uint32) | (half << np.uint32(bits))


@lru_cache
def numbers(bits: int) -> NDArray[np.float32]:
    """The probability for each code above an id of so many bits."""
    codes = (np.arange(1 << (32 - bits), dtype=np.uint32) << (bits - ID_BITS)).astype(np.uint16)
    with np.errstate(invalid="ignore"):  # codes that stand for no number are never written
        found = (codes.view(np.float16).astype(np.float64) / SCALE).astype(np.float32)
    found[0] = LEAST  # so that its logarithm is a number
    return found


def unpack(words: Words, width: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Ids and probabilities of words, in their shape."""
    bits = id_bits(width)
    return (words & np.uint32((1 << bits) - 1)).astype(np.int64), numbers(bits).take(words >> np.uint32(bits))
