"""A checkpoint that differs in one bit is never believed, and a pickle is never opened."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from selfdistill.errors import CheckpointError
from selfdistill.io import checkpoint, tensors
from tests.checkpoints import FILES, components, same, saved


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
@pytest.mark.parametrize("name", ["student.safetensors", "student.json", "model.pt", "x.pkl", "x.bin", "x.pth"])
def test_a_pickle_in_a_checkpoint_is_refused_and_never_run(tmp_path: Path, kind: str, name: str) -> None:
    folder = tmp_path / "checkpoints"
    _, newer = saved(folder, 1, 2)
    (newer / name).write_bytes(payloads(tmp_path / "ran")[kind])
    for attempt in (lambda: checkpoint.newest(folder, warn=pytest.fail), lambda: checkpoint.read(newer)):
        with pytest.raises(CheckpointError, match=rf"{name}: .* is never read.*move it away"):
            attempt()
    assert not (tmp_path / "ran").exists()


def forge(path: Path) -> None:
    """Make the manifest fit whatever lies in the folder, as an attacker could; hashes are no signature."""
    files = {}
    for entry in path.iterdir():
        if entry.name != "manifest.json":
            data = entry.read_bytes()
            files[entry.name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = json.loads((path / "manifest.json").read_text()) | {"files": files}
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True, indent=2) + "\n"
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest, sort_keys=True, indent=2) + "\n")


@pytest.mark.parametrize("kind", PAYLOADS)
@pytest.mark.parametrize("name", ["student.safetensors", "student.json"])
def test_a_pickle_under_a_forged_manifest_is_refused_too(tmp_path: Path, name: str, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    (only,) = saved(folder, 1)
    forge(only)
    assert checkpoint.newest(folder, warn=pytest.fail) == only  # the forgery itself is good
    (only / name).write_bytes(payloads(tmp_path / "ran")[kind])
    forge(only)
    with pytest.raises(CheckpointError, match=r"student.safetensors: .* is never read"):
        checkpoint.newest(folder)
    assert not (tmp_path / "ran").exists()


FORGED = [
    '{"tensor": "none"}',
    '{"what": 1}',
    '{"dict": [[[], 1]]}',
    '{"dict": [1]}',
    '{"float": "xy"}',
    "[" * 9999,
]


@pytest.mark.parametrize("text", FORGED, ids=lambda text: text[:20])
def test_a_skeleton_that_is_none_of_ours_is_refused(tmp_path: Path, text: str) -> None:
    (only,) = saved(tmp_path, 1)
    (only / "student.json").write_text(text)
    forge(only)
    with pytest.raises(CheckpointError, match="is never read"):
        checkpoint.read(only)


@pytest.mark.parametrize("name", ["student.json", "student.safetensors"])
def test_a_component_listed_by_halves_is_damage(tmp_path: Path, name: str) -> None:
    (only,) = saved(tmp_path, 1)
    (only / name).unlink()
    forge(only)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint \(.*in pairs"):
        checkpoint.newest(tmp_path)


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
            tensors.read_tensors(path)
    assert not (tmp_path / "ran").exists()
    header = {"w" * 584: torch.ones(2)}  # a header of 640 bytes, whose length begins like a pickle: 80 02
    tensors.write_tensors(path, header)
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert same(tensors.read_tensors(path), header)
    truncate(path)
    with pytest.raises(CheckpointError, match="no intact safetensors file"):
        tensors.read_tensors(path)
    with pytest.raises(CheckpointError, match="No such file"):
        tensors.read_tensors(tmp_path / "none")
