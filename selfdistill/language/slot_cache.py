"""A layer of a cache of transformers in which a token is written in place and a row moves alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

SPARE = 64  # columns by which buffers grow at least


class SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values (slots, heads, columns, width), of which the first rows and columns are in use.

    Args:
        slots: Rows of the buffers.
    """

    def __init__(self, slots: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.slots, self.length = slots, 0
        self.buffers: list[Tensor] = []

    def reserve(self, like: Sequence[Tensor], columns: int) -> None:
        """Buffers for so many columns; zeros, since what is masked is still multiplied."""
        if self.buffers and columns <= self.buffers[0].shape[2]:
            return
        old = self.buffers
        self.buffers = [
            one.new_zeros(self.slots, one.shape[1], columns + max(SPARE, columns // 2), one.shape[3]) for one in like
        ]
        for new, before in zip(self.buffers, old, strict=False):
            new[:, :, : before.shape[2]] = before

    def place(self, slots: slice, start: int, keys: Tensor, values: Tensor) -> None:
        """Put what was read of prompts into slots."""
        end = start + keys.shape[2]
        self.reserve((keys, values), end)
        for buffer, new in zip(self.buffers, (keys, values), strict=True):
            buffer[slots, :, start:end] = new
        self.length, self.is_initialized = end, True
        self.use(slots.stop)

    def use(self, rows: int) -> tuple[Tensor, Tensor]:
        """Show the first rows, as transformers reads them."""
        keys, values = (buffer[:rows, :, : self.length] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row to another slot."""
        for buffer in self.buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def shift(self, by: int, rows: int, length: int) -> None:
        """Move the columns of the first rows by so many, to the right or the left."""
        self.length = length + by
        if not self.buffers or not rows:
            return
        self.reserve(self.buffers, self.length)
        for buffer in self.buffers:
            moved = buffer[:rows, :, max(0, -by) : length].clone()
            buffer[:rows, :, max(0, by) : self.length] = moved
        self.use(rows)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write a token of each row in place."""
        start, end, rows = self.length, self.length + key_states.shape[2], len(key_states)
        self.reserve((key_states, value_states), end)
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:rows, :, start:end] = new
        self.length = end
        return self.use(rows)
