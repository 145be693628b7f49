"""A batch that goes through in pieces, for the sake of memory, teaches what it teaches as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfdistill.language import trainer
from selfdistill.language.completions import Language
from selfdistill.language.methods_2026 import eopd, lsm, opsdl
from selfdistill.language.recipes import grpo, opsd, sdft, sdpo, sft, spin
from selfdistill.language.trainer import LanguageTask
from selfdistill.training.settings import Settings
from selfdistill.training.task import FunctionCallback
from selfdistill.training.trainer import Trainer
from tests.language.tiny import distil, prompts, student

DATA = prompts(30, checker="tests.language.test_recipes:lenient", privileged_context="ab?")


def learnt(method: Language, room: int, monkeypatch: pytest.MonkeyPatch, lora: int = 4) -> tuple[Tensor, int]:
    """The weights after a step, and in how many pieces the batch went."""
    monkeypatch.setattr(trainer, "ROOM", {"cpu": room})
    settings = Settings(epochs=1, batch_size=6, lr=1e-2, optimizer="sgd", vitals=False)
    pieces: list[int] = []
    count = FunctionCallback(lambda clock, batches, loss: pieces.append(len(batches)))
    task = LanguageTask(lambda: student(lora), DATA.sealed(), method, max_tokens=4)
    made = Trainer(task, method, settings, callbacks=[count])
    made.begin(0)
    made.step()
    return torch.cat([p.detach().flatten() for p in task.writer.model.learning().values()]), pieces[0]


@pytest.mark.parametrize(
    "recipe", [sft, sdft, opsd, sdpo, spin, grpo, eopd, lsm, opsdl], ids=lambda recipe: recipe.__name__
)
def test_a_step_in_pieces_is_a_step(recipe: type, monkeypatch: pytest.MonkeyPatch) -> None:
    method = recipe() if recipe is sft else recipe(max_tokens=4, **({"k": 5} if recipe in (eopd, lsm) else {}))
    whole, one = learnt(method, 10**6, monkeypatch)
    pieces, many = learnt(method, 20, monkeypatch)
    assert one == 1
    assert many > 1
    torch.testing.assert_close(pieces, whole, rtol=1e-4, atol=1e-6)


def test_a_quantile_is_one_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    method = sdft(max_tokens=4)
    method = replace(method, terms={"distil": distil(quantile=0.5)})
    assert learnt(method, 20, monkeypatch)[1] == 1
