"""Sums of a step over its micro-batches."""

from __future__ import annotations

import torch
from torch import Tensor

from .core import Measured


def add_up(rows: dict[str, Tensor], measured: dict[str, Measured], loss: Tensor) -> None:
    """Add a micro-batch: per term its total, count, kept and valid, and under "" the loss."""
    more = {name: torch.stack([m.tally.total.detach(), m.tally.count, m.kept, m.valid]) for name, m in measured.items()}
    more[""] = loss.detach().reshape(1)
    for name, row in more.items():
        rows[name] = rows[name] + row if name in rows else row
