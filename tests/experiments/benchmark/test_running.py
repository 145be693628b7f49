"""Cells are trained once, in an order that lets first seeds go first, and within the time given."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError, DataError
from selfdistill.experiments.benchmark import cells
from selfdistill.experiments.benchmark.cells import plan, read, records_of, run_cells
from selfdistill.experiments.benchmark.settings import PLAIN, SETTINGS, Cell
from tests.experiments.benchmark.common import FEW, NOISE, keep, record


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Cell]:
    """The cells that are asked for in this test; none is really trained."""
    found: list[Cell] = []

    def stand_in(cell: Cell, out: Path) -> dict[str, Any]:
        found.append(cell)
        return keep(out, cell.setting, cell.method, cell.seed, 0.9)

    monkeypatch.setattr(cells, "run", stand_in)
    return found


def test_what_is_done_is_not_trained_again(trained: list[Cell], tmp_path: Path) -> None:
    wanted = plan([NOISE], ["elr()"])
    assert run_cells(wanted, tmp_path) == 0
    assert trained == wanted
    path = NOISE.path(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if line != json.dumps(record(NOISE, "elr()", 1, 0.9)) + "\n"))
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
    assert [c for c in wanted if read(c, tmp_path)] == wanted[:4]


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
    run_cells([cell], tmp_path)
    whole = NOISE.path(tmp_path).read_text()
    for damage, why in (("{\n", "Expecting"), (whole.replace('"seed": 0', '"seed": "0"'), "seed")):
        NOISE.path(tmp_path).write_text(whole + damage)
        with pytest.raises(
            CheckpointError, match=rf"digits-noise.jsonl, line 2, is damaged \(.*{why}.*; delete the line"
        ):
            run_cells([cell], tmp_path)
    NOISE.path(tmp_path).write_text(whole)
    with pytest.raises(DataError, match=r"jsonl, line 1, is of another setting \(steps 20, now 21\); delete it"):
        run_cells([Cell(replace(NOISE, steps=21), PLAIN, 0)], tmp_path)


def test_a_line_that_was_cut_off_is_told_of_and_its_cell_trained_again(tmp_path: Path, trained: list[Cell]) -> None:
    wanted = plan([NOISE], ["elr()"], 1)
    run_cells(wanted, tmp_path)
    path = NOISE.path(tmp_path)
    path.write_text(path.read_text()[:-20])
    trained.clear()
    told: list[str] = []
    assert run_cells(wanted, tmp_path, tell=told.append) == 0
    assert trained == wanted[1:]
    assert told[0] == f"the last line of {path} was cut off while it was written; its cell counts as missing"
    assert sorted(records_of(NOISE, tmp_path, told.append)) == ["elr()", PLAIN]
    assert len(told) == 2  # the cut line, and the cell: the file is whole again


def test_of_two_records_of_a_cell_the_later_one_counts(tmp_path: Path) -> None:
    keep(tmp_path, NOISE, PLAIN, 0, 0.5)
    later = keep(tmp_path, NOISE, PLAIN, 0, 0.6)
    assert read(Cell(NOISE, PLAIN, 0), tmp_path) == later


def test_the_cells_of_this_repository_are_read() -> None:
    folder = Path(__file__).parents[3] / "benchmarks" / "cells"
    records = {name: records_of(setting, folder) for name, setting in SETTINGS.items()}
    assert {path.stem for path in folder.iterdir()} == {name for name, of in records.items() if of}
    assert sum(len(of) for setting in records.values() for of in setting.values()) >= 2664
    assert records["digits-50"]["bake()"][0]["test"]["last"]["accuracy"] == 0.88


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
