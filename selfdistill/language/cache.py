"""Keys and values of what was read, with room for the tokens to come: transformers copies all of them for each token."""

from __future__ import annotations

from inspect import signature
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

ROOM = 64  # tokens


class Roomy(DynamicLayer):  # type: ignore[misc,unused-ignore]
    """transformers' layer of a cache; tokens are written behind those that it holds, which stay where they are."""

    room: tuple[Tensor | None, Tensor | None] = (None, None)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Keys and values (rows, heads, tokens, width) of all tokens, with these as the last."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        (keys, self.keys), (values, self.values) = (
            _joined(room, held, new)
            for room, held, new in zip(self.room, (self.keys, self.values), (key_states, value_states), strict=True)
        )
        self.room = keys, values
        return self.keys, self.values


def _joined(room: Tensor | None, held: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """The room, and what of it is taken once the new tokens stand behind the held ones."""
    before = held.shape[-2] if held.numel() else 0
    now = before + new.shape[-2]
    theirs = room is not None and room.data_ptr() == held.data_ptr() and room.shape[:-2] == held.shape[:-2]
    if room is None or not theirs or now > room.shape[-2]:  # another one where rows were chosen or put in order
        room = new.new_empty(*new.shape[:-2], now + ROOM, new.shape[-1])
        if before:
            room[..., :before, :] = held
    room[..., before:now, :] = new
    return room, room[..., :now, :]


def named(lm: Any) -> str:
    """What a model calls its cache; it was another word in earlier transformers."""
    return "cache" if "cache" in signature(lm.forward).parameters else "past_key_values"


def roomy(lm: Any) -> dict[str, Any]:
    """An empty cache for `generate`, by its name; nothing for models that keep something else, which it knows."""
    if not getattr(lm, "_supports_default_dynamic_cache", bool)():
        return {}
    cache = DynamicCache(config=lm.config.get_text_config(decoder=True))
    for layer in cache.layers:
        if type(layer) is DynamicLayer:
            layer.__class__ = Roomy
    return {named(lm): cache}
