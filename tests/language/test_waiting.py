"""How far a language model is with its answers is told, in numbers that are right."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfdistill.io.run_record import Request
from selfdistill.language import sampling
from selfdistill.language.run import prepare
from selfdistill.language.sampling import Sampling, WritingProgress, export, roll
from selfdistill.training.task_type import Listeners
from tests.language.tiny import student


class Watch:
    """A clock on which each look takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 1.0
        return self.now


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(sampling, "time", Watch())
    monkeypatch.setattr(sampling, "line_due", lambda *_: True)
    return []


def test_an_engine_that_counts_tells_prompts_and_the_seconds_left(said: list[str]) -> None:
    """40 prompts go as 32 and 8; a second a token, and nobody stops before the 4th: 4 x 32 + 4 x 8 parts in all."""
    model, sampling = student(), Sampling(1e-6, max_tokens=4)
    prompts = [(i, (5 + i % 7, 6, 7)) for i in range(40)]
    counted = WritingProgress(said.append, "it answers", 40)
    assert roll(model, prompts, sampling, (0, "x"), counted) == roll(model, prompts, sampling, (0, "x"))
    done = [int(re.findall(r"\d+", line)[0]) for line in said]
    assert done == sorted(done)
    assert set(done) == {0, 32}, "a chunk is told of before it has ended"
    assert said[0] == "it answers: 0 of 40 prompts, at most about 4 s left", "1 s for 32 of 160 parts"


def test_nothing_is_told_within_the_first_seconds_or_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "time", Watch())
    lines: list[str] = []
    assert list(WritingProgress(lines.append, "read", 12).each(range(12))) == list(range(12))
    assert lines == [f"read: {n} of 12 prompts, at most about {12 - n} s left" for n in (4, 8)]


@pytest.mark.parametrize("checked", [True, False])
def test_a_run_tells_of_every_wait(said: list[str], checked: bool, tmp_path: Path) -> None:
    """The model before, the audit, what is written, the control, and the final tests of all of them."""
    export(student(), tmp_path / "tiny")
    judge: dict[str, Any] = {"checker": "exact"} if checked else {}
    rows = [{"prompt": f"{i}?", "demonstration": "ab", "answer": "ab", **judge} for i in range(16)]
    for name, few in (("p", rows), ("k", [{**row, "checker": "exact"} for row in rows[:2]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in few))
    request = Request(
        data=f"{tmp_path}/p.jsonl", model=f"{tmp_path}/tiny", method="sdft()", max_tokens=3, steps=1, batch_size=2,
        keep=f"{tmp_path}/k.jsonl", device="cpu",
    )  # fmt: skip
    prepare(request).train(tmp_path / "run", Listeners(lambda name: None, said.append, said.append))
    before = [line.partition(": ")[0] for line in said if line.endswith("s left")]
    for who in ("the model before answers", "generation 0 answers", "completions are written", "the final tests"):
        assert who in before
    assert any(line.startswith("sft(), the baseline: the model before answers: ") for line in said)
    for who in ("the model before", "generation 0", "sft()"):
        assert any(line.startswith(f"the final tests: {who} answers: ") for line in said)
    totals = {
        int(n) for line in said if line.startswith("the model before") for n in re.findall(r"of (\d+) prompts", line)
    }
    assert len(totals) == 1, "one count for the audit and the suite"
