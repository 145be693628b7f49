"""Silent failures seen in public code, by their number: what training loops do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selfdistill import fit
from selfdistill.core import Rows
from selfdistill.errors import DataError, RecipeError
from selfdistill.methods import born_again, mean_teacher, mutual, plain
from selfdistill.models import parse
from selfdistill.tasks.data import load
from selfdistill.tasks.guard import sealed

from .common import CLASSES, ROWS, Net, batch


def test_bug_04_a_student_left_in_eval_mode_is_refused_and_scoring_puts_the_mode_back() -> None:
    model = Net()
    objective = plain().bind(model)
    model.eval()
    with pytest.raises(RecipeError, match="eval mode at a training step"):
        objective(batch())
    modes: list[bool] = []
    data = load("digits", labels=50)
    build = parse("mlp", data.shape, 10)
    fit(
        build,
        data,
        born_again(),
        epochs=2,
        batch_size=25,
        watch=lambda clock, batches, loss: modes.append(MADE[-1].training),
    )
    assert modes
    assert all(modes)


MADE: list[nn.Module] = [nn.Linear(1, 1)]


@pytest.fixture(autouse=True)
def _remember_models(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfdistill.trainer import Trainer

    begin = Trainer.begin

    def remembered(self: Trainer, generation: int) -> None:
        begin(self, generation)
        MADE.append(self.model)

    monkeypatch.setattr(Trainer, "begin", remembered)


@pytest.mark.parametrize("make", [plain, mean_teacher, mutual], ids=["plain", "mean_teacher", "mutual"])
def test_bug_11_a_batch_twice_has_the_loss_of_the_batch(make: Any) -> None:
    torch.manual_seed(0)
    method = make()
    model = (method.prepare or (lambda build: build))(lambda: nn.Linear(4, CLASSES))()
    views = [look.name for look in method.views.looks]
    xs, y = [batch(i)["x"] for i in range(len(views))], batch()["y"]
    one = {view: Rows(x, y, torch.arange(ROWS)) for view, x in zip(views, xs, strict=True)}
    twice = {view: Rows(r.x.repeat(2, 1), y.repeat(2), torch.arange(2 * ROWS)) for view, r in one.items()}
    losses = [float(method.bind(model)(given).detach()) for given in (one, twice)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bug_14_a_later_generation_starts_afresh_and_sees_its_rows_in_another_order() -> None:
    data = load("digits", labels=100)
    order: dict[int, list[int]] = {}

    def watch(clock: Any, batches: Any, loss: float) -> None:
        order.setdefault(clock.generation, []).extend(batches[0]["x"].id.tolist())

    found = fit(parse("mlp", data.shape, 10), data, born_again(generations=3), epochs=1, watch=watch, audit="off")
    assert len({t.start for t in found.generations}) == 3
    assert len({tuple(ids) for ids in order.values()}) == 3


def test_bug_16_the_test_split_cannot_choose_anything() -> None:
    data = load("digits", labels=100)
    kept = sealed(data)
    assert bool((kept.y[data.test] == -1).all())
    with pytest.raises(DataError, match="asked for during training"):
        kept.rows(data.test[:1])
