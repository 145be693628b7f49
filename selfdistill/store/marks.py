"""A hash of each row of a batch: has the teacher seen these very inputs?"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..draws import _mix_tensor

_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@lru_cache(maxsize=16)
def _weights(count: int, device: torch.device) -> Tensor:
    """Odd numbers of 64 bits, so that no change of a single word goes unseen."""
    return _mix_tensor(torch.arange(count, device=device)) | 1


def marks(x: Tensor) -> Tensor:
    """A 64-bit hash of the bits of each row, (rows,), int64.

    Equation::

        h_i = mix(sum_j w_j x_ij mod 2^64),  w_j odd and fixed

    Source: multilinear hashing; Lemire and Kaser, Strongly Universal String Hashing is Fast, The Computer Journal 2014.

    >>> x = torch.rand(3, 4, 4)
    >>> bool((marks(x) == marks(x.clone())).all()), bool((marks(x) == marks(x + 1e-6)).any())
    (True, False)
    """
    rows = x.detach().reshape(len(x), -1).contiguous()
    rows = (
        rows.view(torch.uint8) if rows.is_complex() or rows.dtype == torch.bool else rows.view(_BY_SIZE[rows.itemsize])
    )
    return _mix_tensor((rows.long() * _weights(rows.shape[1], rows.device)).sum(1)).cpu()
