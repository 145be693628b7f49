"""What one process must know of the others. Everything here is a no-op in a single process."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return dist.get_rank() if size() > 1 else 0


def add(value: Tensor) -> Tensor:
    """The sum over all processes."""
    if size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def gather(value: Tensor) -> Tensor:
    """Rows of all processes, in rank order; the number of rows may differ between them."""
    if size() == 1:
        return value
    counts = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(size())]
    dist.all_gather(counts, torch.tensor([len(value)], device=value.device))
    longest = int(max(int(c) for c in counts))
    padded = value.new_zeros((longest, *value.shape[1:]))
    padded[: len(value)] = value
    parts = [torch.empty_like(padded) for _ in range(size())]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(count)] for part, count in zip(parts, counts, strict=True)])


def most(number: int, device: torch.device | str = "cpu") -> int:
    """The largest of the processes' numbers."""
    return int(gather(torch.tensor([number], device=device)).max())


def share(rows: Tensor) -> Tensor:
    """This process's rows of a batch that all processes know: every size-th, starting at its rank."""
    return rows[rank() :: size()]


def average_(buffers: Iterable[Tensor]) -> None:
    """Make floating buffers (batch statistics) the mean over the processes, each of which saw other rows.

    Without it every process would score and teach with statistics of its own, of which a checkpoint keeps one set.
    Buffers that agree keep their bits.
    """
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    if size() == 1 or not floating:
        return
    mine = torch.cat([buffer.detach().double().flatten() for buffer in floating])
    rows = [torch.empty_like(mine) for _ in range(size())]
    dist.all_gather(rows, mine)
    mean = rows[0] + torch.stack([row - rows[0] for row in rows]).mean(0)
    mean = torch.where(torch.stack([row == rows[0] for row in rows]).all(0), rows[0], mean)  # infinite entries too
    for buffer, part in zip(floating, mean.split([buffer.numel() for buffer in floating]), strict=True):
        buffer.copy_(part.view_as(buffer))
