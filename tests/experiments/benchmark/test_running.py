"""Cells are trained once, in an order that lets first seeds go first, and within the time given."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError, DataError
from selfdistill.experiments.benchmark import cells
from selfdistill.experiments.benchmark.cells import plan, read, run_cells
from selfdistill.experiments.benchmark.settings import PLAIN, Cell
from tests.experiments.benchmark.common import FEW, NOISE, record


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are asked for in this test; none is really trained."""
    import json

    found: list[Cell] = []

    def stand_in(cell: Cell, out: Path) -> dict[str, Any]:
        found.append(cell)
        made = record(cell.setting, cell.method, cell.seed, 0.9)
        cell.path(out).parent.mkdir(parents=True, exist_ok=True)
        cell.path(out).write_text(json.dumps(made))
        return made

    monkeypatch.setattr(cells, "run", stand_in)
    return found


def test_what_is_done_is_not_trained_again(trained: list[Cell], tmp_path: Path) -> None:
    wanted = plan([NOISE], ["elr()"])
    assert run_cells(wanted, tmp_path) == 0
    assert trained == wanted
    Cell(NOISE, "elr()", 1).path(tmp_path).unlink()
    trained.clear()
    said: list[str] = []
    assert run_cells(wanted, tmp_path, tell=said.append) == 0
    assert trained == [Cell(NOISE, "elr()", 1)]
    assert said == ["6/6 digits-noise: elr(), seed 1: 90.0 %, 1.0 s; about 0 s left"]


def test_it_stops_before_the_minutes_are_over(trained: list[Cell], tmp_path: Path) -> None:
    """Every cell says it took a second; a twentieth of a minute is three seconds, of which none have passed."""
    wanted = plan([NOISE], ["elr()"])
    assert run_cells(wanted, tmp_path, minutes=0.0) == 6
    assert run_cells(wanted, tmp_path, minutes=0.9 / 60) == 5  # the first has no measure yet
    assert run_cells(wanted, tmp_path, minutes=10.0) == 0


def test_stopped_in_the_midst_what_is_done_stays(
    trained: list[Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = cells.run

    def stopped(cell: Cell, out: Path) -> Any:
        if len(trained) == 4:
            raise KeyboardInterrupt
        return usual(cell, out)

    monkeypatch.setattr(cells, "run", stopped)
    wanted = plan([NOISE], ["elr()"])
    with pytest.raises(KeyboardInterrupt):
        run_cells(wanted, tmp_path)
    assert [c for c in wanted if c.path(tmp_path).exists()] == wanted[:4]


def test_side_by_side_a_methods_first_seed_goes_first() -> None:
    queue = [Cell(NOISE, m, s) for s in (0, 1) for m in (PLAIN, "elr()")]
    running_now: list[Cell] = []
    taken = []
    while cell := cells._next(queue, running_now):
        taken.append((cell.method, cell.seed))
        queue.remove(cell)
        running_now.append(cell)
    assert taken == [(PLAIN, 0), ("elr()", 0)]
    assert cells._next(queue, [Cell(NOISE, "elr()", 0)]) == Cell(NOISE, PLAIN, 1)
    assert cells._next(queue, [Cell(FEW, PLAIN, 0)]) == Cell(NOISE, PLAIN, 1)


def test_a_method_that_does_not_fit_has_no_cell() -> None:
    assert {cell.method for cell in plan([NOISE], ["fixmatch()", "elr()"])} == {PLAIN, "elr()"}
    assert {cell.method for cell in plan([FEW], ["fixmatch()"])} == {PLAIN, "fixmatch()"}
    assert len(plan([NOISE], ["elr()"], 7)) == 14


def test_a_damaged_record_and_one_of_another_setting_are_named(tmp_path: Path, trained: list[Cell]) -> None:
    from dataclasses import replace

    cell = Cell(NOISE, PLAIN, 0)
    cell.path(tmp_path).parent.mkdir(parents=True)
    cell.path(tmp_path).write_text("{")
    with pytest.raises(CheckpointError, match=r"0.json is damaged .*; delete it and go on"):
        run_cells([cell], tmp_path)
    cell.path(tmp_path).unlink()
    run_cells([cell], tmp_path)
    with pytest.raises(DataError, match=r"0.json is of another setting \(steps 20, now 21\); delete it"):
        run_cells([Cell(replace(NOISE, steps=21), PLAIN, 0)], tmp_path)


@pytest.mark.slow
def test_two_processes_leave_what_one_does(tmp_path: Path) -> None:
    wanted = plan([NOISE], ["elr()"], 2)
    begun = time.monotonic()
    assert run_cells(wanted, tmp_path / "two", workers=2) == 0
    assert run_cells(wanted, tmp_path / "one") == 0
    assert time.monotonic() - begun < 600
    for cell in wanted:
        one, two = (read(cell, tmp_path / name) for name in ("one", "two"))
        assert one is not None
        assert two is not None
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
