"""The test split is out of reach while anything is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfdistill import fit
from selfdistill.data.dataset import Data, load, sealed
from selfdistill.errors import DataError
from selfdistill.methods import born_again
from selfdistill.models.registry import parse
from selfdistill.training.supervised import NetworkTask
from selfdistill.training.trainer import Trainer


def test_rows_labels_and_ids_are_out_of_reach() -> None:
    data = load("digits", labels=100)
    kept = sealed(data)
    assert (kept.y[data.test] == -1).all()
    assert not len(kept.test)
    with pytest.raises(DataError, match="test split was asked for"):
        kept.rows(torch.cat([data.labelled[:3], data.test[:1]]))
    assert torch.equal(kept.rows(data.audit), data.rows(data.audit))
    assert torch.equal(kept.y[data.audit], data.y[data.audit])
    assert kept.fingerprint == data.fingerprint
    assert sealed(kept) is kept


def test_values_lose_theirs_as_nan() -> None:
    from selfdistill.data.dataset import from_tensors

    data = from_tensors(torch.randn(40, 3), torch.randn(40))
    assert sealed(data).y[data.test].isnan().all()


def test_no_part_of_a_training_run_reads_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits", labels=100)
    read: set[bytes] = set()
    before = Data._as_input

    def as_input(self: Data, values: torch.Tensor) -> torch.Tensor:
        read.update(row.numpy().tobytes() for row in values)
        return before(self, values)

    monkeypatch.setattr(Data, "_as_input", as_input)
    fit(parse("mlp", data.shape, 10), data, born_again(generations=2), steps=3)
    assert {row.numpy().tobytes() for row in data.tensor[data.audit]} <= read
    assert not {row.numpy().tobytes() for row in data.tensor[data.test]} & read


def test_a_trainer_that_scores_the_test_split_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    data = load("digits", labels=100)
    before = Trainer.end_epoch

    def peek(self: Trainer, clock: Any) -> None:
        assert isinstance(self.task, NetworkTask)
        self.task.data.rows(data.test)
        before(self, clock)

    monkeypatch.setattr(Trainer, "end_epoch", peek)
    with pytest.raises(DataError, match="choose by the audit split"):
        fit(parse("mlp", data.shape, 10), data, born_again(generations=1), steps=3)
