"""Trees of tensors as plain files: safetensors for the tensors, JSON for everything else, never pickle.

The layout of a safetensors file is public (https://huggingface.co/docs/safetensors). It is written here in a
stream, so that hashing costs no second reading and a large model no second copy, and read by the safetensors
library, which validates it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..errors import CheckpointError


def digest(weights: Mapping[str, Tensor]) -> str:
    """Hash of a state's names and bits."""
    h = hashlib.sha256()
    for name, value in sorted(weights.items()):
        h.update(name.encode())
        values = value.detach().cpu().contiguous()
        h.update(values.view(torch.uint8).numpy().tobytes() if values.dim() else str(values.item()).encode())
    return h.hexdigest()[:16]


Tree = Any  # nested dict, list, tuple of tensors, numbers, strings, bools and None

TEMPORARY = ".tmp-"  # what begins so was never finished


FULL = (errno.ENOSPC, errno.EDQUOT)


# what reading bytes that are no safetensors, or a skeleton that is none of ours, can raise
MALFORMED = (safetensors.SafetensorError, ValueError, LookupError, TypeError, AssertionError, RuntimeError)


_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")  # zip: torch.save


_PIECE = 1 << 20  # bytes hashed and written at a time, so that a piece is still in the processor's cache


_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def _tensor(value: Tensor, position: str) -> Tensor:
    if type(value) not in (Tensor, torch.nn.Parameter):  # a sharded one would lose all but this rank's part
        kind = type(value).__name__
        raise TypeError(f"{position}: a checkpoint holds whole tensors, not {kind}; gather it first")
    if value.layout != torch.strided or value.device.type == "meta" or value.dtype not in _DTYPES:
        kind = f"{value.layout} {value.dtype} tensor on {value.device}"
        raise TypeError(f"{position}: a checkpoint cannot hold a {kind}; convert it first")
    return value.detach()


def pack(node: Tree, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON skeleton of a tree; its tensors go to `tensors` under a name made from their path."""
    where = path or "the root"
    if isinstance(node, Tensor):
        name = path.encode("utf-8", "backslashreplace").decode() or "value"
        while name in tensors or name == "__metadata__":  # keys 0 and "0" share a path, say
            name += "'"
        tensors[name] = _tensor(node, where)
        return {"tensor": name}
    if node is None or type(node) in (bool, int, str):
        return node
    if type(node) is float:  # a finite float is exact in JSON; the others are kept as their eight bytes
        return node if math.isfinite(node) else {"float": struct.pack(">d", node).hex()}
    if type(node) in (list, tuple):
        items = [pack(item, f"{path}/{i}".lstrip("/"), tensors) for i, item in enumerate(node)]
        return items if type(node) is list else {"tuple": items}
    if isinstance(node, Mapping):
        for key in node:
            if not (key is None or type(key) in (bool, int, str)):
                raise TypeError(f"{where}: a checkpoint's keys are str, int, bool or None, not {key!r}")
        return {"dict": [[k, pack(v, f"{path}/{k}".lstrip("/"), tensors)] for k, v in node.items()]}
    raise TypeError(
        f"{where}: a checkpoint holds tensors, numbers, strings, bools, None, dicts, lists and tuples, "
        f"not {type(node).__name__}; convert it first"
    )


def unpack(node: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree of a skeleton and its tensors; one of the MALFORMED errors when they do not fit."""
    if isinstance(node, list):
        return [unpack(item, tensors) for item in node]
    if not isinstance(node, dict):
        return node
    match node:
        case {"tensor": str(name), **rest} if not rest:
            return tensors[name]
        case {"float": str(bits), **rest} if not rest:
            return struct.unpack(">d", bytes.fromhex(bits))[0]
        case {"tuple": list(items), **rest} if not rest:
            return tuple(unpack(item, tensors) for item in items)
        case {"dict": list(pairs), **rest} if not rest:
            return {key: unpack(value, tensors) for key, value in pairs}
    raise ValueError(f"unknown entry {sorted(node)}")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, without which a new or renamed file may be lost in a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_stream(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, int | str]:
    """Write and flush one file; its size in bytes and SHA-256, taken on the way."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            digest.update(chunk)
            size += file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def stream(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of a safetensors file. Widest numbers first, so that each tensor lies aligned."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, tensor in ordered:
        if tensor.numel():
            row = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
            row = row if row.stride(0) == 1 else row.clone(memory_format=torch.contiguous_format)  # a single number
            flat = row.view(torch.uint8).numpy().data
            yield from (flat[at : at + _PIECE] for at in range(0, len(flat), _PIECE))


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, indented, no NaN."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode(errors="backslashreplace")  # bytes of a path that are no Unicode: an escape of JSON


def is_pickle(data: bytes) -> bool:
    """Whether the first 9 bytes are those of a pickle or of a zip, and not a safetensors header's length."""
    return data.startswith(_PICKLES) and data[8:9] not in (b"", b"{")


def refuse(path: Path, fault: str) -> NoReturn:
    """Raise the error of a file that this package did not write."""
    raise CheckpointError(
        f"{path}: {fault} is never read, because it could run code; only .safetensors and .json written by "
        "selfdistill are: move it away and resume from a checkpoint you trust"
    )


def _replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        write_stream(temporary, chunks)
        os.rename(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            remedy = "free some space" if error.errno in FULL else "check the place and its permissions"
            raise CheckpointError(f"{path}: cannot be written ({error.strerror}); {remedy} and try again") from error
        raise


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON (sorted keys), whole or not at all; ValueError for NaN and infinity.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_json(Path(folder, "run.json"), {"seed": 0, "epochs": 3})
    ...     Path(folder, "run.json").read_text()
    '{\\n  "epochs": 3,\\n  "seed": 0\\n}\\n'
    """
    _replace(Path(path), [canonical(value)])


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, whole or not at all; tied weights are written once per name.

    Raises TypeError for a tensor that cannot be stored (sparse, sharded, meta), ValueError for the reserved
    name ``__metadata__``, CheckpointError when the place cannot be written.
    """
    if "__metadata__" in tensors:
        raise ValueError("__metadata__ is a reserved name in a safetensors file; rename this tensor")
    if not all(isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise TypeError("the metadata of a safetensors file are strings; convert the other values")
    _replace(Path(path), stream({name: _tensor(tensor, name) for name, tensor in tensors.items()}, metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file by name (sorted), on the CPU and writable.

    Raises CheckpointError when the file is missing or damaged, or holds something else (a pickle, say).

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_tensors(Path(folder, "model.safetensors"), {"bias": torch.tensor([0.5, -1.0])})
    ...     read_tensors(Path(folder, "model.safetensors"))
    {'bias': tensor([ 0.5000, -1.0000])}
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    try:
        return dict(sorted(safetensors.torch.load(data).items()))
    except MALFORMED as error:
        if is_pickle(data):
            refuse(path, "a pickle")
        raise CheckpointError(
            f"{path}: no intact safetensors file ({error}); restore it from a copy or write it again"
        ) from error
