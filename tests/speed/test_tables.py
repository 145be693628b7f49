"""The measurement of tables runs and finds that reading is in proportion to the columns."""

import subprocess

import pytest

from benchmarks.speed import tables


def test_the_measurement_has_an_exponent_and_a_multiple_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.CompletedProcess([], 0, stdout="400000\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: child)
    result = tables.run(quick=True, progress=lambda line: None)
    assert list(result["columns"]) == ["10", "30", "100"]
    assert result["exponent"] < 1.5
    assert result["memory"] == 2.0
    assert "peak memory 2.00 times the table" in tables.render(result)
