"""Text: a column of a table becomes token ids, read by a pretrained encoder.

A row is a row of the table, its input the ids of its first tokens, filled up with the padding token's id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import nearest, one_line
from ..models import hub, text_encoder
from . import column_types, tables
from .augment import Tokens
from .sources import RawData, existing
from .split_columns import NO_REQUEST, SplitRequest, append_column, read_further, take_split_columns
from .table_files import SHOWN, Table, is_table, read_table

FOLDER = "tokenizer"  # in a model folder


#: How text is learnt unless it is said otherwise: a pretrained encoder is moved little, and soon.
SETTINGS = {"lr": 5e-5, "weight_decay": 0.01, "clip": 1.0}


BATCH, STEPS, EPOCHS = 32, 500, (3, 20)


@dataclass(frozen=True, eq=False)
class Reader:
    """The tokenisation of a column: its name, the model's tokenizer, and the number of tokens kept of a row."""

    column: str
    tokenizer: Any
    length: int

    @property
    def tokens(self) -> Tokens:
        """The ids that views need to know."""
        mask = self.tokenizer.mask_token_id
        special = set(self.tokenizer.all_special_ids) - {mask, self.tokenizer.unk_token_id}
        return Tokens(mask, tuple(sorted(special)))

    @property
    def mark(self) -> str:
        """A digest of the vocabulary: the same ids under another one are other words."""
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]

    def source(
        self,
        name: str,
        target: str | None,
        unlabelled: Path | None,
        types: Mapping[str, str] | None = None,
        request: SplitRequest = NO_REQUEST,
    ) -> tuple[RawData, int]:
        """The rows of a table, those of the files of ``request`` and of ``unlabelled`` after its own, and how many
        were cut.

        Raises:
            DataError: no such column, a cell without text, or no target.
        """
        if self.column in (target, *request.annotators):
            labels = "--target" if self.column == target else "--annotators"
            raise DataError(f"{name}: '{self.column}' is both --text and {labels}; give another column as one of them")
        written = tables.target_columns(target, request)
        table = self._table(name, written)
        further = read_further(request, table, target)
        extra = None if unlabelled is None else read_table(unlabelled, (self.column,))
        split = take_split_columns(request, table, further, extra, (*written, self.column))
        for each in (*written, self.column):
            append_column(table, further, each)
        y, classes, votes = tables.targets(table, target, types or {}, request)
        texts = column(table, self.column)
        if extra is not None:
            texts = [*texts, *column(extra, self.column)]
            y = torch.cat([y, y.new_full((extra.rows,), -1 if classes else torch.nan)])
            votes = votes.extended(extra.rows) if votes else None
        x, cut = self.ids(texts)
        counts = [(str(each.path), each.rows) for each in (table, *further, *([extra] if extra else []))]
        raw = RawData(table.path.name, "text", y, classes, x=x, counts=tuple(counts), votes=votes)
        return raw.split_by(split), cut

    def table(self, name: str) -> tuple[str, list[str]]:
        """The name of a table's file, and the texts of the column.

        Raises:
            DataError: it is no table, or has no such column of texts.
        """
        table = self._table(name, ())
        return table.path.name, column(table, self.column)

    def _table(self, name: str, written: Sequence[str]) -> Table:
        if not is_table(name, named=True):
            raise DataError(f"{name}: --text {self.column} names a column, and this is no table; give a file ({SHOWN})")
        table = read_table(existing(name), (self.column, *written))
        _check_column(table, self.column)
        return table

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, int]:
        """Token ids (n, length) int32 of texts, and how many of them were longer."""
        with hub.quiet():
            encoded = self.tokenizer(list(texts), add_special_tokens=True)["input_ids"]
            cut = sum(len(row) > self.length for row in encoded)
            if cut:
                encoded = self.tokenizer(list(texts), truncation=True, max_length=self.length)["input_ids"]
        x = torch.full((len(encoded), self.length), self.tokenizer.pad_token_id, dtype=torch.int32)
        for row, tokens in enumerate(encoded):
            x[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int32)
        return x, cut

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the tokenizer below a model folder; its entries for the card."""
        self.tokenizer.save_pretrained(folder / FOLDER)
        return {"text": self.column, "tokenizer": self.mark}


def reader(model: str | None, name: str) -> Reader:
    """The reader of a column ``name`` for a model's text, such as "gt-minilm(length=64)".

    Raises:
        DataError: the model reads no text, or is not there.
    """
    spec = model or text_encoder.USUAL
    options = text_encoder.named(spec)
    if options is None:
        raise DataError(
            f"--text {one_line(name, 40)}: the model {one_line(spec, 60)} reads no text; give "
            f"{', '.join(hub.ENCODERS)}, "
            "the folder of a pretrained encoder, or owner/name of the Hugging Face hub"
        )
    tokenizer, limit = hub.reading(str(options["name"]))
    hub.padding_of(str(options["name"]), tokenizer)
    return Reader(name, tokenizer, min(int(options.get("length", text_encoder.LENGTH)), limit))


def _check_column(table: Table, name: str) -> None:
    if name not in table.columns:
        names = table.names
        matches = nearest(name, names)
        hint = f"nearest: {matches}" if matches else f"it has: {', '.join(names)}"
        raise DataError(f"{table.path}: no column is called '{one_line(name, 60)}' (--text); {hint}")


def column(table: Table, name: str) -> list[str]:
    """The texts of a column, which is taken out of a table.

    Raises:
        DataError: there is no such column, it holds numbers, or a cell has no text.
    """
    path = table.path
    _check_column(table, name)
    cells = column_types.cells_of(table.take(name), f"{path}: column '{name}'")
    numbers = column_types.parse_numbers(cells.texts, cells.counts, table.comma).values
    if len(numbers) and not np.isnan(numbers).any():
        raise DataError(f"{path}: column '{name}' is of numbers; --text takes a column of words")
    texts = [*cells.texts, ""]
    texts = [texts[code] for code in cells.codes.tolist()]
    empty = [row + 1 for row, text in enumerate(texts) if not text]
    if empty:
        rest = f" and {len(empty) - 1} more" if len(empty) > 1 else ""
        raise DataError(
            f"{path}: column '{name}' has no text in row {empty[0]} (the first is 1){rest}; fill it in, or remove "
            "these rows"
        )
    return texts


def inputs(source: str, card: dict[str, Any], folder: Path) -> tuple[Tensor, list[str]]:
    """Token ids and row names of a table's column, as the model of a folder reads them.

    Raises:
        DataError: no such table or column, or the folder has no readable tokenizer.
    """
    if not is_table(source, named=True):
        raise DataError(
            f"{source}: the model was trained on text; give a table ({SHOWN}) with a column '{card['text']}'"
        )
    texts = column(read_table(existing(source), (card["text"],)), card["text"])
    return saved_reader(card, folder).ids(texts)[0].long(), [str(row + 1) for row in range(len(texts))]


def saved_reader(card: Mapping[str, Any], folder: Path) -> Reader:
    """The tokenisation of the model in a folder.

    Raises:
        DataError: the folder has no readable tokenizer.
    """
    return Reader(card["text"], hub.tokenizer(folder / FOLDER), int(card["shape"][0]))
