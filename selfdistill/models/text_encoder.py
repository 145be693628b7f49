"""A pretrained text encoder with linear heads: token ids in, mean over real tokens, classes or values out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from ..io.expressions import parse_expression
from . import hub

USUAL = "gt-minilm"  # the default model of texts


LENGTH = 128  # the default number of tokens of a row


SPEC = "selfdistill.models.text_encoder:encoder"  # what a `models.Build` calls


CHUNK = 64  # rows of a forward pass without gradient


_WRITTEN = re.compile(r"\s*(?P<name>[^()]+?)\s*(?P<options>\(.*\))?\s*", re.DOTALL)


_HIDDEN = ("_name_or_path", "transformers_version", "dtype", "architectures")  # of a config: no part of the model


def options(dropout: float = 0.1, length: int = LENGTH, exits: bool = False) -> dict[str, Any]:
    """The options of an encoder, checked.

    Raises:
        RecipeError: a value outside its range.
    """
    if not 0 <= dropout < 1:
        raise RecipeError(f"an encoder needs dropout in [0, 1), not {dropout!r}")
    if isinstance(length, bool) or not isinstance(length, int) or length < 3:
        raise RecipeError(f"an encoder needs a whole number of tokens from 3 on as length, not {length!r}")
    return {"dropout": dropout, "length": length, "exits": exits}


def named(spec: str) -> dict[str, Any] | None:
    """The options of `encoder` that a model's text stands for, or None if it names no pretrained model.

    >>> named("gt-minilm(length=64)"), named("cnn(width=8)")
    ({'name': 'gt-minilm', 'length': 64}, None)

    Raises:
        RecipeError: an option that an encoder has not.
    """
    written = _WRITTEN.fullmatch(spec)
    name = written["name"] if written else ""
    if written is None or not _is_pretrained(name):
        return None
    if not written["options"]:
        return {"name": name}
    given = "encoder" + written["options"]
    values = parse_expression(given, {"encoder": options}, kind="model")
    defaults = options()
    return {"name": name, **{key: value for key, value in values.items() if value != defaults[key]}}


def _is_pretrained(name: str) -> bool:
    """Whether it is built in, a folder, or a name of the hub."""
    if name in hub.BUILT_IN or Path(name).is_dir():
        return True
    try:
        return ":" not in name and not name.endswith(".py") and isinstance(hub.locate(name), str)
    except DataError:
        return False


class Encoder(nn.Module):
    """Token ids (rows, length) -> dropout on the mean of the real tokens' last hidden states -> a linear layer.

    Columns in which every row has ``padding`` are not read. Without exits, ``forward`` returns (rows, outputs); with
    them ``logits``, ``feature`` (rows, D), ``exits`` (rows, 2, outputs) and ``features`` (rows, 2, D), of the hidden
    states after a third and two thirds of the layers. ``kept`` are the options that build the same module without the
    pretrained weights: a model folder has them.
    """

    def __init__(self, body: nn.Module, outputs: int, padding: int, dropout: float, exits: bool) -> None:
        super().__init__()
        config: Any = body.config
        self.body, self.padding, width = body, padding, int(config.hidden_size)
        self.kept = {"config": described(config), "padding": padding}
        self.dropout, self.classifier = nn.Dropout(dropout), nn.Linear(width, outputs)
        layers = int(getattr(config, "num_hidden_layers", 3))
        self.depths = sorted({max(1, layers // 3), max(1, 2 * layers // 3)}) if exits else []
        self.bottlenecks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in self.depths)
        self.classifiers = nn.ModuleList(nn.Linear(width, outputs) for _ in self.depths)

    def forward(self, ids: Tensor) -> Tensor | dict[str, Tensor]:
        if torch.is_grad_enabled() or len(ids) <= CHUNK:
            outputs = self._read(ids)
        else:
            order = (ids != self.padding).sum(1).argsort(stable=True)  # rows of one length together: less padding
            parts, back = [self._read(part) for part in ids[order].split(CHUNK)], order.argsort()
            outputs = {head: torch.cat([part[head] for part in parts])[back] for head in parts[0]}
        return outputs if self.depths else outputs["logits"]

    def _read(self, ids: Tensor) -> dict[str, Tensor]:
        ids = trimmed(ids, self.padding)
        mask = ids != self.padding  # (rows, length)
        mask[:, 0] = True  # a row of nothing has no mean
        states = self.body(input_ids=ids, attention_mask=mask.long(), output_hidden_states=bool(self.depths))
        feature = _mean(states.last_hidden_state, mask)
        outputs = {"logits": self.classifier(self.dropout(feature))}
        if not self.depths:
            return outputs
        shallow = [
            neck(_mean(states.hidden_states[d], mask)) for neck, d in zip(self.bottlenecks, self.depths, strict=True)
        ]
        exits = [head(self.dropout(f)) for head, f in zip(self.classifiers, shallow, strict=True)]
        return {**outputs, "exits": torch.stack(exits, 1), "feature": feature, "features": torch.stack(shallow, 1)}


def trimmed(ids: Tensor, padding: int) -> Tensor:
    """Token ids without the last columns in which every row has padding.

    >>> trimmed(torch.tensor([[2, 7, 3, 0, 0], [2, 3, 0, 0, 0]]), 0).shape
    torch.Size([2, 3])
    """
    real = (ids != padding).any(0).nonzero()
    return ids[:, : int(real[-1]) + 1] if len(real) else ids[:, :1]


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Over the real tokens: (rows, length, D), (rows, length) -> (rows, D)."""
    weight = mask.to(hidden.dtype)[..., None]
    return (hidden * weight).sum(1) / weight.sum(1)


def encoder(
    shape: tuple[int, ...],
    outputs: int,
    *,
    name: str,
    dropout: float = 0.1,
    length: int = LENGTH,
    exits: bool = False,
    config: dict[str, Any] | None = None,
    padding: int | None = None,
) -> nn.Module:
    """The pretrained encoder ``name`` with fresh heads; of a ``config`` instead, with weights to be loaded.

    ``dropout`` is that of the heads; the encoder has its own in its config. ``length`` is how many tokens of a row are
    read; the data need it, and it is an option of the model because the two belong together.

    Raises:
        RecipeError: the rows are no token ids, or an option has no such value.
        DataError: there is no such model.
    """
    options(dropout, length, exits)
    if len(shape) != 1:
        raise RecipeError(f"{name} reads texts, not rows of shape {shape}; give --text COL, or another model")
    if config is None:
        body, tokenizer = hub.encoder(name)
        padding = hub.padding_of(name, tokenizer)
    else:
        body = hub.from_config(name, config)
    if padding is None:
        raise RecipeError(f"{name} has a config and no padding; give both")
    return Encoder(bare(body), outputs, padding, dropout, exits)


def bare(body: Any) -> nn.Module:
    """The encoder without unused parts: a weight without a gradient stops distributed training."""
    if body.config.is_encoder_decoder:
        body = body.get_encoder()
    if hasattr(body, "pooler"):
        body.pooler = None
    return body  # type: ignore[no-any-return]


def described(config: Any) -> dict[str, Any]:
    """A configuration of transformers as JSON values, without what is no part of the model."""
    config_dict = json.loads(config.to_json_string(use_diff=True))
    return {key: value for key, value in config_dict.items() if key not in _HIDDEN}
