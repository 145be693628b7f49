"""Progress: a bar for a person, a line now and then for a file, figures true to the step, nothing on stdout."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from selfdistill.cli.progress import Reporter, reporting
from selfdistill.core.step import TrainingClock
from tests.terminal import child, passed

FIGURES = {"loss": 1.25, "label": 1.0, "pseudo": 0.5, "pseudo kept": 0.625}


def clock(step: int, generation: int = 0, generations: int = 1) -> TrainingClock:
    return TrainingClock(generation, generations, step // 10, 3, step, 10)


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock on the wall that the test sets."""
    seconds = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: seconds[0])
    return seconds


def test_a_line_says_epoch_losses_share_kept_and_time_left(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show = Reporter(None).begin("fixmatch()")
    show(clock(0), FIGURES)
    now[0] += 18.0
    show(clock(12), FIGURES)
    out, err = capsys.readouterr()
    assert out == ""
    # 12 steps took 18 s, 17 of 30 are left: 25.5 s
    assert err.splitlines() == [
        "fixmatch(): epoch 1/3  step 1/30  loss 1.250  label 1.000  pseudo 0.500  pseudo kept 62 %",
        "fixmatch(): epoch 2/3  step 13/30  loss 1.250  label 1.000  pseudo 0.500  pseudo kept 62 %  26 s left",
    ]


def test_trainings_are_counted_against_the_most_and_the_first_one_takes_time_too(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """An audit ended the chain after 3 of at most 8."""
    show = Reporter(None).begin("peer_taught()")
    for done, planned in ((1, 8), (2, 8), (3, 3)):
        now[0] += 20.0
        show.count(done, planned, "fold 1")
    assert capsys.readouterr().err.splitlines() == [
        "peer_taught(): training 1 of at most 8  fold 1  140 s left if all are needed",
        "peer_taught(): training 2 of at most 8  fold 1  120 s left if all are needed",
        "peer_taught(): training 3 of at most 3  fold 1  0 s left",
    ]


def test_lines_come_now_and_then_and_at_the_end(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    show = Reporter(None).begin("plain()")
    for step in range(30):
        now[0] += 1.0
        show(clock(step), {"loss": 1.0})
    steps = re.findall(r"step (\d+)/30", capsys.readouterr().err)
    assert steps == ["1", "5", "9", "13", "17", "21", "25", "29", "30"]


def test_a_resumed_run_counts_its_pace_from_where_it_went_on(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    show = Reporter(None).begin("plain()")
    show(clock(19), {})
    now[0] += 20.0
    show(clock(24), {})  # five steps in 20 s, five are left
    assert capsys.readouterr().err.splitlines()[-1].endswith("step 25/30    20 s left")


def test_generations_are_counted_too(capsys: pytest.CaptureFixture[str]) -> None:
    Reporter(None).begin("born_again()")(clock(9, generation=1, generations=2), {"loss": 2.0})
    assert capsys.readouterr().err == "born_again(): generation 2/2 epoch 1/3  step 40/60  loss 2.000\n"


def test_quiet_shows_nothing() -> None:
    with reporting(quiet=True) as reporter:
        assert reporter is None


def test_a_run_into_a_file_shows_the_share_that_the_gate_keeps(tmp_path: Path) -> None:
    args = (
        "run",
        "digits",
        "--labels",
        50,
        "--method",
        "fixmatch(confidence=0.1)",
        "--steps",
        3,
        "--out",
        tmp_path / "r",
    )
    result = passed(*args, "--json")
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["steps"] == 3
    assert re.search(r"step 3/3  loss [\d.]+  label [\d.]+  pseudo [\d.]+  pseudo kept \d+ %", result.stderr)
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_a_bar_that_moves_and_stdout_stays_clean(columns: int, tmp_path: Path) -> None:
    """A real pseudo-terminal on stderr."""
    here, there = pty.openpty()
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": str(columns), "LINES": "24"}
    args = ("run", "digits", "--labels", 50, "--method", "fixmatch(ratio=2)", "--steps", 150, "--out", tmp_path / "r")
    process = child(*args, "--json", stderr=there, stdout=subprocess.PIPE, env=env)
    os.close(there)
    shown = _read(here)
    assert process.stdout is not None
    (line,) = process.stdout.read().splitlines()
    assert process.wait(timeout=10) == 0
    assert json.loads(line)["steps"] == 150
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown)
    assert len(set(re.findall(r"epoch (\d+)/\d+", plain))) > 3
    for words in (
        "fixmatch(ratio=2)",
        "plain(), the baseline",
        "150/150",
        "left",
        "loss ",
        "label ",
        "pseudo kept 0 %",
    ):
        assert words in plain


def _read(handle: int, patience: float = 60.0) -> str:
    """Everything until the other side closes."""
    text, until = b"", time.monotonic() + patience
    while time.monotonic() < until and select.select([handle], [], [], 1.0)[0] is not None:
        try:
            piece = os.read(handle, 65536)
        except OSError:  # Linux says so when the last writer has gone
            break
        if not piece:
            break
        text += piece
    os.close(handle)
    return text.decode(errors="replace")
