"""A run that goes wrong, a checkpoint that was tampered with, a disk that fills up: one line, and nothing is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from selfdistill.io import checkpoint
from tests.shelf import CUT, PICKLES
from tests.terminal import child, contents, invoke, refused, report

# ---- losses that are no numbers --------------------------------------------------------------------


def test_a_loss_that_is_not_finite_names_step_term_and_samples_and_keeps_the_checkpoint(here: Path) -> None:
    """The model fails for the fourth sample of a batch from its seventh call on: dry run, four steps, audit, this."""
    from selfdistill.data.dataset import load
    from selfdistill.data.sampler import Sampler
    from selfdistill.views import Views

    line = refused(*CUT, "--out", "again", "--quiet")
    assert "the loss is nan at generation 0, step 4, term 'label'" in line
    sampler = Sampler(load("digits"), Views(), 300, seed=0)
    assert sampler.steps_per_epoch == 4
    assert f"samples [{sampler.sample(1, 0)['labelled'].ids[3]}]" in line
    assert "--lr" in line
    kept = checkpoint.newest(Path("again/checkpoints"), warn=pytest.fail)
    assert kept is not None
    assert f"the last checkpoint is kept ({kept})" in line
    assert checkpoint.read(kept).keys() >= {"student", "optimizer"}
    before = contents(here / "again")
    assert refused(*CUT, "--batch-size", 299, "--out", "again")  # and no other run may take the folder
    assert contents(here / "again") == before


def test_a_loss_that_is_not_finite_at_once_leaves_the_place_free(here: Path) -> None:
    line = refused("run", "digits", "--model", "odd.py:wrong(how='at once')", "--method", "plain()", "--steps", 3,
                   "--out", "left", "--quiet")  # fmt: skip
    assert "step 0, term 'label'" in line
    assert "none was due yet" in line
    assert not Path("left").exists()


def test_outside_pytest_too_it_is_one_line_without_a_traceback(here: Path) -> None:
    """A process of its own shows warnings that a test would swallow."""
    run = child("run", "digits", "--model", "odd.py:wrong(how='at once')", "--method", "plain()", "--quiet")
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out, err.count("\n")) == (2, "", 1), err
    assert "Traceback" not in err


# ---- checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pickle", PICKLES)
def test_a_checkpoint_with_pickled_content_is_never_read(pickle: str, here: Path) -> None:
    for path in Path("cut/checkpoints").glob("ckpt-*"):
        (path / "student.safetensors").write_bytes(PICKLES[pickle])
    before = contents(here / "cut")
    line = refused("resume", "cut", "--quiet", "--trust-code")
    assert "student.safetensors" in line
    assert contents(here / "cut") == before


@pytest.mark.parametrize("name", ["model.pt", "state.pkl"])
def test_a_foreign_file_among_the_checkpoints_is_refused(name: str, here: Path) -> None:
    (Path("cut/checkpoints") / name).write_bytes(PICKLES["protocol 4"])
    line = refused("resume", "cut", "--quiet", "--trust-code")
    assert f"cut/checkpoints/{name}" in line
    assert "could run code" in line


def test_when_no_checkpoint_is_intact_all_are_named(here: Path) -> None:
    paths = sorted(Path("cut/checkpoints").glob("ckpt-*"))
    assert len(paths) == 2
    for path in paths:
        with (path / "student.json").open("a") as file:
            file.write("x")
    line = refused("resume", "cut", "--quiet", "--trust-code")
    assert "no intact checkpoint" in line
    assert all(path.name in line for path in paths)


def test_a_damaged_checkpoint_is_passed_over_with_one_line(here: Path) -> None:
    earlier, newest = sorted(Path("cut/checkpoints").glob("ckpt-*"))
    (newest / "optimizer.json").unlink()
    lines = invoke("resume", "cut", "--quiet", "--trust-code").stderr.splitlines()
    assert len(lines) == 2  # and then the model's own fault
    assert newest.name in lines[0]
    assert f"{earlier.name} is used instead" in lines[0]


def test_data_that_changed_since_are_refused(here: Path) -> None:
    """Also where the change is one cell."""
    cut = ("--model", "odd.py:wrong(how='nan')", "--save-steps", 2, "--out", "cut2", "--quiet")
    table = ("t.csv", "--target", "outcome", "--method", "plain()", "--steps", 12)
    assert "nan" in refused("run", *table, *cut)
    text = Path("t.csv").read_text()
    Path("t.csv").write_text(text.replace(",u,", ",v,", 1))
    before = contents(here / "cut2")
    assert "t.csv has changed since cut2 was begun" in refused("resume", "cut2", "--quiet", "--trust-code")
    assert contents(here / "cut2") == before
    Path("t.csv").write_text(text)
    assert "nan" in refused("resume", "cut2", "--quiet", "--trust-code")


# ---- full disks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", [1, 2, 20, 60])
def test_a_disk_that_fills_up_costs_one_line_and_no_checkpoint(
    writes: int, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever write finds the disk full; with room again, the run ends as if nothing had been."""
    args = ("run", "digits", "--method", "ps_kd()", "--steps", 6, "--save-steps", 2, "--quiet", "--out")
    real, count = os.fsync, [0]

    def full(handle: int) -> None:
        count[0] += 1
        if count[0] >= writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    line = refused(*args, "full")
    assert "full" in line
    assert "space" in line
    assert list(Path("full").rglob(".tmp-*")) == []
    monkeypatch.setattr(os, "fsync", real)
    assert count[0] >= writes
    result, wanted = report(*args, "full"), report(*args, "roomy")
    assert result["test"] == wanted["test"]
    assert contents(here / "full/model") == contents(here / "roomy/model")


def test_a_disk_that_is_really_full(here: Path) -> None:
    """A file system of 500 kB, where this machine lets us make one."""
    disk = here / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=500k", "t", str(disk)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        args = ("run", "digits", "--model", "mlp(width=64)", "--method", "ps_kd()", "--steps", 30, "--save-steps", 5)
        line = refused(*args, "--out", disk / "run", "--quiet")
        kept = checkpoint.newest(disk / "run/checkpoints", warn=pytest.fail)
        assert kept is not None
        assert f"the disk is full; the earlier checkpoint {kept.name} is intact" in line
        subprocess.run(["mount", "-o", "remount,size=5m", disk], check=True)
        assert report("resume", disk / "run")["test"] == report(*args, "--out", "roomy")["test"]
    finally:
        subprocess.run(["umount", disk], check=True)
