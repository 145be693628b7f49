"""Inputs of a finished model from rows in memory: a frame, records, tensors, texts or paths of images.

A source, such as the path of a table or of a folder of images, is read by `dataset.inputs_for`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError
from . import images, text
from .dataset import check_inputs, inputs_for, saved_columns, table_inputs
from .image_store import ImageStore
from .table_files import Table, frame_table, pandas

REMEDY = {
    "table": "a frame of pandas or polars, a list of records, or the path of a table",
    "image": "a tensor (rows, channels, height, width), a list of paths, or the path of a folder of images",
    "text": "a list of texts, a frame with their column, or the path of a table",
}


def source_of(rows: object) -> str | None:
    """The source that rows name, which are then a path or the name of data; None of rows in memory."""
    return str(rows) if isinstance(rows, str | Path) else None


def texts_of(rows: object) -> list[str] | None:
    """Rows that are a list of texts or of paths; None of others."""
    if isinstance(rows, str) or not isinstance(rows, Sequence) or not rows:
        return None
    return [str(row) for row in rows] if all(isinstance(row, str | Path) for row in rows) else None


def table_of(rows: object) -> Table | None:
    """The table of a frame of pandas or polars, a mapping of columns, or a list of records; None of other rows.

    Args:
        rows: values of any type; the libraries of frames are not imported for them.

    Raises:
        DataError: it has no rows, or its columns differ in length.

    >>> table = table_of([{"age": 41.0, "sex": "f"}, {"age": 23.0, "sex": "m"}])
    >>> table.rows, table.names
    (2, ['age', 'sex'])
    """
    frame: Any = None
    for name in ("pandas", "polars"):
        library: Any = sys.modules.get(name)
        if library is not None and isinstance(rows, library.DataFrame):
            frame = rows.to_pandas() if name == "polars" else rows
    records = isinstance(rows, Sequence) and len(rows) > 0 and all(isinstance(row, Mapping) for row in rows)
    if isinstance(rows, Mapping) or records:
        try:
            frame = pandas().DataFrame(rows)
        except ValueError as error:
            raise DataError(f"the columns are no table ({error}); give each column as many values") from None
    return None if frame is None else frame_table(frame, "the frame")


def tensor_of(rows: object) -> Tensor | None:
    """Rows that are a tensor or an array, as float32, pixels of uint8 in [0, 1]; None of others."""
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(np.ascontiguousarray(rows))
    if not isinstance(rows, Tensor):
        return None
    return rows.float() / 255 if rows.dtype == torch.uint8 else rows.float()


def network_inputs(rows: object, card: Mapping[str, Any], folder: Path) -> tuple[Tensor | ImageStore, list[str]]:
    """Model input and a name per row for rows of any form, prepared as the training data of the model were.

    Args:
        rows: A source (see `dataset.inputs_for`), or rows in memory. Tensors are what the network itself reads: images
            (rows, channels, height, width) in [0, 1] or uint8, or rows (rows, features) after preprocessing.
        card: The card of the data that the model was trained on.
        folder: Its model folder.

    Raises:
        DataError: the rows do not fit the model.
    """
    source = source_of(rows)
    if source is not None:
        return inputs_for(source, folder)
    kind, shape = str(card["kind"]), tuple(card["shape"])
    x: Tensor | ImageStore | None = None
    table, texts, tensor = table_of(rows), texts_of(rows), tensor_of(rows)
    if kind == "table":
        x = table_inputs(table, folder, saved_columns(folder, card)) if table is not None else tensor
    elif kind == "text":
        texts = text.column(table, card["text"]) if table is not None else texts
        x = text.saved_reader(card, folder).ids(texts)[0].long() if texts is not None else None
    elif texts is not None:
        return images.image_store([Path(path) for path in texts], (shape[0], shape[1], shape[2])), texts
    else:
        x = tensor
    if x is None:
        raise DataError(
            f"rows of type {type(rows).__name__}: the model was trained on {kind} rows; give {REMEDY[kind]}"
        )
    if tuple(x.shape[1:]) != shape:
        raise DataError(
            f"rows of shape {tuple(x.shape[1:])}: the model was trained on {kind} rows of shape {shape}; give "
            f"{REMEDY[kind]}"
        )
    if kind != "text":
        check_inputs(x, torch.zeros(len(x)), "the rows")
    return x, [str(row + 1) for row in range(len(x))]
