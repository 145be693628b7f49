"""The Lightning module: losses are those of a loop by hand, teachers move and resume, one update an optimizer step."""

from __future__ import annotations

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from selfdistill.core.objective import Method
from selfdistill.core.step import TrainingClock
from selfdistill.errors import RecipeError
from selfdistill.integrations.lightning import SelfDistilled
from tests.integrations.common import EMA, KEPT, METHODS, ROWS, by_hand, inputs, net, same

SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
EPOCH = [list(range(i, min(i + 5, ROWS))) for i in range(0, ROWS, 5)]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class Told(SelfDistilled):
    """Remembers every loss."""

    told: list[float]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.told += [float(loss.detach())]
        return loss


def module(method: Method, **options: Any) -> Any:
    found = Told(net(**options), method, SGD)
    found.told = []
    return found


def trained(mine: Any, epochs: int = 2, resume: Path | None = None, callbacks: Any = (), **more: Any) -> Trainer:
    x, y = inputs()
    rows: Any = [{"x": x[i], "y": int(y[i]), "id": i} for i in range(ROWS)]
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=bool(callbacks),
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, **more,
    )  # fmt: skip
    trainer.fit(mine, torch.utils.data.DataLoader(rows, batch_size=5), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("name", METHODS)
def test_losses_weights_and_clock_are_those_of_a_loop_by_hand(name):
    theirs, mine = module(METHODS[name]), net()
    trained(theirs)
    losses, objective = by_hand(
        METHODS[name], mine, [[ids] for ids in EPOCH * 2], TrainingClock(epochs=2, per_epoch=5, steps=10)
    )
    assert theirs.told == losses
    same(mine.state_dict(), theirs.model.state_dict())
    same(objective.state_dict(), theirs.objective.state_dict())
    assert theirs.objective.clock == TrainingClock(0, 1, 1, 2, 10, 5, 10)


@pytest.mark.parametrize("name", METHODS)
def test_stopped_after_an_epoch_and_resumed_it_ends_as_if_it_had_not_been(name, tmp_path):
    """Without dropout: Lightning restores no random state."""
    whole, cut, resumed = (module(METHODS[name]) for _ in range(3))
    trained(whole, 3)
    trained(cut, 3, callbacks=[ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)])
    trained(resumed, 3, resume=tmp_path / "epoch=0.ckpt")
    assert resumed.told == whole.told[5:]
    same(whole.state_dict(), resumed.state_dict())
    assert any(key.startswith("objective.states") for key in whole.state_dict())


def test_without_the_objectives_state_it_would_end_elsewhere(tmp_path):
    """So the test above can fail."""
    whole, cut, resumed = (module(EMA) for _ in range(3))
    trained(whole, 3)
    trained(cut, 3, callbacks=[ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)])
    resumed.on_load_checkpoint = lambda saved: saved["state_dict"].update(
        {k: v for k, v in module(EMA).state_dict().items() if k.startswith("objective")}
    )
    trained(resumed, 3, resume=tmp_path / "epoch=0.ckpt")
    assert not torch.equal(whole.model.last.weight, resumed.model.last.weight)


def test_the_teacher_is_in_the_checkpoint_and_the_student_only_once(tmp_path):
    theirs = module(EMA)
    trained(theirs, callbacks=[ModelCheckpoint(tmp_path, "{epoch}")])
    names = set(theirs.state_dict())
    assert {f"model.{n}" for n in net().state_dict()} | {
        f"objective.states.average_ema.module.{n}" for n in net().state_dict()
    } <= names
    assert not any("model" in name and name.startswith("objective") for name in names)
    teacher = theirs.objective.states["average_ema"].module.last.weight
    assert not torch.allclose(teacher, theirs.model.last.weight, atol=1e-3)
    assert not torch.allclose(teacher, net().last.weight, atol=1e-3)


def test_one_update_an_optimizer_step_and_the_mean_of_the_micro_batches_means():
    """Lightning divides each by their planned number, also where the last step of an epoch has fewer."""
    theirs, mine = module(KEPT, norm=False), net(norm=False)
    calls: list[int] = []
    update = theirs.objective.update

    def counting() -> None:
        calls.append(len(theirs.objective._steps))
        update()

    theirs.objective.update = counting
    trainer = trained(theirs, accumulate_grad_batches=2)
    assert calls == [2, 2, 1] * 2
    assert trainer.global_step == theirs.objective.clock.step == 6
    assert theirs.objective.clock.per_epoch == 3
    steps = [EPOCH[:2], EPOCH[2:4], EPOCH[4:]] * 2
    objective = KEPT.bind(mine, clock=TrainingClock(epochs=2, per_epoch=3, steps=6))
    optimizer, (x, y) = SGD(mine.parameters()), inputs()
    for parts in steps:
        optimizer.zero_grad()
        for ids in map(torch.tensor, parts):
            (objective({"x": x[ids], "y": y[ids], "id": ids}) / 2).backward()
        optimizer.step()
        objective.update()
    same(mine.state_dict(), theirs.model.state_dict())


def test_a_number_of_steps_is_a_length_too_and_none_is_refused():
    theirs = module(EMA)
    trained(theirs, -1, max_steps=7)
    assert theirs.objective.clock == TrainingClock(0, 1, 1, 2, 7, 5, 7)
    assert theirs.objective.clock.progress == 1.0
    with pytest.raises(RecipeError, match="no end"):
        trained(module(EMA), -1)


def test_the_module_answers_as_its_model_does():
    theirs = module(EMA).eval()
    x, _ = inputs()
    assert theirs(x)["logits"].equal(theirs.model(x)["logits"])
