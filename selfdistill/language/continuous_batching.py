"""Continuous batching on one device: a row that ends leaves the batch, and a prompt that waits takes its place.

`generate` computes all rows of a batch until the longest of them ends. Here the rows of a step are those that are still
written. Keys and values lie in buffers with a row a slot, right-aligned, so that a token is written in place and a row
moves alone. What is drawn for a row depends on its own address and place, never on the rows beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import rng
from ..models.causal_lm import Causal

#: Chooses tokens (rows,) by logits (rows, vocabulary) in float32 and numbers in [0, 1), (rows,).
Draw = Callable[[Tensor, Tensor], Tensor]

SLOTS = 32  # rows that are written at once
REFILL = 8  # free slots that are worth a pass over waiting prompts; such a pass costs a step however few there are
SPARE = 64  # columns that may be empty in all rows before they are taken away


class RowPrompts(NamedTuple):
    """What is to be written: prompts as ids, and for the numbers of each row its key, under one address."""

    prompts: Sequence[Sequence[int]]
    keys: Tensor
    address: rng.Address


def fits(model: Causal) -> bool:
    """Whether rows of the model's cache can be moved: all its layers attend to everything that was read, and it is told
    the positions of tokens.

    Args:
        model: The language model.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer

    accepted = signature(model.plain.forward).parameters
    if not {"attention_mask", "position_ids", "use_cache"} <= set(accepted) or not {"cache", "past_key_values"} & set(
        accepted
    ):
        return False
    if getattr(model.plain, "_is_stateful", False):  # a state of the model's own, such as mamba's
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.plain.config).layers)


def write(
    model: Causal,
    rows: RowPrompts,
    draw: Draw,
    most: int,
    stop: Sequence[int],
    done: Callable[[int, float], None] = lambda count, begun: None,
) -> list[list[int]]:
    """Completions of prompts, in their order, each up to and with the first token that ends it.

    Args:
        model: The language model.
        rows: The prompts, and the addresses of their numbers.
        draw: Chooses tokens.
        most: Tokens of a completion at most.
        stop: Tokens that end it.
        done: Called after each step with the number of rows that have ended in it, and with what those that are being
            written come to, in whole rows of so many tokens.
    """
    order = sorted(range(len(rows.prompts)), key=lambda i: (-len(rows.prompts[i]), i))
    found: dict[int, list[int]] = {}
    with model.inference():
        batch = _Batch(model, rows, draw, most, stop)
        while order or batch.rows:
            free = SLOTS - len(batch.rows)
            if order and free >= min(REFILL, len(order), SLOTS):
                batch.admit(order[:free])
                order = order[free:]
            else:
                batch.step()
            ended = batch.leave()
            found.update(ended)
            done(len(ended), batch.begun)
    return [found[i] for i in range(len(rows.prompts))]


class _Batch:
    """The rows that are written: their tokens so far, and what the model has read of them."""

    def __init__(self, model: Causal, rows: RowPrompts, draw: Draw, most: int, stop: Sequence[int]) -> None:
        self.model, self.source, self.draw, self.most = model, rows, draw, most
        self.device = next(model.parameters()).device
        self.stop = torch.tensor(list(stop), device=self.device)
        self.rows: list[int] = []  # the row in each slot
        self.cache, self.length = _cache(model), 0  # columns that were read
        self.mask = torch.zeros(SLOTS, 0, dtype=torch.int64, device=self.device)
        self.tokens = torch.zeros(SLOTS, most, dtype=torch.int64, device=self.device)
        self.numbers = torch.zeros(SLOTS, most, device=self.device)
        self.counts = torch.zeros(SLOTS, dtype=torch.int64, device=self.device)  # tokens that were drawn
        self.seen = torch.zeros(SLOTS, dtype=torch.int64, device=self.device)  # tokens that were read

    def admit(self, rows: Sequence[int]) -> None:
        """Read the prompts of some rows, and draw their first tokens."""
        prompts = [self.source.prompts[i] for i in rows]
        longest, first = max(map(len, prompts)), len(self.rows)
        ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        read = _new_cache(self.model)
        logits = self._read(ids, mask, read)
        slots = slice(first, first + len(rows))
        self._make_room(longest, first)
        for layer, new in zip(self.cache.layers, read.layers, strict=True):
            layer.place(slots, self.length - longest, new.keys, new.values)
        self.mask[slots] = 0
        self.mask[slots, self.length - longest : self.length] = mask
        self.seen[slots], self.counts[slots] = mask.sum(1), 0
        keys = self.source.keys[list(rows)]
        self.numbers[slots] = rng.uniform(self.source.address, keys, self.most).to(self.device)
        self.rows += rows
        self._choose(logits, slots)

    def step(self) -> None:
        """Read the last token of each row, and draw the next."""
        count = len(self.rows)
        self._reserve(self.length + 1)
        self.mask[:count, self.length] = 1
        self.length += 1
        last = self.tokens[torch.arange(count, device=self.device), self.counts[:count] - 1]
        logits = self._read(last[:, None], self.mask[:count, : self.length], self.cache, self.seen[:count, None])
        self.seen[:count] += 1
        self._choose(logits, slice(0, count))

    def leave(self) -> dict[int, list[int]]:
        """Take out the rows that have ended; the last rows move to their slots."""
        count = len(self.rows)
        last = self.tokens[torch.arange(count, device=self.device), self.counts[:count] - 1]
        over = torch.isin(last, self.stop) | (self.counts[:count] >= self.most)
        if not bool(over.any()):
            return {}
        ended, kept = over.nonzero()[:, 0].tolist(), (~over).nonzero()[:, 0].tolist()
        found = {self.rows[i]: self.tokens[i, : int(self.counts[i])].tolist() for i in ended}
        holes = [i for i in ended if i < len(kept)]
        movers = [i for i in kept if i >= len(kept)]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
            for state in (self.mask, self.tokens, self.numbers, self.counts, self.seen):
                state[hole] = state[mover]
            for layer in self.cache.layers:
                layer.move(mover, hole, self.length)
        del self.rows[len(kept) :]
        self._trim()
        return found

    @property
    def begun(self) -> float:
        """What the rows come to that are being written, in rows that are as long as they may be."""
        return int(self.counts[: len(self.rows)].sum()) / self.most

    def _read(self, ids: Tensor, mask: Tensor, cache: Any, positions: Tensor | None = None) -> Tensor:
        """Logits (rows, vocabulary) of what follows, and the tokens in the cache."""
        accepted = signature(self.model.plain.forward).parameters
        options = {"cache" if "cache" in accepted else "past_key_values": cache, "use_cache": True}
        if "logits_to_keep" in accepted:
            options["logits_to_keep"] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0) if positions is None else positions
        output = self.model.plain(input_ids=ids, attention_mask=mask, position_ids=positions, **options)
        logits: Tensor = output.logits[:, -1, : self.model.vocabulary].float()
        return logits

    def _choose(self, logits: Tensor, slots: slice) -> None:
        """Draw the next token of some rows."""
        places = torch.arange(slots.start, slots.stop, device=self.device)
        at = self.counts[slots]
        self.tokens[places, at] = self.draw(logits, self.numbers[places, at])
        self.counts[slots] += 1

    # columns ----------------------------------------------------------------------------------------------------------

    def _make_room(self, longest: int, count: int) -> None:
        """At least as many columns as a prompt has; those of the rows that are written move to the right end."""
        if count == 0:
            self.length = 0
        shift = longest - self.length
        if shift <= 0:
            return
        self._reserve(longest)
        if count:
            self.mask[:count, shift:longest] = self.mask[:count, : self.length].clone()
            self.mask[:count, :shift] = 0
        for layer in self.cache.layers:
            layer.shift(shift, count, self.length)
        self.length = longest

    def _reserve(self, columns: int) -> None:
        if columns > self.mask.shape[1]:
            grown = self.mask.new_zeros(SLOTS, columns + SPARE)
            grown[:, : self.mask.shape[1]] = self.mask
            self.mask = grown

    def _trim(self) -> None:
        """Take away the columns that are empty in all rows, where they are many."""
        count = len(self.rows)
        if not count:
            return
        empty = self.length - int(self.seen[:count].max())
        if empty >= max(SPARE, self.length // 4):
            kept = self.length - empty
            self.mask[:count, :kept] = self.mask[:count, empty : self.length].clone()
            for layer in self.cache.layers:
                layer.shift(-empty, count, self.length)
            self.length = kept


# ---- keys and values -----------------------------------------------------------------------------------------------


def _new_cache(model: Causal) -> Any:
    from transformers.cache_utils import DynamicCache

    return DynamicCache(config=model.plain.config)


def _cache(model: Causal) -> Any:
    """A cache whose layers have a row a slot."""
    from .slot_cache import SlotLayer

    cache = _new_cache(model)
    cache.layers = [SlotLayer(SLOTS) for _ in cache.layers]
    return cache
