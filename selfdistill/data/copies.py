"""Rows that belong together: equal inputs share a split, and so do the rows of a group.

A copy of a training row in the test split measures memory, so `splits.make_splits` draws whole groups. Near-copies of
images are counted and stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from ..io.expressions import one_line

Floats = NDArray[np.float64]


Ints = NDArray[np.int64]


MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: spreads values that differ in a few bits


MOST_LISTED = 1000  # inputs with different labels that a record names


MOST_EXAMPLES = 5


# hashes of rows -------------------------------------------------------------------------------------------------------


def numeric_values(column: Any) -> Floats | None:
    """A column of numbers, booleans or times (in seconds) as float64 (rows,), nan where missing; else None."""
    if hasattr(column, "to_physical"):
        return _polars_values(column)
    letter = column.dtype.kind if hasattr(column.dtype, "kind") else "O"
    if letter in "mM":
        times = column.to_numpy(dtype="timedelta64[ns]" if letter == "m" else "datetime64[ns]")
        return np.where(np.isnat(times), np.nan, times.astype(np.int64) / 1e9)
    return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan)) if letter in "iufb" else None


def _polars_values(column: Any) -> Floats | None:
    import polars

    kind, unit = column.dtype.base_type(), 1.0
    if kind in (polars.Date, polars.Datetime):
        column, unit = column.dt.epoch("us"), 1e6
    elif kind == polars.Duration:
        column, unit = column.dt.total_microseconds(), 1e6
    elif kind == polars.Time:
        column, unit = column.cast(polars.Int64), 1e9
    elif not (column.dtype.is_numeric() or kind == polars.Boolean):
        return None
    return np.asarray(column.cast(polars.Float64).to_numpy()) / unit


def category_codes(column: Any) -> tuple[Ints, list[str]]:
    """The index (rows,) of each value's text among the sorted distinct texts, -1 where missing; and those texts.

    >>> import pandas as pd
    >>> codes, texts = category_codes(pd.Series(["b", None, "a", "b"]))
    >>> codes.tolist(), texts
    ([1, -1, 0, 1], ['a', 'b'])
    """
    if hasattr(column, "to_physical"):
        import polars

        texts = column.cast(polars.String)
        names = texts.unique().drop_nulls().sort()
        codes = texts.cast(polars.Enum(names)).to_physical().cast(polars.Int64).fill_null(-1)
        return np.asarray(codes.to_numpy()), names.to_list()
    if hasattr(column, "cat"):
        codes, values = np.asarray(column.cat.codes, dtype=np.int64), column.cat.categories
    else:
        codes, values = column.factorize()
    texts = [str(value) for value in values]
    names = sorted(set(texts))
    index = {text: number for number, text in enumerate(names)}
    return np.array([*(index[text] for text in texts), -1], dtype=np.int64)[codes], names


def is_category(column: Any) -> bool:
    """Whether a column was made categorical, so that its texts are names whatever they look like."""
    if hasattr(column, "to_physical"):
        import polars

        return column.dtype.base_type() in (polars.Categorical, polars.Enum)
    return hasattr(column, "cat")


def column_bits(values: Any) -> NDArray[np.uint64]:
    """Each value as 64 bits, equal where the values are equal."""
    column: Any = numeric_values(values) if hasattr(values, "to_numpy") else np.asarray(values)
    if column is None:
        column = category_codes(values)[0]
    if column.dtype.kind in "biuf":
        return np.asarray((column.astype(np.float64) + 0.0).view(np.uint64))  # + 0.0: there are two zeros
    return np.unique(column.astype(str), return_inverse=True)[1].astype(np.uint64)


def row_hashes(X: Any, seed: int) -> NDArray[np.uint64]:
    """A hash of each row (rows,), the same for equal rows; of an array (rows, ...), a frame or a sparse matrix."""
    hashes = np.full(X.shape[0], np.uint64(seed) + MULTIPLIER, dtype=np.uint64)
    if hasattr(X, "tocsr"):
        columns: list[Any] = [np.asarray(X.tocsr() @ np.random.default_rng(seed).random(X.shape[1]))]
    elif hasattr(X, "columns"):
        columns = [X[name] for name in X.columns]
    else:
        columns = list(np.asarray(X).reshape(len(hashes), -1).T)
    with np.errstate(over="ignore"):
        for column in columns:
            hashes = (hashes ^ column_bits(column)) * MULTIPLIER
            hashes ^= hashes >> np.uint64(29)
    return hashes


# groups of rows -------------------------------------------------------------------------------------------------------


class RowGroups(NamedTuple):
    """The rows that share a split: numbers of groups (n,) int64, in the order of their first rows."""

    copies: Tensor  # equal where the inputs are equal
    groups: Tensor  # equal where rows are connected by equal inputs and by equal values of a user's group
    time: Tensor | None = None  # (n,) float64; the splits follow it, the earliest rows teach


def row_groups(inputs: Any, groups: Any = None, time: Any = None) -> RowGroups | None:
    """The groups of rows; None where every row is alone and nothing orders them.

    Args:
        inputs: rows as of `row_hashes`.
        groups: the group of each row (n,), values of any type without a missing one.
        time: the time of each row (n,) as numbers.

    >>> row_groups(np.array([[1.0], [2.0], [1.0], [3.0]]), groups=["a", "b", "c", "c"]).groups.tolist()
    [0, 1, 0, 0]
    """
    copies = numbered(row_hashes(inputs, 0))
    codes = connect(copies, groups)
    if time is None and int(codes.max(initial=-1)) + 1 == len(codes):
        return None
    moment = None if time is None else torch.as_tensor(np.asarray(time, dtype=np.float64))
    return RowGroups(torch.from_numpy(copies), torch.from_numpy(codes), moment)


def check_values(values: Any, rows: int, name: str) -> NDArray[Any]:
    """Values of rows (n,) as an array.

    Raises:
        DataError: they are of another number, or one is missing.
    """
    array = np.asarray(values)
    if array.shape != (rows,):
        raise DataError(f"{name} of shape {array.shape} for {rows} rows; give one value for each")
    if array.dtype.kind in "fcmM":
        missing = np.isnat(array) if array.dtype.kind in "mM" else np.isnan(array)
    else:
        missing = np.array([value is None or str(value) in ("nan", "NaT", "<NA>") for value in array], dtype=bool)
    if missing.any():
        raise DataError(f"{name}: row {int(missing.argmax())} (from 0) has none; fill it in, or leave the row out")
    return array


def time_values(times: NDArray[Any], name: str) -> Floats:
    """Times (n,), numbers or dates, as numbers in their order.

    Raises:
        DataError: they are neither.

    >>> time_values(np.array(["2024-03-01", "2024-02-01"]), "time").tolist()
    [1709251200.0, 1706745600.0]
    """
    try:
        if times.dtype.kind not in "biuf":
            times = times.astype("datetime64[ns]").astype(np.int64) / 1e9
        return np.asarray(times, dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{name}: {one_line(times[0], 40)!r} is no time; give numbers, dates or ISO 8601 texts"
        ) from None


def numbered(values: NDArray[Any]) -> Ints:
    """Values (n,) as numbers from 0 on, in the order of their first rows."""
    _, first, codes = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[codes.reshape(-1)], dtype=np.int64)


def connect(copies: Ints, groups: Any = None) -> Ints:
    """The groups of rows (n,) that are connected by equal numbers of ``copies`` or equal values of ``groups``."""
    if groups is None:
        return copies
    codes = numbered(np.asarray(groups))
    if int(copies.max(initial=-1)) + 1 == len(copies):
        return codes
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shift = int(copies.max()) + 1
    size = shift + int(codes.max()) + 1
    edges = coo_array((np.ones(len(copies), dtype=np.int8), (copies, shift + codes)), shape=(size, size))
    return numbered(connected_components(edges, directed=False)[1][copies])


# near-copies of images ------------------------------------------------------------------------------------------------


NEAR = 8  # bits of 256 in which the hashes of near-copies differ at most
SHARE = 10  # and at most one in so many of the bits that one of them has set: a letter on paper sets few


WINDOW = 8  # neighbours in the order of a band that are compared


def near_copies(gradients: Tensor, parts: Tensor, most: int = MOST_EXAMPLES) -> tuple[Tensor, Tensor]:
    """The near-copies across splits: rows whose hashes differ in few bits.

    Hashes are cut into 16 bands of 16 bits. A near-copy has most bands of its original, so rows are sorted by each band
    and compared with the next ones: the cost follows the number of rows, of which each may be in many pairs.

    Args:
        gradients: hashes (n, 32) uint8.
        parts: the split of each row (n,), -1 for none.
        most: the number of pairs that are named.

    Returns:
        The rows (k,) int64 that have a near-copy in another split, and the first pairs (pairs, 2).
    """
    order = np.random.RandomState(0).permutation(256)  # neighbouring cells are alike, so a band takes distant ones
    bits = np.ascontiguousarray(np.packbits(np.unpackbits(gradients.numpy(), axis=1)[:, order], axis=1))
    words, part, pairs = bits.view(np.uint64), parts.numpy(), np.zeros((0, 2), dtype=np.int64)
    paired = np.zeros(len(bits), dtype=bool)
    for band in bits.view(np.uint16).T:
        rows = np.argsort((band.astype(np.uint64) << np.uint64(48)) | (words[:, 0] >> np.uint64(16)))
        sorted_band, sorted_part = band[rows], part[rows]
        for step in range(1, min(WINDOW, len(rows) - 1) + 1):
            equal = np.flatnonzero(sorted_band[:-step] == sorted_band[step:])
            here, there = sorted_part[equal], sorted_part[equal + step]
            equal = equal[(here != there) & (here >= 0) & (there >= 0)]
            left, right = rows[equal], rows[equal + step]
            apart = np.unpackbits(bits[left] ^ bits[right], axis=1).sum(axis=1)
            either = np.unpackbits(bits[left] | bits[right], axis=1).sum(axis=1)
            near = (apart <= NEAR) & (SHARE * apart <= either)
            close = np.sort(np.stack([left[near], right[near]], axis=1), axis=1)
            paired[close] = True
            pairs = np.unique(np.concatenate([pairs, _first(close, most)]), axis=0)[:most]
    return torch.from_numpy(np.flatnonzero(paired)), torch.from_numpy(pairs)


def _first(pairs: Ints, most: int) -> Ints:
    """The least pairs, in any order."""
    least = np.unique(pairs[:, 0])[:most]
    return pairs[pairs[:, 0] <= least[-1]] if len(least) else pairs


# what a run says of copies --------------------------------------------------------------------------------------------


class Conflict(NamedTuple):
    """Equal inputs with different labels: the rows, from 1, their labels and, where rows are files, their names."""

    rows: list[int]
    labels: list[str]
    names: list[str]


@dataclass(frozen=True)
class CopyReport:
    """The copies among the rows of a data set.

    Attributes:
        rows: the number of rows with an equal one; distinct: of different inputs among them.
        conflicts: equal inputs with different labels, at most `MOST_LISTED`; conflicting: the number of their rows.
        across: ids of test rows that equal a row outside of the test split (of the user's own split).
        validated: the number of validation rows that equal a training row (of the user's own split).
        near: pairs of images in different splits that differ little, at most `MOST_EXAMPLES`; nearly: rows with one.
        left_out: rows in no split, since their group is in another one.
    """

    rows: int = 0
    distinct: int = 0
    conflicting: int = 0
    conflicts: tuple[Conflict, ...] = ()
    across: Tensor = torch.zeros(0, dtype=torch.int64)
    validated: int = 0
    nearly: int = 0
    near: tuple[tuple[str, str], ...] = ()
    left_out: int = 0

    def describe(self) -> dict[str, Any]:
        """The entries of a run's record, as JSON values; empty where there is nothing to say."""
        numbers = {
            "rows": self.rows,
            "distinct": self.distinct,
            "conflicting": self.conflicting,
            "conflicts": [conflict._asdict() for conflict in self.conflicts],
            "across": len(self.across),
            "validated": self.validated,
            "near": {"rows": self.nearly, "examples": [list(pair) for pair in self.near]} if self.nearly else None,
            "left_out": self.left_out,
        }
        entries = {name: value for name, value in numbers.items() if value}
        return {"copies": entries} if entries else {}


def conflict_text(conflict: dict[str, Any]) -> str:
    """The first row of each label among equal inputs, in words; at most `MOST_EXAMPLES`.

    >>> conflict_text({"rows": [1, 3, 4], "labels": ["no", "yes", "yes"], "names": []})
    "rows 1 (label 'no') and 3 (label 'yes')"
    """
    first: dict[str, Any] = {}
    for name, label in zip(conflict["names"] or conflict["rows"], conflict["labels"], strict=True):
        first.setdefault(label, name)
    shown = [f"{one_line(name)} (label '{one_line(label, 40)}')" for label, name in first.items()][:MOST_EXAMPLES]
    listed = f"{', '.join(shown[:-1])} and {shown[-1]}"
    return listed if conflict["names"] else f"rows {listed}"


def notices(name: str, record: dict[str, Any]) -> list[str]:
    """Copies in sentences, from the entries of a record of data."""
    copies, lines = record.get("copies", {}), list[str]()
    if copies.get("rows"):
        lines.append(
            f"{name}: {copies['rows']} rows are copies of each other ({copies['distinct']} distinct inputs); copies "
            "share a split where it is drawn"
        )
    if copies.get("across"):
        lines.append(
            f"{name}: {copies['across']} rows of the test split are copies of training or validation rows; the test is "
            "scored with and without them"
        )
    if copies.get("validated"):
        lines.append(f"{name}: {copies['validated']} rows of the validation split are copies of training rows")
    if copies.get("conflicting"):
        lines.append(
            f"{name}: {copies['conflicting']} rows are copies with different labels, such as "
            f"{conflict_text(copies['conflicts'][0])}; `selfdistill label-errors` lists them"
        )
    if near := copies.get("near"):
        pairs = "; ".join(" and ".join(pair) for pair in near["examples"])
        lines.append(
            f"{name}: {near['rows']} validation or test images are nearly those of another split, so scores may be "
            f"too good: {pairs}; where they show one thing, remove one of each, or keep them together by --groups in a "
            "list of images"
        )
    if copies.get("left_out"):
        lines.append(f"{name}: {copies['left_out']} rows are in no split, since their group or time is in another one")
    return lines
