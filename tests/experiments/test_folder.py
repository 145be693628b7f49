"""A folder is taken up again by its own kind, held by one process, and left as it was when nothing came of it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from selfdistill.errors import CheckpointError, DataError
from selfdistill.experiments.folder import Folder, locked


def folder(path: Path) -> Folder:
    return Folder(path, "run.json", "run")


def test_an_empty_or_missing_folder_is_free_and_another_ones_is_not(tmp_path: Path) -> None:
    assert not folder(tmp_path).begun()
    assert not folder(tmp_path / "new").begun()
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="is no run of selfdistill; give another --out"):
        folder(tmp_path).begun()
    with pytest.raises(DataError, match="is no run of selfdistill"):
        folder(tmp_path / "letter.txt").begun()
    (tmp_path / "run.json").write_text("{}")
    assert folder(tmp_path).begun()


def test_differences_are_refused_and_none_is_not(tmp_path: Path) -> None:
    folder(tmp_path).refuse("")
    with pytest.raises(DataError, match=r"holds a run with other settings \(seed 1, now 2\); give another --out"):
        folder(tmp_path).refuse("seed 1, now 2")


def test_withdrawing_removes_what_was_made_and_keeps_what_was_there(tmp_path: Path) -> None:
    fresh = folder(tmp_path / "runs" / "new")
    fresh.create()
    fresh.record.write_text("{}")
    (fresh.path / "cells").mkdir()
    again = folder(fresh.path)
    again.create()
    again.withdraw("cells")  # it was begun by another
    assert fresh.record.exists()
    fresh.withdraw("cells")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs").mkdir()
    fresh.create()
    (fresh.path / "notes.txt").write_text("mine")
    fresh.withdraw()
    assert (fresh.path / "notes.txt").exists()


def test_a_lock_is_refused_or_waited_for(tmp_path: Path) -> None:
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another process trains"), locked(tmp_path, "another process trains"):
        pass
    os.close(handle)
    with locked(tmp_path, "another process trains"):
        pass
    with locked(tmp_path):
        pass
