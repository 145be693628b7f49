"""A segment of a store: one file of records found by key, memory-mapped and checked, and the hash of a row's inputs.

A shard is a safetensors file. First comes what finds a record: ``keys`` and ``marks`` (records,), and where its
elements start and end (``starts``, records + 1); then the columns of all elements. The file's name is the hash of the
first part, which holds the hash of the second. The first is checked when the store is opened, the second before an
element is read. A shard appears by one rename, whole or not at all.
"""

from __future__ import annotations

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
from numpy.typing import NDArray
from torch import Tensor

from ...errors import CheckpointError
from ...rng import _mix_tensor
from ..tensors import FULL, MALFORMED, TEMPORARY, put, stream, sync_folder

_BY_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@lru_cache(maxsize=16)
def _weights(count: int, device: torch.device) -> Tensor:
    """Odd numbers of 64 bits, so that no change of a single word goes unseen."""
    return _mix_tensor(torch.arange(count, device=device)) | 1


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
    return _mix_tensor((rows.long() * _weights(rows.shape[1], rows.device)).sum(1)).cpu()


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
        """Are the elements what was written?"""


class Shard(Records):
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
        if _name(self._map[: self._first]) != path.stem.rpartition("-")[2]:
            raise self._damaged("its records differ from their checksum")
        super().__init__({name: np.array(arrays.pop(name)) for name in FINDING}, arrays)

    def confirm(self) -> None:
        """Read all elements once and compare them with their checksum."""
        if not self._confirmed:
            if hashlib.sha256(self._map[self._first :]).hexdigest() != self._hash:
                raise self._damaged("its targets differ from their checksum")
            self._confirmed = True

    def _damaged(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is damaged ({why}); delete it, and its targets are asked for again")


def _name(first: Any) -> str:
    return hashlib.sha256(first).hexdigest()[:32]


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


def appear(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """A whole file or none; several processes may write the same one.

    Raises:
        CheckpointError: the place cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        put(temporary, pieces)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        why = "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
        raise CheckpointError(f"{path.parent}: {why}; what is there stays; free some space or give another") from error


def write(folder: Path, finding: Arrays, columns: Arrays) -> Path:
    """Add a shard; a process that is killed here leaves a temporary file and no other."""
    placed = sorted(columns, key=lambda name: -columns[name].dtype.itemsize)  # the order in which `stream` writes
    second = hashlib.sha256()
    for name in placed:
        second.update(np.ascontiguousarray(columns[name]).view(np.uint8).data)
    arrays = {**{name: finding[name] for name in FINDING}, **{name: columns[name] for name in placed}}
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    pieces = list(stream(tensors, {ELEMENTS: second.hexdigest()}))
    length, first, size = sum(finding[name].nbytes for name in FINDING) + len(pieces[0]), [], 0
    for piece in pieces:
        if size < length:
            first.append(piece)
            size += len(piece)
    present = shards(folder)
    name = _name(b"".join(first))
    path = next((p for p in present if p.stem.endswith(name)), folder / f"{len(present) + 1:06d}-{name}{SUFFIX}")
    if path not in present:  # several processes that train together write the same
        appear(path, pieces)
    return path


def shards(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their names; what a dead process left unfinished is removed."""
    for left in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    return sorted(path for path in folder.glob(f"*{SUFFIX}") if not path.name.startswith(TEMPORARY))
