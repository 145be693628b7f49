"""Cards of rows: what a person needs to see of a row to judge its label, as a picture, a text or its cells.

A report shows some of them, and `selfdistill review` all that it asks about. The cards of a report lie beside it in the
run folder, so that the page can be drawn again without the data.
"""

from __future__ import annotations

import base64
import io
import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import CheckpointError, SelfdistillError
from ..io.files import FORMAT, check_format, write
from ..io.schema import read_json
from . import image_store, images, sources, tables
from .image_store import ImageStore
from .table_files import read_table

FILE = "cards.json"  # in a run folder
SIDE, LARGE = 96, 384  # pixels of a thumbnail at most, and of a picture that is looked at alone
SMALL = 48  # pixels of an image that is kept exactly
CELLS, CELL, TEXT = 30, 80, 2000  # cells of a card; characters of a cell, and of a text
LARGEST = 100_000_000  # bytes of a table that is read again for cards
PICTURE = ("data:image/png;base64,", "data:image/jpeg;base64,")


class RowCard(NamedTuple):
    """A row as a person sees it: a picture as a data URI, a text, or cells by the names of their columns."""

    picture: str = ""
    text: str = ""
    cells: tuple[tuple[str, str], ...] = ()


def picture_cards(
    x: Tensor | ImageStore, names: Sequence[str], ids: Sequence[int], white: int = 255, side: int = SIDE
) -> dict[int, RowCard]:
    """Cards of images, by their row: from their files where these are there, else from the pixels that were read.

    Args:
        x: (n, channels, height, width), of uint8 with ``white`` as 1, or floating in [0, 1].
        names: the file of each row, if they are files.
        ids: the rows.
        white: the pixel value that stands for 1.
        side: the largest side of a picture, in pixels.

    >>> cards = picture_cards(torch.zeros(1, 1, 8, 8, dtype=torch.uint8), (), [0])
    >>> cards[0].picture[:26]
    'data:image/png;base64,iVBO'
    """
    cards = {}
    for row in ids:
        source = x.sources[row] if isinstance(x, ImageStore) else None
        if source is None and names and Path(names[row]).is_file():
            source = images.image_file(Path(names[row]))
        picture = _thumbnail(source, side) if source is not None else ""
        if not picture and isinstance(x, Tensor):
            pixels = x[row].float() / (white if x.dtype == torch.uint8 else 1)
            picture = _png((255 * pixels).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())
        cards[row] = RowCard(picture)
    return cards


def _thumbnail(source: image_store.Source, side: int) -> str:
    """A small picture of an image file; empty where it can no longer be read."""
    try:
        image = image_store.decode(source).image
    except SelfdistillError:
        return ""
    if max(image.size) <= SMALL:
        return _png(np.asarray(image))
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return PICTURE[1] + base64.b64encode(file.getvalue()).decode()


def _png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """The PNG of pixels (height, width, 1 or 3): Pillow is no dependency of tensors."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, width * channels)], 1)
    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
    chunks = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts
    ]
    return PICTURE[0] + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def table_cards(
    source: str,
    counts: Sequence[tuple[str, int]],
    ids: Sequence[int],
    text: str | None = None,
    target: str | None = None,
    largest: int = LARGEST,
) -> dict[int, RowCard]:
    """Cards of rows of tables, by their row; none of a file that is gone, changed its length, or is too large.

    Args:
        source: the name of the data, for tables of scikit-learn.
        counts: the files and their numbers of rows, the first one's rows first.
        ids: the rows.
        text: the column of texts, if there is one.
        target: the column of labels, which is left out.
        largest: the bytes of a file beyond which it is not read again.
    """
    if source in sources.TABLES:
        frame = tables.sklearn_table(source).features
        names = list(frame.columns)[:CELLS]
        return {row: RowCard(cells=tuple((name, _cell(frame[name].iloc[row])) for name in names)) for row in ids}
    cards, begin = dict[int, RowCard](), 0
    for file, count in counts:
        rows = [row for row in ids if begin <= row < begin + count]
        if rows:
            cards |= _file_cards(Path(file), count, begin, rows, text, target, largest)
        begin += count
    return cards


def _file_cards(
    path: Path, count: int, begin: int, rows: Sequence[int], text: str | None, target: str | None, largest: int
) -> dict[int, RowCard]:
    try:
        if not path.exists() or (path.is_file() and path.stat().st_size > largest):
            return {}
        table = read_table(path)
        columns = {name: table.take(name) for name in table.names}
    except (SelfdistillError, OSError):
        return {}
    if table.rows != count:
        return {}
    cards = {}
    for row in rows:
        cells = {
            name: _cell(column.iloc[row - begin], TEXT if name == text else CELL) for name, column in columns.items()
        }
        words = cells.pop(text, "") if text is not None else ""
        shown = [(name, cell) for name, cell in cells.items() if name != target and cell]
        cards[row] = RowCard(text=words, cells=tuple(shown[:CELLS]))
    return cards


def _cell(value: Any, most: int = CELL) -> str:
    """A cell as a person reads it; empty where it is missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    number = isinstance(value, float | np.floating)
    text = f"{float(value):.6g}" if number else str(value)
    text = "" if text in ("nan", "NaT", "<NA>") and not isinstance(value, str) else text
    return text if len(text) <= most else text[: most - 1] + "…"


def write_cards(folder: Path, cards: Mapping[int, RowCard]) -> None:
    """Write the cards of a run's rows into its folder.

    Raises:
        DataError: the file cannot be written.
    """
    rows = {str(row + 1): card._asdict() for row, card in cards.items()}
    write(folder / FILE, json.dumps({"format": FORMAT, "rows": rows}) + "\n")


_CARDS = {"format": Any, "rows": {str: {"picture": str, "text": str, "cells": [[str]]}}}


def read_cards(folder: Path) -> dict[int, RowCard]:
    """The cards in a run folder, by the number of their row from 1 on; none where there is no such file.

    Raises:
        CheckpointError: the file is damaged or foreign; a picture of it leads elsewhere.
    """
    path, cards = folder / FILE, dict[int, RowCard]()
    if not path.exists():
        return cards
    try:
        record = read_json(path, _CARDS)
        check_format(path, record["format"])
        for row, card in record["rows"].items():
            if card["picture"]:
                start = next(one for one in PICTURE if card["picture"].startswith(one))
                base64.b64decode(card["picture"].removeprefix(start), validate=True)
            cards[int(row)] = RowCard(
                card["picture"], card["text"], tuple((name, cell) for name, cell in card["cells"])
            )
    except (OSError, ValueError, StopIteration) as error:
        raise CheckpointError(f"{path} is damaged or foreign ({type(error).__name__}); remove it") from error
    return cards
