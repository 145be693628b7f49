"""Exact, atomic checkpoints: folders of safetensors and JSON that a manifest vouches for.

A checkpoint is a folder ``ckpt-00000012``. It is built under a temporary name, every file is flushed to the
disk, ``manifest.json`` lists each file with its size and SHA-256, and one rename makes the whole visible. A
process killed at any moment therefore leaves the earlier checkpoint or the new one, never a mixture, and a
reader believes nothing that the manifest does not confirm. A tensor of 16 MiB or more has a file of its own, which is
a link to that of the checkpoint before if its bytes are the same.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ..errors import CheckpointError
from .files import PICKLED
from .tensors import (
    FULL,
    MALFORMED,
    TEMPORARY,
    Tree,
    canonical,
    is_pickle,
    pack,
    read_tensors,
    refuse,
    stream,
    sync_folder,
    unpack,
    write_json,
    write_stream,
    write_tensors,
)

__all__ = ["Tree", "newest", "read", "read_tensors", "write", "write_json", "write_tensors"]

_VERSION = 2


_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EINVAL)


_FORMAT = "selfdistill checkpoint"


_MANIFEST = "manifest.json"


_CHECKPOINT = re.compile(r"ckpt-(\d{8,})")


_COMPONENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


_SUFFIXES = (".json", ".safetensors")


_OWN_FILE = 1 << 24  # bytes: so large a tensor has a file of its own, ``component~3.safetensors``


class _DamageError(CheckpointError):
    """Why a checkpoint cannot be believed, without its path."""


def _existing(folder: Path) -> list[tuple[int, Path]]:
    """The folders named like a checkpoint, newest first."""
    matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted(((int(name[1]), path) for name, path in matches if name), reverse=True)


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system releases it when a process dies, so what is temporary is stale."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{folder}: another process is writing checkpoints here; end it or choose another run folder"
            ) from None
        except OSError as error:  # some network file systems have no locks; go on as the only writer
            if error.errno not in _NO_LOCKS:
                raise
        yield
    finally:
        with suppress(OSError):  # a child forked meanwhile would keep the lock if we only closed
            fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _seal(ordinal: int, files: Mapping[str, Any]) -> bytes:
    """The manifest's bytes. It carries its own hash, because nothing else vouches for it."""
    body = {"format": _FORMAT, "version": _VERSION, "ordinal": ordinal, "files": files}
    return canonical(body | {"sha256": hashlib.sha256(canonical(body)).hexdigest()})


def _build(
    temporary: Path, ordinal: int, packed: Mapping[str, tuple[bytes, dict[str, Tensor]]], earlier: Mapping[str, Path]
) -> None:
    temporary.mkdir()
    files: dict[str, dict[str, int | str]] = {}
    for name, (skeleton, tensors) in packed.items():
        large = {key: tensor for key, tensor in tensors.items() if tensor.nbytes >= _OWN_FILE}
        small = {key: tensor for key, tensor in tensors.items() if key not in large}
        files[f"{name}.safetensors"] = write_stream(temporary / f"{name}.safetensors", stream(small))
        files[f"{name}.json"] = write_stream(temporary / f"{name}.json", [skeleton])
        for number, (key, tensor) in enumerate(large.items(), 1):
            file = temporary / f"{name}~{number}.safetensors"
            files[file.name] = _link(earlier, file, {key: tensor}) or write_stream(file, stream({key: tensor}))
    write_stream(temporary / _MANIFEST, [_seal(ordinal, files)])
    sync_folder(temporary)


def _large_files(path: Path | None) -> dict[str, Path]:
    """The files of large tensors in a checkpoint by their hashes; none where its manifest is damaged."""
    try:
        files = _manifest(path) if path else {}
    except (CheckpointError, OSError):
        return {}
    return {files[name]["sha256"]: path / name for name in files if "~" in name and path}


def _link(earlier: Mapping[str, Path], file: Path, tensors: dict[str, Tensor]) -> dict[str, int | str] | None:
    """Let a file be one of the checkpoint before, if that has the same bytes; what is on the disk is read for it."""
    if not earlier:
        return None
    digest, size = hashlib.sha256(), 0
    for chunk in stream(tensors):
        digest.update(chunk)
        size += len(chunk)
    listed: dict[str, int | str] = {"size": size, "sha256": digest.hexdigest()}
    try:
        _confirmed(earlier[digest.hexdigest()], listed)
        os.link(earlier[digest.hexdigest()], file)
    except (CheckpointError, OSError, KeyError):  # other bytes, or a file system without links
        return None
    return listed


def _unwritable(folder: Path, error: OSError) -> CheckpointError:
    try:
        intact = newest(folder, warn=lambda line: None)
    except (CheckpointError, OSError):
        intact = None
    state = f"the earlier checkpoint {intact.name} is intact" if intact else "there is no earlier checkpoint"
    reason = "the disk is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
    remedy = "free some space" if error.errno in FULL else "check the place and its permissions"
    return CheckpointError(f"{folder}: {reason}; {state}; {remedy} and resume")


def write(folder: Path, components: Mapping[str, Tree], *, keep: int = 2) -> Path:
    """Save one checkpoint below `folder`, drop those older than the newest `keep`, and return its path.

    A killed process leaves the earlier checkpoints or the new one. Mappings of any kind come back as dicts,
    tensors as separate ones on the CPU. Raises TypeError for what a checkpoint cannot hold, ValueError for a
    component's name, CheckpointError when the place cannot be written (a full disk, say); nothing is lost.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     path = write(Path(run, "checkpoints"), {"clock": {"epoch": 3, "best": float("inf")}})
    ...     path.name, read(path)
    ('ckpt-00000001', {'clock': {'epoch': 3, 'best': inf}})
    """
    folder = Path(folder)
    if keep < 1 or not components:
        raise ValueError(f"a checkpoint needs keep >= 1 and at least one component, got keep={keep}")
    packed: dict[str, tuple[bytes, dict[str, Tensor]]] = {}
    for name, tree in components.items():
        if not _COMPONENT.fullmatch(name) or name == "manifest":
            raise ValueError(f"{name!r} cannot name a component; use letters, digits, '_', '-' and '.'")
        tensors: dict[str, Tensor] = {}
        packed[name] = (json.dumps(pack(tree, "", tensors)).encode() + b"\n", tensors)
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            sync_folder(folder.parent)
        with _sole_writer(folder):
            return _write_locked(folder, packed, keep)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _write_locked(folder: Path, packed: Mapping[str, tuple[bytes, dict[str, Tensor]]], keep: int) -> Path:
    _discard([path for path in folder.iterdir() if path.name.startswith(TEMPORARY)])  # of a process that died
    earlier = _existing(folder)
    ordinal = earlier[0][0] + 1 if earlier else 1
    path = folder / f"ckpt-{ordinal:08d}"
    temporary = folder / f"{TEMPORARY}{path.name}"
    try:
        _build(temporary, ordinal, packed, _large_files(earlier[0][1] if earlier else None))
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)
    _discard([old for _, old in earlier[keep - 1 :]])
    return path


def _discard(paths: Sequence[Path]) -> None:
    """Remove folders or files. A checkpoint loses its name first, lest a kill leave half of one."""
    for path in paths:
        doomed = path
        if not path.name.startswith(TEMPORARY):
            doomed = path.with_name(f"{TEMPORARY}old-{path.name}")
            os.rename(path, doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()


def _names(path: Path) -> set[str]:
    """The files of a checkpoint's folder; foreign files are refused before anything is opened."""
    if path.is_symlink() or not path.is_dir():
        raise _DamageError("not a folder")
    for entry in sorted(path.iterdir()):
        if entry.suffix in PICKLED:
            refuse(entry, f"a {entry.suffix} file")
        if entry.is_symlink() or not entry.is_file():
            raise _DamageError(f"{entry.name} is not a plain file")
    return {entry.name for entry in path.iterdir()}


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> size and hash of each file, once the manifest fits itself and the folder."""
    names = _names(path)
    if _MANIFEST not in names:
        raise _DamageError(f"{_MANIFEST} is missing")
    raw = (path / _MANIFEST).read_bytes()
    if is_pickle(raw):
        refuse(path / _MANIFEST, "a pickle")
    try:
        value = json.loads(raw)
        ordinal, files, version = value["ordinal"], dict(value["files"]), value["version"]
        sealed = _seal(ordinal, files) == raw and path.name == f"ckpt-{ordinal:08d}"
        typed = all(type(f["size"]) is int and type(f["sha256"]) is str for f in files.values())
    except MALFORMED:
        raise _DamageError(f"{_MANIFEST} cannot be read") from None
    if version != _VERSION:
        raise _DamageError(f"{_MANIFEST} has version {version!r}, this program reads {_VERSION}")
    if not (sealed and typed):
        raise _DamageError(f"{_MANIFEST} was changed")
    _compare(path, names - {_MANIFEST}, files.keys())
    return files


def _compare(path: Path, present: Set[str], listed: Set[str]) -> None:
    for extra in sorted(present - listed):
        with (path / extra).open("rb") as file:
            if is_pickle(file.read(9)):
                refuse(path / extra, "a pickle")
        raise _DamageError(f"{extra} does not belong to it")
    for absent in sorted(listed - present):
        raise _DamageError(f"{absent} is missing")
    own = {name for name in listed if "~" not in name}
    pairs = {Path(name).stem.partition("~")[0] + suffix for name in listed for suffix in _SUFFIXES}
    if own != pairs or not all(name.endswith(_SUFFIXES[1]) for name in listed - own):
        raise _DamageError(f"{_MANIFEST} lists other files than .safetensors and .json in pairs")


def _confirmed(path: Path, listed: Mapping[str, Any]) -> bytes:
    """The bytes of one file, if they are those that the manifest lists."""
    size = path.stat().st_size
    with path.open("rb") as file:
        data = file.read() if size == listed["size"] else file.read(9)
    if size == listed["size"]:
        if hashlib.sha256(data).hexdigest() != listed["sha256"]:
            raise _DamageError(f"{path.name} differs from its hash")
        return data
    # Cut short or never flushed (zeros) is damage; other contents in its place were put there by someone.
    begins = data[8:] == b"{" if path.suffix == ".safetensors" else data[:1] in b'{["-0123456789tfn'
    if len(data) == 9 and any(data) and not begins:
        refuse(path, "foreign content")
    raise _DamageError(f"{path.name} has {size} bytes, {listed['size']} were written")


def _load(path: Path) -> Iterator[tuple[str, Tree]]:
    """The components one by one, every byte checked before it is interpreted."""
    try:
        files = _manifest(path)
        for name in sorted(Path(file).stem for file in files if file.endswith(".json")):
            text, tensors = _confirmed(path / f"{name}.json", files[f"{name}.json"]), dict[str, Tensor]()
            parts = sorted(file for file in files if file == f"{name}.safetensors" or file.startswith(f"{name}~"))
            try:
                for part in parts:
                    tensors |= safetensors.torch.load(_confirmed(path / part, files[part]))
                tree = unpack(json.loads(text), tensors)
            except CheckpointError:
                raise
            except MALFORMED:  # confirmed bytes that are not what we write: not damaged, but made so
                refuse(path / f"{name}.safetensors", "content other than safetensors with its JSON")
            yield name, tree
    except OSError as error:
        raise _DamageError(f"{error.filename or path.name} cannot be read ({error.strerror})") from error


def read(path: Path) -> dict[str, Tree]:
    """The components of one checkpoint, bit for bit as they were written; CheckpointError if one bit differs.

    Tensors are on the CPU, writable, and share no memory with each other.
    """
    try:
        return dict(_load(Path(path)))
    except _DamageError as fault:
        raise CheckpointError(f"{path}: damaged checkpoint ({fault}); resume from another one") from fault


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def newest(folder: Path, *, warn: Callable[[str], None] = _to_stderr) -> Path | None:
    """The newest intact checkpoint below `folder`, None if there is none at all.

    Each damaged one passed over is reported by one line. Raises CheckpointError when none is intact, and when
    a foreign or pickled file lies in its place: such a file is never taken for anything but bytes.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return None
    for entry in sorted(folder.iterdir()):
        if entry.suffix in PICKLED:
            refuse(entry, f"a {entry.suffix} file")
    faults: list[tuple[Path, str]] = []
    for _, path in _existing(folder):
        try:
            for _ in _load(path):
                pass
        except _DamageError as fault:
            faults.append((path, str(fault)))
            continue
        for damaged, reason in faults:
            warn(f"{damaged} is damaged ({reason}); {path.name} is used instead")
        return path
    if not faults:
        return None
    listing = "; ".join(f"{path.name}: {reason}" for path, reason in faults)
    raise CheckpointError(f"{folder}: no intact checkpoint ({listing}); restore a copy or start the run anew")
