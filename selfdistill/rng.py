"""Addressed randomness: what is drawn depends on an address, never on what was drawn before.

A draw is a pure function of its address, such as ``(seed, generation, epoch, sample id)``. Resuming a run,
changing the number of workers or splitting a batch over ranks therefore changes nothing that a sample sees.
The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
used as a hash: the address is folded in word by word.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MASK = (1 << 64) - 1


_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB

Address = Sequence[int | str]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def seed(*address: int | str) -> int:
    """A 63-bit seed for a generator, from an address of integers and words.

    >>> seed(0, "init", 1) == seed(0, "init", 1), seed(0, "init", 1) == seed(0, "init", 2)
    (True, False)
    """
    state = 0
    for part in address:
        word = zlib.crc32(part.encode()) if isinstance(part, str) else part & _MASK
        state = ((state ^ word) + _GOLDEN) & _MASK
        state = ((state ^ (state >> 30)) * _MIX1) & _MASK
        state = ((state ^ (state >> 27)) * _MIX2) & _MASK
        state ^= state >> 31
    return state >> 1


def reseed(device: torch.device, *address: int | str) -> None:
    """Seed what layers on a device draw from, such as dropout.

    `torch.manual_seed` seeds all kinds of devices, and where one is not in use it notes the whole stack of calls for
    later: a fifth of a small network's step on a CPU.

    >>> reseed(torch.device("cpu"), 0, "step", 7)
    >>> first = torch.rand(2)
    >>> _ = torch.manual_seed(seed(0, "step", 7))
    >>> bool((torch.rand(2) == first).all())
    True
    """
    (torch.default_generator if device.type == "cpu" else torch).manual_seed(seed(*address))


def mix_tensor(words: Tensor) -> Tensor:
    """Hash int64 words by the same mixing; shifts are made logical by masking off the copied sign."""

    def shifted(w: Tensor, by: int) -> Tensor:
        return (w >> by) & ((1 << (64 - by)) - 1)

    words = words + _signed(_GOLDEN)
    words = (words ^ shifted(words, 30)) * _signed(_MIX1)
    words = (words ^ shifted(words, 27)) * _signed(_MIX2)
    return words ^ shifted(words, 31)


def uniform(address: Address, ids: Tensor, count: int) -> Tensor:
    """Numbers in [0, 1) for each sample: shape (rows, count), float32, a function of (address, id) alone.

    >>> uniform((0, "weak", 3), torch.tensor([7, 9]), 2)[1].equal(uniform((0, "weak", 3), torch.tensor([9]), 2)[0])
    True
    """
    base = mix_tensor(ids.to(torch.int64) ^ seed(*address))  # (rows,)
    index = torch.arange(count, device=ids.device, dtype=torch.int64)
    words = mix_tensor(base[:, None] ^ mix_tensor(index)[None, :])
    return ((words >> 40) & 0xFFFFFF).to(torch.float32) / float(1 << 24)  # 24 bits fill a float32 exactly


def normal(address: Address, ids: Tensor, count: int) -> Tensor:
    """Standard normal numbers for each sample, shape (rows, count), by the Box-Muller transform."""
    u = uniform(address, ids, 2 * count)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :count]))
    return radius * torch.cos(2.0 * torch.pi * u[:, count:])


def permutation(address: Address, n: int) -> Tensor:
    """A shuffled ``arange(n)``, a function of the address alone."""
    return torch.from_numpy(np.random.Generator(np.random.Philox(seed(*address))).permutation(n))


def sample(address: Address, n: int, count: int) -> list[int]:
    """``count`` of the numbers below ``n``, each at most once where there are enough; a function of the address alone.

    >>> len(set(sample((0, "mates"), 5, 5))), len(sample((0, "mates"), 2, 5))
    (5, 5)
    """
    generator = np.random.Generator(np.random.Philox(seed(*address)))
    return generator.choice(n, count, replace=count > n).tolist()  # type: ignore[no-any-return]
