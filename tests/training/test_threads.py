"""Small models train on one thread, large ones on what there is; the choice does not depend on a clock."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.estimators import run
from selfdistill.estimators.run import TableRun
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request, write_record
from selfdistill.training import threads


def test_a_small_pass_gets_one_thread_and_a_large_one_all() -> None:
    """The border is 50 million operations: a linear layer of 1000 x 1000 does 2 million a row."""
    with threads.limited_to(2):
        layer = nn.Linear(1000, 1000)
        assert threads.for_model(layer, torch.zeros(24, 1000)) == 1
        assert threads.for_model(layer, torch.zeros(26, 1000)) == 2


def test_asking_leaves_randomness_and_threads_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    state, before = torch.get_rng_state(), torch.get_num_threads()
    threads.for_model(model, torch.zeros(2, 3))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == before


def test_fewer_threads_are_taken_and_recorded_where_the_environment_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)
    for given, wanted in (("1", 1), ("7", 2), ("many", 2), ("0", 2)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        assert threads.requested() == wanted
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert threads.for_table(1_000_000, 20) == 1


def test_one_thread_learns_a_small_table_and_all_a_large_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads of scikit-learn, which are not those of torch, are asked while it learns."""
    from threadpoolctl import threadpool_info

    seen: list[int] = []

    def fit(prepared: TableRun, model: Any) -> Any:
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        return fitted(prepared, model)

    fitted = run.fit
    monkeypatch.setattr(run, "fit", fit)
    monkeypatch.setattr(threads, "cores", lambda: 2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number, (cells, wanted) in enumerate(((threads.SMALL_TABLE, 1), (600, 2))):  # iris has 150 rows of 4 columns
        monkeypatch.setattr(threads, "SMALL_TABLE", cells)
        with threads.limited_to(2):
            Run.create(Request("iris", model="linear", method="plain()"), tmp_path / f"{number}").execute()
        assert set(seen) == {wanted}
        assert json.loads((tmp_path / f"{number}" / "run.json").read_text())["threads"] == wanted
        seen.clear()


def test_a_run_goes_on_with_the_threads_it_was_begun_with(tmp_path: Path) -> None:
    request = Request(steps=1, method="elr()", control=False)
    with threads.limited_to(2):
        Run.create(request, tmp_path / "run").execute()
        assert torch.get_num_threads() == 2
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["threads"] == 1, "an MLP on digits is small"
    del record["result"]
    record["threads"] = 2
    write_record(tmp_path / "run" / "run.json", record)
    Run.open(tmp_path / "run").execute()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threads"] == 2
