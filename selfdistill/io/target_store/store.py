"""A store of targets: a folder of shards, memory-mapped files of records found by key, bound to what made the targets.

A shard is a safetensors file. First comes what finds a record: ``keys`` and ``marks`` (records,), and where its
elements start and end (``starts``, records + 1); then the columns of all elements. The name of the file is the hash of
the first part, which holds the hash of the second. The first is checked when the store is opened, the second before an
element is read. A shard appears by one rename, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ...errors import CheckpointError, DataError
from ...rng import mix_tensor
from ..tensors import FULL, MALFORMED, TEMPORARY, canonical, stream, sync_folder, write_stream
from .layouts import Columns, Dense, Layout, Sparse, Top

CARD, FORMAT, VERSION = "store.json", "selfdistill targets", 2


SHARD_BYTES, SHARD_RECORDS = 1 << 26, 1 << 18


_LAYOUTS: dict[str, type[Dense] | type[Top]] = {"Dense": Dense, "Top": Top}


Keys = NDArray[np.int64]


Flags = NDArray[np.bool_]


_END = np.iinfo(np.int64).max  # no key; so that every search ends at a key that is there


class Store:
    """Targets by key.

    A record is one key and its elements: one for a row, one a token for a sequence. What was written is there at once
    for this process, and on disk after `flush`, or when a shard is full. Any number of processes may read, and write,
    at once: shards appear whole, and the first one that has a key answers for it.

    Args:
        folder: where it is, or will be.
        layout: how targets are written; None to read what is there.
        bound: hashes of what the targets depend on, by name (``teacher``, ``data``, ``view``, ``tokenizer``, ...).

    Raises:
        CheckpointError: the folder has targets of another teacher (data, view), or of another layout; or none, where
            no layout was given; or a damaged shard.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder, Top(1000, 2), {"teacher": "a"})
    ...     store.write([7], store.layout.encode(torch.tensor([[3.0] + [0.0] * 999] * 4)), lengths=[4])
    ...     store.flush()
    ...     read, starts = Store(folder, bound={"teacher": "a"}).sparse([7])
    >>> read.ids.shape, read.log_probs.dtype, starts.tolist()
    (torch.Size([4, 2]), torch.float32, [0, 4])
    """

    def __init__(
        self, folder: Path | str, layout: Layout | None = None, bound: Mapping[str, str] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.layout, self.bound = self._opened(layout, dict(bound or {}))
        self._fresh, self._shards = list[Records](), list[StoreShard]()
        self._places: dict[int, tuple[int, int]] = {}  # key -> which of the fresh ones, which record
        self._index()

    def __len__(self) -> int:
        return len(self._record) + len(self._places)

    # opening ---------------------------------------------------------------------------------------------------------

    def _opened(self, layout: Layout | None, bound: dict[str, str]) -> tuple[Layout, dict[str, str]]:
        path = self.folder / CARD
        if not path.exists():
            if layout is None:
                raise CheckpointError(f"{self.folder} holds no targets ({CARD} is missing); give the folder of a store")
            self.folder.mkdir(parents=True, exist_ok=True)
            body = {"format": FORMAT, "version": VERSION, "layout": _named(layout), "bound": bound}
            publish(path, [canonical(body | {"sha256": _seal(body)})])
            return layout, bound
        saved, card = self._card(path)
        for name, value in bound.items():
            if card.get(name) != value:
                difference = f"{card[name]}, here {value}" if name in card else f"not named, here {value}"
                raise CheckpointError(
                    f"{self.folder} holds targets of another {name} ({difference}); give another folder"
                )
        self.layout = saved
        self.require(layout or saved)
        return saved, card

    def require(self, layout: Layout) -> None:
        """Refuse another layout than the store's (`CheckpointError`)."""
        if layout != self.layout:
            remedy = f"asked for is {layout}; give another folder"
            raise CheckpointError(f"{self.folder} holds targets as {self.layout}, {remedy}")

    def _card(self, path: Path) -> tuple[Layout, dict[str, str]]:
        try:
            body = json.loads(path.read_bytes())
            if body.pop("sha256") != _seal(body) or (body["format"], body["version"]) != (FORMAT, VERSION):
                raise ValueError("it was changed")
            fields = dict(body["layout"])
            return _LAYOUTS[fields.pop("kind")](**fields), body["bound"]
        except (*MALFORMED, OSError) as error:
            raise CheckpointError(f"{path} is damaged or of another version; delete the store's folder") from error

    def _index(self) -> None:
        """Read which keys the shards have."""
        previous = {shard.path: shard for shard in self._shards}  # what was confirmed stays so
        self._shards = [previous.get(path) or StoreShard(path) for path in shard_paths(self.folder)]
        keys = [shard.keys for shard in self._shards]
        number = np.repeat(np.arange(len(keys)), [len(k) for k in keys])
        record = np.concatenate([np.arange(len(k)) for k in keys]) if keys else np.zeros(0, np.int64)
        ordered, first = np.unique(np.concatenate(keys) if keys else np.zeros(0, np.int64), return_index=True)
        self._keys, self._which, self._record = np.append(ordered, _END), number[first], record[first]

    # writing ---------------------------------------------------------------------------------------------------------

    def write(
        self, keys: ArrayLike, columns: Columns, lengths: ArrayLike | None = None, marks: ArrayLike | None = None
    ) -> None:
        """Add records; a key that is known already keeps its target.

        Args:
            keys: whole numbers (records,).
            columns: what ``layout.encode`` made of all elements, one record after the other.
            lengths: elements of each record [default: one].
            marks: a hash of what the teacher saw for each record [default: 0].

        Raises:
            DataError: they do not belong together.
        """
        keys = np.asarray(keys, np.int64)
        lengths = np.ones(len(keys), np.int64) if lengths is None else np.asarray(lengths, np.int64)
        marks = np.zeros(len(keys), np.int64) if marks is None else np.asarray(marks, np.int64)
        self._check(keys, columns, lengths, marks)
        starts = np.concatenate([[0], lengths.cumsum()])
        _, new = np.unique(keys, return_index=True)
        new = np.sort(new[~self.contains(keys[new])])
        if not len(new):
            return
        if len(new) < len(keys):
            elements = ranges(starts[:-1][new], lengths[new])
            columns = {name: array[elements] for name, array in columns.items()}
            keys, marks, lengths = keys[new], marks[new], lengths[new]
            starts = np.concatenate([[0], lengths.cumsum()])
        self._places.update(zip(keys.tolist(), ((len(self._fresh), i) for i in range(len(keys))), strict=True))
        self._fresh.append(Records({"keys": keys, "marks": marks, "starts": starts}, columns))
        bytes_ = self.layout.bytes * sum(int(records.starts[-1]) for records in self._fresh)
        if bytes_ >= SHARD_BYTES or len(self._places) >= SHARD_RECORDS:
            self.flush()

    def _check(self, keys: Keys, columns: Columns, lengths: Keys, marks: Keys) -> None:
        expected, total = self.layout.columns(), int(lengths.sum())
        shapes = {name: (array.dtype.name, array.shape[1:]) for name, array in columns.items()}
        if shapes != expected or any(len(array) != total for array in columns.values()):
            raise DataError(f"these are not {total} elements of {self.layout}; encode them by the store's layout")
        if keys.ndim != 1 or not len(keys) == len(lengths) == len(marks) or bool((lengths < 0).any()):
            raise DataError(
                f"{len(keys)} keys, {len(lengths)} lengths and {len(marks)} marks; give one of each a record"
            )
        if bool((keys == _END).any()):
            raise DataError(f"a key is a whole number below {_END}")

    def flush(self) -> None:
        """Write all pending records to the disk.

        Raises:
            CheckpointError: the place cannot be written; what was written stays in memory.
        """
        if not self._fresh:
            return
        parts, names = self._fresh, self.layout.columns()
        lengths = np.concatenate([np.diff(part.starts) for part in parts])
        finding = {
            "keys": np.concatenate([part.keys for part in parts]),
            "marks": np.concatenate([part.marks for part in parts]),
            "starts": np.concatenate([[0], lengths.cumsum()]),
        }
        write_shard(
            self.folder, finding, {name: np.concatenate([part.columns[name] for part in parts]) for name in names}
        )
        self.refresh()

    def refresh(self) -> None:
        """Read the shards on disk again, of all processes, and drop the records that were not flushed."""
        self._fresh, self._places = [], {}
        self._index()

    # reading ---------------------------------------------------------------------------------------------------------

    def contains(self, keys: ArrayLike) -> Flags:
        """A mask of the keys that have a target, (records,)."""
        keys = np.asarray(keys, np.int64)
        on_disk = self._find(keys)[1]
        if not self._places:
            return on_disk
        fresh = np.fromiter((key in self._places for key in keys.tolist()), bool, len(keys))
        both: Flags = on_disk | fresh
        return both

    def _find(self, keys: Keys) -> tuple[Keys, Flags]:
        at = self._keys.searchsorted(keys)
        return at, self._keys[at] == keys

    def _located(self, keys: Keys) -> tuple[list[Records], Keys, Keys]:
        """Sources, and for each key which of them and which record in it."""
        at, on_disk = self._find(keys)
        sources = [*self._shards, *self._fresh]
        if on_disk.all() and len(keys):
            return sources, self._which[at], self._record[at]
        source, record = np.zeros((2, len(keys)), np.int64)
        source[on_disk], record[on_disk] = self._which[at[on_disk]], self._record[at[on_disk]]
        for i in np.flatnonzero(~on_disk):
            position = self._places.get(int(keys[i]))
            if position is None:
                raise DataError(f"{self.folder} has no target for key {int(keys[i])}; write it first")
            source[i], record[i] = len(self._shards) + position[0], position[1]
        return sources, source, record

    def marks(self, keys: ArrayLike) -> Keys:
        """The marks that were written with these keys, (records,)."""
        sources, owner, record = self._located(np.asarray(keys, np.int64))
        result = np.zeros(len(owner), np.int64)
        for source in np.unique(owner):
            mask = owner == source
            result[mask] = sources[source].marks[record[mask]]
        return result

    def read(self, keys: ArrayLike) -> tuple[Columns, Keys]:
        """All elements of some records, one record after the other, and where each starts and ends (records + 1).

        Raises:
            DataError: a key is not known.
            CheckpointError: a shard is damaged.
        """
        sources, owner, record = self._located(np.asarray(keys, np.int64))
        lengths, begin = np.empty((2, len(owner)), np.int64)
        used = set(owner.tolist())
        for source in used:
            sources[source].confirm()
            mask = owner == source if len(used) > 1 else slice(None)
            starts, rows = sources[source].starts, record[mask]
            begin[mask], lengths[mask] = starts[rows], starts[rows + 1] - starts[rows]
        bounds = np.zeros(len(owner) + 1, np.int64)
        lengths.cumsum(out=bounds[1:])
        if bool((lengths == 1).all()):
            return self._rows(sources, owner, begin), bounds
        slices = list(zip(owner.tolist(), begin.tolist(), (begin + lengths).tolist(), strict=True))
        columns = {name: [sources[i].columns[name][a:b] for i, a, b in slices] for name in self.layout.columns()}
        return {name: np.concatenate(parts) if len(parts) > 1 else parts[0] for name, parts in columns.items()}, bounds

    def _rows(self, sources: list[Records], owner: Keys, elements: Keys) -> Columns:
        """Columns of records of one element each, in one gathering a source."""
        columns = {n: np.empty((len(owner), *shape), dtype) for n, (dtype, shape) in self.layout.columns().items()}
        for source in set(owner.tolist()):
            mask = owner == source
            for name, column in sources[source].columns.items():
                columns[name][mask] = column[elements[mask]]
        return columns

    def sparse(self, keys: ArrayLike) -> tuple[Sparse, Keys]:
        """The most probable outputs of all elements of some records, and where each record starts and ends.

        ``ids`` and ``log_probs`` are what `selfdistill.core.logits.SparseLogProbs` takes.
        """
        if not isinstance(self.layout, Top):
            raise DataError(f"{self.folder} holds targets as {self.layout}, all outputs of each; use read")
        columns, bounds = self.read(keys)
        return self.layout.sparse(columns), bounds


def ranges(starts: Keys, lengths: Keys) -> Keys:
    """start, start + 1, ... for each start and its length, one after another.

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    ends = lengths.cumsum()
    return np.repeat(starts - ends + lengths, lengths) + np.arange(ends[-1] if len(ends) else 0)


def _named(layout: Layout) -> dict[str, Any]:
    return {"kind": type(layout).__name__, **dataclasses.asdict(layout)}


def _seal(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()


_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@lru_cache(maxsize=16)
def _weights(count: int, device: torch.device) -> Tensor:
    """Odd numbers of 64 bits, so that no change of a single word goes unseen."""
    return mix_tensor(torch.arange(count, device=device)) | 1


def marks(x: Tensor) -> Tensor:
    """A 64-bit hash of the bits of each row, (rows,), int64.

    Equation::

        h_i = mix(sum_j w_j x_ij mod 2^64),  w_j odd and fixed

    Source: multilinear hashing; Lemire and Kaser, Strongly Universal String Hashing is Fast, The Computer Journal 2014.

    >>> x = torch.rand(3, 4, 4)
    >>> bool((marks(x) == marks(x.clone())).all()), bool((marks(x) == marks(x + 1e-6)).any())
    (True, False)
    """
    rows = x.detach().reshape(len(x), -1).contiguous()
    rows = (
        rows.view(torch.uint8) if rows.is_complex() or rows.dtype == torch.bool else rows.view(_BY_SIZE[rows.itemsize])
    )
    return mix_tensor((rows.long() * _weights(rows.shape[1], rows.device)).sum(1)).cpu()


SUFFIX = ".safetensors"


FINDING = ("keys", "marks", "starts")  # int64, so that they lie first


ELEMENTS = "elements"  # under which the first part holds the hash of the second


STALE = 3600.0  # seconds after which a temporary file is of a process that died


Arrays = Mapping[str, NDArray[Any]]


class Records:
    """Records in memory: ``keys``, ``marks``, ``starts``, and the elements' columns."""

    def __init__(self, finding: Arrays, columns: Arrays) -> None:
        self.keys, self.marks, self.starts = (finding[name] for name in FINDING)
        self.columns = columns

    def confirm(self) -> None:
        """Check the elements against their checksum."""


class StoreShard(Records):
    """Records on disk.

    Raises:
        CheckpointError: it is damaged; the file is named, with its remedy.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._confirmed = path, False
        try:
            self._map: Any = np.memmap(path, np.uint8, "r").view(np.ndarray)  # plain: its subclass is slow
            header, arrays, self._first = _arrays(self._map)
            self._hash = header["__metadata__"][ELEMENTS]
        except (*MALFORMED, OSError, UnicodeDecodeError) as error:
            raise self._damaged("it was cut short or overwritten") from error
        if _file_name(self._map[: self._first]) != path.stem.rpartition("-")[2]:
            raise self._damaged("its records differ from their checksum")
        super().__init__({name: np.array(arrays.pop(name)) for name in FINDING}, arrays)

    def confirm(self) -> None:
        """Read all elements once and compare them with their checksum."""
        if not self._confirmed:
            if hashlib.sha256(self._map[self._first :]).hexdigest() != self._hash:
                raise self._damaged("its targets differ from their checksum")
            self._confirmed = True

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged ({reason}); delete it, and its targets are asked for again")


def _file_name(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _arrays(raw: NDArray[np.uint8]) -> tuple[dict[str, Any], dict[str, NDArray[Any]], int]:
    """Header, arrays by name as views of the file, and where its second part begins."""
    begin = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(bytes(raw[8:begin]))
    arrays, first, last = {}, begin, begin
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = (begin + int(offset) for offset in entry["data_offsets"])
        dtype = {"I64": "<i8", "U32": "<u4", "F32": "<f4", "F16": "<f2"}[entry["dtype"]]
        arrays[name] = raw[start:end].view(dtype).reshape(entry["shape"])
        first, last = (max(first, end) if name in FINDING else first), max(last, end)
    if last != len(raw):
        raise ValueError("the file has another length than its header says")
    return header, arrays, first


def publish(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """A whole file or none; several processes may write the same one.

    Raises:
        CheckpointError: the place cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        write_stream(temporary, chunks)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        reason = "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
        raise CheckpointError(
            f"{path.parent}: {reason}; what is there stays; free some space or give another"
        ) from error


def write_shard(folder: Path, finding: Arrays, columns: Arrays) -> Path:
    """Add a shard; a process that is killed here leaves a temporary file and no other."""
    placed = sorted(columns, key=lambda name: -columns[name].dtype.itemsize)  # the order in which `stream` writes
    second = hashlib.sha256()
    for name in placed:
        second.update(np.ascontiguousarray(columns[name]).view(np.uint8).data)
    arrays = {**{name: finding[name] for name in FINDING}, **{name: columns[name] for name in placed}}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    chunks = list(stream(tensors, {ELEMENTS: second.hexdigest()}))
    length, first, size = sum(finding[name].nbytes for name in FINDING) + len(chunks[0]), [], 0
    for chunk in chunks:
        if size < length:
            first.append(chunk)
            size += len(chunk)
    present = shard_paths(folder)
    name = _file_name(b"".join(first))
    path = next((p for p in present if p.stem.endswith(name)), folder / f"{len(present) + 1:06d}-{name}{SUFFIX}")
    if path not in present:  # several processes that train together write the same
        publish(path, chunks)
    return path


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their names; unfinished files of dead processes are removed."""
    for temporary in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - temporary.stat().st_mtime > STALE:
                temporary.unlink()
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(TEMPORARY))
