"""A teacher that is asked for several pieces of a step together says of each what it says of that piece alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core.logits import dense
from selfdistill.core.parts import BindArgs
from selfdistill.core.step import Forward, ForwardPlan, TrainingClock
from selfdistill.models import causal_lm
from selfdistill.models.causal_lm import Causal
from selfdistill.teachers import Ema
from tests.language.tiny import Pair, batch_of, distil, shaken, spoken, student

PAIRS: list[list[Pair]] = [[([5, 6, 7], [8, 9])], [([5], [6, 7, 8]), ([9] * 7, [5])], [([7] * 4, [6, 6])]]


@pytest.mark.parametrize(("room", "looks"), [(1, 3), (24, 2), (10**6, 1)])
def test_pieces_are_judged_as_each_alone(room: int, looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "TOGETHER", room)
    model, asked = shaken(student(lora=4)), list[Tensor]()
    judge = Ema(0.5, "context", warm_up=False)
    state = judge.start(model, BindArgs())
    teacher = spoken(shaken(student(lora=4)).lm.eval(), [pair for some in PAIRS for pair in some], model.vocabulary)
    shaken(model, seed=2)  # the student has gone on, the teacher has not
    look = Causal.hidden_states

    def counted(self: Causal, x: Tensor, weights: Any = None) -> Tensor:
        asked.append(x)
        return look(self, x, weights)

    monkeypatch.setattr(Causal, "hidden_states", counted)
    batches = [batch_of(some, context=(some, range(len(some)))) for some in PAIRS]
    model.micro_batches = [[b["context"].x for b in batches]]
    found = []
    for piece in batches:
        forward = Forward(model, piece, TrainingClock(), ForwardPlan(fused=False)).run()
        before = forward.passes.teacher
        target = judge.target(state, forward, distil(judge))
        assert forward.passes.teacher - before == forward.rows("context")
        found.append(torch.log_softmax(dense(target.value)[target.valid], -1))
    assert len(asked) == looks
    torch.testing.assert_close(torch.cat(found), torch.cat(teacher), atol=1e-4, rtol=1e-4)
