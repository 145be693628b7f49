"""Columns of pandas and polars frames: numbers as they are, times in seconds, anything else by its text."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def numbers(column: Any) -> NDArray[np.float64] | None:
    """A column of numbers, booleans or times (in seconds) as float64 (rows,), nan where missing; else None."""
    if hasattr(column, "to_physical"):
        return _polars_numbers(column)
    letter = getattr(column.dtype, "kind", "O")
    if letter in "mM":
        whole = column.to_numpy(dtype="timedelta64[ns]" if letter == "m" else "datetime64[ns]")
        return np.where(np.isnat(whole), np.nan, whole.astype(np.int64) / 1e9)
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)) if letter in "iufb" else None


def _polars_numbers(column: Any) -> NDArray[np.float64] | None:
    import polars

    kind = column.dtype.base_type()
    if kind in (polars.Date, polars.Datetime):
        return np.asarray(column.dt.epoch("us").cast(polars.Float64).to_numpy()) / 1e6
    if kind == polars.Duration:
        return np.asarray(column.dt.total_microseconds().cast(polars.Float64).to_numpy()) / 1e6
    if kind == polars.Time:
        return np.asarray(column.cast(polars.Int64).cast(polars.Float64).to_numpy()) / 1e9
    plain = column.dtype.is_numeric() or kind == polars.Boolean
    return np.asarray(column.cast(polars.Float64).to_numpy()) if plain else None


def coded(column: Any) -> tuple[NDArray[np.int64], list[str]]:
    """A column as places (rows,) among its sorted distinct texts, -1 where missing; and those texts.

    >>> import pandas as pd
    >>> codes, texts = coded(pd.Series(["b", None, "a", "b"]))
    >>> codes.tolist(), texts
    ([1, -1, 0, 1], ['a', 'b'])
    """
    if hasattr(column, "to_physical"):
        import polars

        texts = column.cast(polars.String)
        names = texts.unique().drop_nulls().sort()
        found = texts.cast(polars.Enum(names)).to_physical().cast(polars.Int64).fill_null(-1)
        return np.asarray(found.to_numpy()), names.to_list()
    if hasattr(column, "cat"):
        codes, values = np.asarray(column.cat.codes, dtype=np.int64), column.cat.categories
    else:
        codes, values = column.factorize()
    texts = [str(value) for value in values]
    names = sorted(set(texts))
    place = {text: number for number, text in enumerate(names)}
    return np.array([*(place[text] for text in texts), -1], dtype=np.int64)[codes], names
