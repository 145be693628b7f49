"""Data of every kind and finished runs, for the tests of what a person can get wrong."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.shelf import CUT
from tests.terminal import MODELS, passed, refused, write_images, write_tables

#: A file system in memory: every checkpoint is flushed to the disk, which would be a quarter of the tests' time.
MEMORY = Path("/dev/shm")
if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4e9:
    os.environ["TMPDIR"] = str(MEMORY)  # for this process, the workers and what the tests start
    tempfile.tempdir = None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker runs all tests of a file: what they share is made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of every kind, odd models, a finished run of images and one of a table, and one that stopped half way."""
    folder = tmp_path_factory.mktemp("shelf")
    before = Path.cwd()
    os.chdir(folder)
    try:
        (folder / "odd.py").write_text(MODELS)
        write_tables(folder)
        write_images(folder / "pets")
        write_images(folder / "broken")
        (folder / "broken/dog/3.png").write_bytes(b"no picture")
        write_images(folder / "untaught/train")
        write_images(folder / "untaught/test", ("cat", "dog", "owl"), each=3)
        write_images(folder / "lonely", ("cat",))
        (folder / "empty").mkdir()
        (folder / "file").write_text("words")
        passed("run", "digits", "--steps", 2, "--method", "plain()", "--out", "done", "--quiet")
        passed("run", "t.csv", "--target", "outcome", "--steps", 2, "--method", "plain()", "--out", "table", "--quiet")
        refused(*CUT, "--out", "cut", "--quiet")
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the shelf to work in; nothing in it is ever unpickled."""
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path("pwned").exists()
