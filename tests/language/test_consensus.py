"""Agreement stands for a label: what is learnt, what is not, and who wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from selfdistill.core.step import TrainingClock
from selfdistill.language import completions
from selfdistill.language.completions import Writer
from selfdistill.language.consensus import Consensus, agreed, final_answer
from selfdistill.language.contexts import Rollout
from selfdistill.language.methods_2026 import gates
from selfdistill.language.trainer import LanguageTask, fit
from tests.language.tiny import prompts, student


@pytest.mark.parametrize(("text", "answer"), [
    ("<think>4? 5?</think>It is 5", "it is 5"), ("so \\boxed{1} or \\boxed{2}", "2"), ("The answer is 7.\n", "7"),
    ("ANSWER:  Blue  Whale", "blue whale"), ("", ""),
])  # fmt: skip
def test_the_last_named_answer_counts(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_agreement_needs_enough_answers_with_words() -> None:
    assert agreed(["a", "A.", "b"], 2) == "a"
    assert agreed(["", "", "b"], 2) is None
    assert agreed(["a", "b"], 2) is None


def said(texts: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions with these texts, over and over."""

    def roll(model: Any, asked: Sequence[tuple[int, Sequence[int]]], *rest: Any) -> list[Rollout]:
        return [Rollout(i, tuple(p), (9, 10), texts[n % len(texts)]) for n, (i, p) in enumerate(asked)]

    monkeypatch.setattr(completions, "roll", roll)


def rollouts(source: Consensus) -> list[Rollout]:
    writer = Writer(gates(), prompts(20))
    writer.model = student()
    return source.rollouts(writer, [0, 1], TrainingClock())


def test_the_majority_is_learnt_and_the_student_writes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    said(["4", "Answer: 4", "5"], monkeypatch)
    found = rollouts(Consensus(3, 2, 1))
    assert [(r.example, r.tutored, r.trusted, r.text) for r in found[:3]] == [
        (0, True, True, "4"), (0, True, True, "Answer: 4"), (0, False, True, "4")]  # fmt: skip
    assert found[0].prompt == found[2].prompt  # the tutor's answers are learnt without the document


def test_without_agreement_nothing_is_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    said(["4", "5", "6"], monkeypatch)
    assert [(r.example, r.tutored, r.trusted) for r in rollouts(Consensus(3, 2, 1))] == [
        (0, True, False), (1, True, False)]  # fmt: skip


def test_an_answer_that_speaks_of_the_document_has_no_vote(monkeypatch: pytest.MonkeyPatch) -> None:
    said(["According to the document 5. Answer: 5", "Based on the text. Answer: 5", "4"], monkeypatch)
    assert not any(r.trusted for r in rollouts(Consensus(3, 2, 0)))
    assert [r.text for r in rollouts(Consensus(3, 1, 0))] == ["4", "4"]


def test_a_step_without_agreement_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Consensus, "_votes", staticmethod(lambda told, example: []))
    options: dict[str, Any] = {"device": "cpu", "steps": 2, "batch_size": 4, "max_tokens": 4, "audit": "off"}
    result = fit(student, prompts(20), gates(2, 2, max_tokens=4), optimizer="sgd", weight_decay=0.0, **options)
    begun = student().learning()
    assert all(torch.equal(w, begun[name]) for name, w in result.generations[-1].weights.items())
    assert all(line["loss"] == 0 for line in result.history)


def test_the_tutors_answers_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    said(["4", "4", "4"], monkeypatch)
    task = LanguageTask(student, prompts(20), gates(3, 2))
    task.writer.model = student()
    written = rollouts(Consensus(3, 2, 1))
    seen = completions.views(task.writer, written)
    assert seen["context"][1].tolist() == [i for i, r in enumerate(written) if not r.tutored]
