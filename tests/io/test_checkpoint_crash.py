"""A save is whole or did not happen: kills, power cuts, full disks, interrupts."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from selfdistill.errors import CheckpointError
from selfdistill.io import checkpoint, tensors
from tests.checkpoints import FILES, components, same, saved, temporary

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

        def torn(tensors, stream=tensors.stream):
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
            tensors.write_tensors(tmp_path / "big.safetensors", {"w": torch.zeros(100_000)})
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
        tensors.write_json(tmp_path / "run.json", {"value": value})
        tensors.write_tensors(tmp_path / "model.safetensors", {"w": torch.full((2,), value)})

    def kept() -> tuple[object, float]:
        value = json.loads((tmp_path / "run.json").read_text())["value"]
        return value, float(tensors.read_tensors(tmp_path / "model.safetensors")["w"][0])

    write(1.0)
    for nth, expected in ((1, (1.0, 1.0)), (2 if stage == "rename" else 3, (2.0, 1.0))):
        with monkeypatch.context() as patch:
            fail_at(patch, stage, nth, errno.ENOSPC)
            with pytest.raises(CheckpointError, match=r"cannot be written \(No space left on device\)"):
                write(2.0)
        assert kept() == expected
        assert temporary(tmp_path) == []
