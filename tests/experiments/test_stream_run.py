"""A run of a stream by its request: its controls, its scores, its refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import SelfdistillError
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request

SMALL: dict[str, Any] = {"data": "digits", "tasks": 5, "epochs": 1, "batch_size": 16, "device": "cpu"}


def test_a_stream_has_naive_and_joint_training_beside_it(tmp_path: Path) -> None:
    result = Run.create(Request(**SMALL), tmp_path / "run").execute()
    stream = result["stream"]
    assert result["method"] == "der_pp()"
    assert [len(task) for task in stream["classes"]] == [2] * 5
    assert stream["naive"]["accuracy"] < stream["method"]["accuracy"]
    assert "forgetting" not in stream["joint"]
    again = Run.open(tmp_path / "run").result()
    assert again is not None
    assert again["stream"]["method"] == stream["method"]
    assert "plain(), task after task" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tasks": 11}, "2 to 10 tasks"),
        ({"method": "mutual()"}, "no method for streams"),
        ({"audit_folds": 3}, "--audit-folds"),
    ],
)
def test_what_a_stream_cannot_be_is_refused_before_training(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SelfdistillError, match=words):
        Run.create(Request(**{**SMALL, **more}), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()
