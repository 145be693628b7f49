"""Checkpoints: exact, whole or not at all, never believed when one bit differs, never a pickle."""

from __future__ import annotations

import collections
import errno
import fcntl
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill import checkpoint, serialization
from selfdistill.errors import CheckpointError

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.bool, torch.complex64),
]
FILES = ["clock.json", "clock.safetensors", "manifest.json", "student.json", "student.safetensors"]


def same(a: object, b: object) -> bool:
    """Equal in every type and every bit, including the order of keys."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        raw = [
            t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if t.numel() else []
            for t in (a, b)
        ]
        return a.dtype == b.dtype and a.shape == b.shape and raw[0] == raw[1]
    if isinstance(a, dict) and isinstance(b, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


def components(value: float) -> dict[str, object]:
    """Two small components that differ everywhere between two values, so that a mixture would show."""
    student = {"weight": torch.full((3, 2), value), "steps": torch.tensor(int(value)), "value": value}
    return {"student": student, "clock": {"epoch": int(value), "seen": torch.full((2,), value), "none": None}}


def saved(folder: Path, *values: float, keep: int = 2) -> list[Path]:
    return [checkpoint.write(folder, components(value), keep=keep) for value in values]


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]


# --- exactness ------------------------------------------------------------------------------------


def tensors() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=3)

    def filled(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
        if dtype == torch.bool:
            return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        size = math.prod(shape) * dtype.itemsize
        data = bytearray(np.random.default_rng(seed).bytes(size)) or bytearray(8)  # any bits, NaNs too
        return torch.frombuffer(data, dtype=dtype)[: math.prod(shape)].reshape(shape)

    return st.builds(filled, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32 - 1))


SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"])
)
KEYS = (
    st.text() | st.integers() | st.sampled_from(["__metadata__", "a/b", "", "0", "a'", "\ud800", True, None])
)
TREES = st.recursive(
    SCALARS | tensors(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_tree_comes_back_in_every_type_and_bit(tmp_path: Path, tree: object) -> None:
    path = checkpoint.write(tmp_path, {"tree": tree})
    assert same(checkpoint.read(path), {"tree": tree})
    assert checkpoint.newest(tmp_path, warn=pytest.fail) == path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_a_dtype_in_any_shape_survives(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = (torch.arange(math.prod(shape)) % 2 + 1).to(dtype).reshape(shape)
    checkpoint.write_tensors(tmp_path / "t.safetensors", {"a": values, "b": torch.ones(3)})
    assert same(checkpoint.read_tensors(tmp_path / "t.safetensors"), {"a": values, "b": torch.ones(3)})


def test_views_of_one_storage_come_back_whole_separate_and_writable(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = nn.Parameter(base)
    views = {"t": base.T, "every": base[:, ::2], "wide": base[:1].expand(3, 4), "tied": tied, "again": tied}
    back = checkpoint.read(
        checkpoint.write(tmp_path, {"x": {**views, "conj": torch.tensor([1 + 2j]).conj()}})
    )["x"]
    assert all(torch.equal(back[name], view) for name, view in views.items())
    assert back["conj"].tolist() == [1 - 2j]
    back["tied"].fill_(-1.0)
    assert torch.equal(back["again"], base)


def test_the_order_of_mapping_kinds_is_kept_but_not_the_kind(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(2).state_dict()
    back = checkpoint.read(checkpoint.write(tmp_path, {"model": state}))["model"]
    assert type(back) is dict
    assert same(back, dict(state))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_survives_and_goes_on_as_if_never_stopped(tmp_path: Path, kind: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        if kind == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    model, optimizer = made()
    train(model, optimizer, range(3))
    path = checkpoint.write(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    back = checkpoint.read(path)
    assert same(back["optimizer"], optimizer.state_dict())
    other, resumed = made()
    other.load_state_dict(back["model"])
    resumed.load_state_dict(back["optimizer"])
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(resumed.state_dict(), optimizer.state_dict())


def test_files_are_the_public_format_in_both_directions(tmp_path: Path) -> None:
    """The library of the format reads what is written here, and what it writes is read here."""
    mixed = {
        "é": torch.arange(3),
        "b": torch.tensor([True]),
        "h": torch.rand(3).half(),
        "d": torch.rand(2, 2).double(),
    }
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    checkpoint.write_tensors(ours, mixed, {"made by": "test"})
    safetensors.torch.save_file(mixed, theirs, {"made by": "test"})
    expected = dict(sorted(mixed.items()))
    assert same(dict(sorted(safetensors.torch.load_file(ours).items())), expected)
    assert same(checkpoint.read_tensors(theirs), expected)
    with safetensors.safe_open(ours, framework="pt") as file:
        assert file.metadata() == {"made by": "test"}


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "leaf",
    [
        *({1}, b"x", Pair(1, 2), np.float64(1.0), np.zeros(2), {1.5: 0}, {(0, 1): 0}, 1j, torch.float32),
        *(torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.zeros(1, dtype=torch.complex128)),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_what_would_not_come_back_equal_is_an_error_that_says_where(tmp_path: Path, leaf: object) -> None:
    with pytest.raises(TypeError, match=r"^deep/1: .*convert|^deep/1: .*keys"):
        checkpoint.write(tmp_path / "run", {"state": {"deep": [0, leaf]}})
    assert not (tmp_path / "run").exists()


def test_a_sharded_or_wrapped_tensor_is_refused_rather_than_cut(tmp_path: Path) -> None:
    class Sharded(torch.Tensor):
        pass

    with pytest.raises(TypeError, match=r"^w: .*not Sharded; gather it first"):
        checkpoint.write(tmp_path, {"student": {"w": torch.ones(2).as_subclass(Sharded)}})


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "manifest", "a b"])
def test_a_component_name_that_is_no_file_name_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a component"):
        checkpoint.write(tmp_path, {name: 1})


def test_names_with_dots_stay_apart(tmp_path: Path) -> None:
    both = {"teacher": 1, "teacher.ema": torch.ones(1), "teacher.ema.json": 2}
    assert same(checkpoint.read(checkpoint.write(tmp_path, both)), both)


def test_single_files_reject_what_they_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reserved"):
        checkpoint.write_tensors(tmp_path / "a", {"__metadata__": torch.ones(1)})
    with pytest.raises(TypeError, match="strings"):
        checkpoint.write_tensors(tmp_path / "a", {}, {"epochs": 3})  # type: ignore[dict-item]
    for value in (math.nan, math.inf, {"loss": [-math.inf]}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            checkpoint.write_json(tmp_path / "a", value)
    assert list(tmp_path.iterdir()) == []


# --- the folder -----------------------------------------------------------------------------------


def test_no_folder_or_an_empty_one_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "none") is None


def test_checkpoints_are_numbered_and_only_the_newest_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    (folder / "ckpt-00000000").mkdir(parents=True)
    (folder / ".tmp-ckpt-00000009").mkdir()
    (folder / ".tmp-ckpt-00000009" / "half").write_text("of a process that was killed")
    names = [path.name for path in saved(folder, 1, 2, 3, keep=2)]
    assert names == ["ckpt-00000001", "ckpt-00000002", "ckpt-00000003"]
    assert sorted(path.name for path in folder.iterdir()) == names[1:]
    saved(folder, 4, keep=1)
    assert [path.name for path in folder.iterdir()] == ["ckpt-00000004"]
    with pytest.raises(ValueError, match="keep"):
        saved(folder, 5, keep=0)


def test_the_manifest_lists_size_and_hash_of_every_file(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["version"], manifest["ordinal"]) == (1, 1)
    assert {"manifest.json", *manifest["files"]} == {entry.name for entry in path.iterdir()} == set(FILES)
    for name, listed in manifest["files"].items():
        data = (path / name).read_bytes()
        assert listed == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_two_writers_at_once_are_told_apart(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process"):
        saved(tmp_path, 2)
    os.close(handle)
    assert saved(tmp_path, 2)[0].name == "ckpt-00000002"


# --- damage ---------------------------------------------------------------------------------------


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def never_flushed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def link(path: Path) -> None:
    shutil.move(path, path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


DAMAGES = [delete, truncate, empty, never_flushed, lengthen, flip, link]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_checkpoint_is_passed_over_with_one_line(tmp_path: Path, name: str, damage) -> None:
    older, newer = saved(tmp_path, 1, 2)
    damage(newer / name)
    lines: list[str] = []
    assert checkpoint.newest(tmp_path, warn=lines.append) == older
    assert same(checkpoint.read(older)["student"], components(1)["student"])
    (line,) = lines
    assert "\n" not in line
    assert all(part in line for part in (str(newer), name, "ckpt-00000001 is used instead"))
    with pytest.raises(CheckpointError, match=r"ckpt-00000002: damaged checkpoint \(.*" + name):
        checkpoint.read(newer)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_without_an_intact_checkpoint_the_error_names_the_fault(tmp_path: Path, name: str, damage) -> None:
    (only,) = saved(tmp_path, 1)
    damage(only / name)
    with pytest.raises(CheckpointError, match=rf"no intact checkpoint \(ckpt-00000001: .*{name}") as caught:
        checkpoint.newest(tmp_path, warn=pytest.fail)
    assert "\n" not in str(caught.value)


def test_no_byte_can_change_unseen(tmp_path: Path) -> None:
    """Every byte of every file, the manifest's too, flipped in turn: the older checkpoint is used."""
    older, newer = saved(tmp_path, 1, 2)
    for name in FILES:
        good = (newer / name).read_bytes()
        for at in range(len(good)):
            (newer / name).write_bytes(good[:at] + bytes([good[at] ^ (1 << at % 8)]) + good[at + 1 :])
            assert checkpoint.newest(tmp_path, warn=lambda line: None) == older, (name, at)
        (newer / name).write_bytes(good)
    assert checkpoint.newest(tmp_path, warn=pytest.fail) == newer


def test_a_renamed_checkpoint_and_one_with_a_stray_file_are_damaged(tmp_path: Path) -> None:
    first, second, third = saved(tmp_path, 1, 2, 3, keep=3)
    (second / "notes.txt").write_text("mine")
    third.rename(tmp_path / "ckpt-00000007")
    (tmp_path / "ckpt-00000008").mkdir()
    (tmp_path / "ckpt-00000009").write_text("a file")
    lines: list[str] = []
    assert checkpoint.newest(tmp_path, warn=lines.append) == first
    reasons = ["not a folder", "manifest.json is missing", "was changed", "notes.txt does not belong"]
    assert all(reason in line for reason, line in zip(reasons, lines, strict=True))
    assert saved(tmp_path, 4, keep=9)[0].name == "ckpt-00000010"


def test_the_warning_goes_to_standard_error_unless_told_otherwise(tmp_path: Path, capsys) -> None:
    saved(tmp_path, 1, 2)
    delete(tmp_path / "ckpt-00000002" / "clock.json")
    checkpoint.newest(tmp_path)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# --- foreign content ------------------------------------------------------------------------------


class Bomb:
    """Unpickling this makes a file, which is how the tests see that code has run."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def payloads(mark: Path) -> dict[str, bytes]:
    zipped = mark.with_name("zipped")
    torch.save({"w": torch.ones(2), "bomb": Bomb(mark)}, zipped)
    data = zipped.read_bytes()
    zipped.unlink()
    return {"zip": data} | {f"protocol {p}": pickle.dumps(Bomb(mark), protocol=p) for p in (0, 2, 3, 4, 5)}


PAYLOADS = ["zip", "protocol 0", "protocol 2", "protocol 3", "protocol 4", "protocol 5"]


def test_the_payloads_would_run_if_unpickled(tmp_path: Path) -> None:
    """Guards the tests below: a payload that does nothing would prove nothing."""
    for kind, data in payloads(tmp_path / "ran").items():
        if kind != "zip":
            pickle.loads(data)  # noqa: S301
            (tmp_path / "ran").rmdir()


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize(
    "name", ["student.safetensors", "student.json", "model.pt", "x.pkl", "x.bin", "x.pth"]
)
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "checkpoints"
    _, newer = saved(folder, 1, 2)
    (newer / name).write_bytes(payloads(tmp_path / "ran")[kind])
    for attempt in (lambda: checkpoint.newest(folder, warn=pytest.fail), lambda: checkpoint.read(newer)):
        with pytest.raises(CheckpointError, match=rf"{name}: .* is never read.*move it away"):
            attempt()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("kind", PAYLOADS)
def test_a_pickle_under_a_forged_manifest_is_refused_too(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    (only,) = saved(folder, 1)
    data = payloads(tmp_path / "ran")[kind]
    (only / "student.safetensors").write_bytes(data)
    manifest = json.loads((only / "manifest.json").read_text())
    manifest["files"]["student.safetensors"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, indent=2) + "\n"
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (only / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=2) + "\n")
    with pytest.raises(CheckpointError, match=r"student.safetensors: .* is never read"):
        checkpoint.newest(folder)
    assert not (tmp_path / "ran").exists()


def test_a_foreign_file_beside_the_checkpoints_and_an_unlabelled_pickle_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (only,) = saved(folder, 1)
    data = payloads(tmp_path / "ran")["protocol 4"]
    (only / "harmless").write_bytes(data)
    with pytest.raises(CheckpointError, match="harmless: a pickle is never read"):
        checkpoint.newest(folder)
    (only / "harmless").rename(folder / "last.pt")
    with pytest.raises(CheckpointError, match=r"last.pt: a .pt file is never read"):
        checkpoint.newest(folder)
    assert not (tmp_path / "ran").exists()


def test_read_tensors_tells_pickles_damage_and_absence_apart(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    for data in payloads(tmp_path / "ran").values():
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"student.safetensors: (a pickle is never|no intact)"):
            checkpoint.read_tensors(path)
    assert not (tmp_path / "ran").exists()
    header = {"w" * 584: torch.ones(2)}  # a header of 640 bytes, whose length begins like a pickle: 80 02
    checkpoint.write_tensors(path, header)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert same(checkpoint.read_tensors(path), header)
    truncate(path)
    with pytest.raises(CheckpointError, match="no intact safetensors file"):
        checkpoint.read_tensors(path)
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.read_tensors(tmp_path / "none")


# --- crashes and full disks -----------------------------------------------------------------------

OPERATIONS = ["fsync", "rename", "unlink", "rmdir"]


def killed_write(folder: Path, value: float, nth: int, after: bool) -> bool:
    """Write in a forked child that kills itself at the nth operation on the disk; whether it was killed."""
    child = os.fork()
    if child == 0:
        count = 0

        def fatal(operation):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == nth and not after:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = operation(*args, **kwargs)
                if count == nth and after:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        def torn(tensors, stream=serialization.stream):
            for piece in stream(tensors):
                yield piece[: len(piece) // 2]
                fatal(lambda: None)()
                yield piece[len(piece) // 2 :]

        for name in OPERATIONS:
            setattr(os, name, fatal(getattr(os, name)))
        setattr(checkpoint, "stream", torn)  # noqa: B010
        try:
            saved(folder, value)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_any_operation_the_old_or_the_new_is_whole(tmp_path: Path, after: bool) -> None:
    outcomes, nth, killed = [], 0, True
    while killed:
        nth += 1
        folder = tmp_path / str(nth)
        saved(folder, 1, 2)
        killed = killed_write(folder, 3, nth, after)
        path = checkpoint.newest(folder, warn=pytest.fail)
        assert path is not None
        back = checkpoint.read(path)
        value = back["student"]["value"]
        assert same(dict(sorted(back.items())), dict(sorted(components(value).items())))
        assert value == float(path.name[-1])
        outcomes.append(value)
        saved(folder, 4)
        assert temporary(folder) == []
        assert len(list(folder.iterdir())) == 2
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {2.0, 3.0}
    assert len(outcomes) > 20


def test_what_a_power_cut_could_lose_is_flushed_before_it_is_relied_on(tmp_path: Path, monkeypatch) -> None:
    """Each file, the manifest, the folder, the rename, the parent, in this order; only then old ones go."""
    saved(tmp_path, 1, 2)
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def spy_fsync(handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        events.append(f"sync {os.path.relpath(path, tmp_path)}")
        assert os.fstat(handle).st_size > 0 or os.path.isdir(path)
        fsync(handle)

    def spy_rename(source: Path, target: Path) -> None:
        events.append(f"rename {source.name} {target.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "rename", spy_rename)
    saved(tmp_path, 3)
    new, old = ".tmp-ckpt-00000003", "ckpt-00000001"
    assert sorted(events[:4]) == sorted(f"sync {new}/{name}" for name in FILES if name != "manifest.json")
    assert events[4:] == [
        *(f"sync {new}/manifest.json", f"sync {new}", f"rename {new} ckpt-00000003", "sync ."),
        f"rename {old} .tmp-old-{old}",
    ]


def fail_at(monkeypatch, name: str, nth: int, code: int) -> None:
    original, calls = getattr(os, name), []

    def call(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(code, os.strerror(code))
        return original(*args)

    monkeypatch.setattr(os, name, call)


@pytest.mark.parametrize(("name", "nth"), [*(("fsync", n) for n in range(1, 7)), ("rename", 1)])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_fails_loses_nothing_and_is_named(tmp_path: Path, monkeypatch, name, nth, code) -> None:
    saved(tmp_path, 1)
    with monkeypatch.context() as patch:
        fail_at(patch, name, nth, code)
        with pytest.raises(CheckpointError) as caught:
            saved(tmp_path, 2)
    remedy = "check the place" if code == errno.EROFS else "the disk is full.*free some space"
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: ")
    assert "the earlier checkpoint ckpt-00000001 is intact" in message
    assert re.search(remedy, message)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-00000001"]
    assert checkpoint.newest(tmp_path, warn=pytest.fail) == tmp_path / "ckpt-00000001"


def test_a_full_disk_without_an_earlier_checkpoint_says_so(tmp_path: Path, monkeypatch) -> None:
    fail_at(monkeypatch, "fsync", 2, errno.ENOSPC)
    with pytest.raises(CheckpointError, match="the disk is full; there is no earlier checkpoint"):
        saved(tmp_path / "new", 1)


def test_a_disk_that_really_is_full(tmp_path: Path) -> None:
    """On a small file system in memory, where that may be mounted."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        saved(tmp_path, 1)
        with pytest.raises(CheckpointError, match=r"the disk is full; .*ckpt-00000001 is intact"):
            checkpoint.write(tmp_path, {"student": torch.zeros(100_000)})
        with pytest.raises(CheckpointError, match=r"big.safetensors: cannot be written .*free some space"):
            checkpoint.write_tensors(tmp_path / "big.safetensors", {"w": torch.zeros(100_000)})
        assert [path.name for path in tmp_path.iterdir()] == ["ckpt-00000001"]
        saved(tmp_path, 2)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_an_interrupt_inside_a_save_leaves_no_half(tmp_path: Path, monkeypatch) -> None:
    saved(tmp_path, 1)

    def interrupted(tensors):
        yield b"half"
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "stream", interrupted)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-00000001"]


@pytest.mark.parametrize("stage", ["fsync", "rename"])
def test_a_single_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch, stage: str) -> None:
    def write(value: float) -> None:
        checkpoint.write_json(tmp_path / "run.json", {"value": value})
        checkpoint.write_tensors(tmp_path / "model.safetensors", {"w": torch.full((2,), value)})

    def kept() -> tuple[object, float]:
        value = json.loads((tmp_path / "run.json").read_text())["value"]
        return value, float(checkpoint.read_tensors(tmp_path / "model.safetensors")["w"][0])

    write(1.0)
    for nth, expected in ((1, (1.0, 1.0)), (2 if stage == "rename" else 3, (2.0, 1.0))):
        with monkeypatch.context() as patch:
            fail_at(patch, stage, nth, errno.ENOSPC)
            with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
                write(2.0)
        assert kept() == expected
        assert temporary(tmp_path) == []
