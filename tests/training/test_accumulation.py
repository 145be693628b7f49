"""Micro-batches are a matter of memory: the loss, the weights and the teachers are those of the whole batch.

Also here, what else must not change a step: its precision (within its tolerance), a compiler, a batch written twice;
and what a loss that is no number does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.data.dataset import Data
from selfdistill.errors import DataError, NotFiniteError
from selfdistill.gates import Confident
from selfdistill.io import checkpoint
from selfdistill.io.tensors import digest
from selfdistill.losses import CrossEntropy
from selfdistill.methods import recipes
from selfdistill.teachers import CurrentStudent, Labels
from selfdistill.training.fit import Result, fit
from selfdistill.views import View, Views, weak_strong
from tests.harness import CLASSES, tiny_data
from tests.workers.runs import by_id


class Flat(nn.Module):
    """8x8 images -> logits, without batch norm and dropout; two shallow exits where asked for."""

    def __init__(self, exits: bool = False) -> None:
        super().__init__()
        self.exits = exits
        self.stages = nn.ModuleList([nn.Linear(64, 10), nn.Linear(10, 8), nn.Linear(8, 6)])
        self.necks = nn.ModuleList([nn.Linear(10, 6), nn.Linear(8, 6)] if exits else [])
        self.classifiers = nn.ModuleList([nn.Linear(6, CLASSES) for _ in range(3 if exits else 1)])

    def forward(self, x: Tensor) -> Any:
        x, hidden = x.flatten(1), []
        for stage in self.stages:
            x = torch.tanh(stage(x))
            hidden.append(x)
        logits = 4.0 * self.classifiers[-1](x)  # not all classes alike at the start
        if not self.exits:
            return logits
        features = [neck(h) for neck, h in zip(self.necks, hidden, strict=False)]
        shallow = [head(f) for head, f in zip(self.classifiers, features, strict=False)]
        return {"logits": logits, "feature": x, "exits": torch.stack(shallow, 1), "features": torch.stack(features, 1)}


def fixmatch_that_keeps_some() -> Method:
    """FixMatch with a threshold that a beginner passes for some rows and fails for others."""
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(CurrentStudent(view="weak"), CrossEntropy(hard=True), view="strong", gate=Confident(0.43)),
        },
        views=weak_strong(2.0),
    )


def some_labels() -> Method:
    """Rows with and without labels in one view: how many count differs from micro-batch to micro-batch."""
    return Method({"label": Term(Labels(), CrossEntropy())}, views=Views((View("x", "all"),)))


METHODS: dict[str, Callable[[], Method]] = {
    **{name: recipes()[name] for name in ("plain", "elr", "ps_kd", "mutual", "byot", "mean_teacher", "dlb", "cs_kd")},
    **{name: recipes()[name] for name in ("ols", "tf_kd_reg", "beyond", "snapshot_distillation")},
    "self_adaptive": partial(recipes()["self_adaptive"], wait=0.0),
    "born_again": partial(recipes()["born_again"], xi=0.5),
    "fixmatch": fixmatch_that_keeps_some,
    "some_labels": some_labels,
}


def train(method: Method, folder: Path | None = None, **options: Any) -> tuple[Result, list[float]]:
    """The result and the loss of every step."""
    data = tiny_data(24 if any(look.rows != "labelled" for look in method.views.views) else 0)
    losses: list[float] = []

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        losses.append(loss)

    defaults: dict[str, Any] = {"steps": 8, "batch_size": 11, "optimizer": "sgd", "lr": 0.01, "watch": watch}
    return fit(Flat, data, method, out=folder, **{**defaults, **options}), losses


def left(folder: Path) -> dict[str, Tensor]:
    """Student and teachers at the end of a run."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    saved = checkpoint.read(newest)
    return {f"{part}.{name}": value for part in ("student", "objective") for name, value in saved[part].items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("parts", [2, 3])
def test_micro_batches_change_nothing(name: str, parts: int, tmp_path: Path) -> None:
    """Loss of each step, metrics of each epoch, weights and teachers to 1e-6; 11 rows do not divide evenly."""
    whole, losses = train(METHODS[name](), tmp_path / "whole")
    split, again = train(METHODS[name](), tmp_path / "split", accumulate=parts)
    assert again == pytest.approx(losses, abs=1e-6)
    for line, other in zip(whole.history, split.history, strict=True):
        assert other["loss"] == pytest.approx(line["loss"], abs=1e-6)
        for term, figures in line["terms"].items():
            assert other["terms"][term] == pytest.approx(figures, abs=1e-6)
    before, after = by_id(left(tmp_path / "whole")), by_id(left(tmp_path / "split"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.allclose(after[key].double(), value.double(), rtol=0, atol=1e-6), key


def test_micro_batches_differ_in_what_counts() -> None:
    """What makes the test above sharp: a mean of the micro-batches' means would be another loss."""
    labelled: list[set[int]] = []

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        labelled.append({int((rows.y >= 0).sum()) for rows in (batch["x"] for batch in batches) if rows.y is not None})

    train(METHODS["some_labels"](), accumulate=3, watch=watch)
    assert sum(len(numbers) > 1 for numbers in labelled) > len(labelled) / 2
    result, _ = train(METHODS["fixmatch"](), accumulate=3)
    assert 0.1 < result.history[0]["terms"]["pseudo"]["kept"] < 0.9


def test_a_micro_batch_needs_a_row(tmp_path: Path) -> None:
    """More micro-batches than rows: named before the first step."""
    with pytest.raises(DataError, match="a batch of 3 rows cannot be split into 4 micro-batches"):
        train(METHODS["plain"](), batch_size=3, accumulate=4)


def _twice(value: Tensor | None) -> Tensor | None:
    return None if value is None else torch.cat([value, value])


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_written_twice_is_the_same_batch(name: str) -> None:
    """loss(batch ++ batch) == loss(batch): everything is a mean, nothing a sum."""
    method = METHODS[name]()
    batches: list[Batch] = []
    train(method, steps=3, watch=lambda clock, seen, loss: batches.append(seen[0]))
    torch.manual_seed(0)
    model = (method.wrap_model(Flat) if method.wrap_model else Flat)()
    previous = Flat() if method.generations > 1 else None
    clock = TrainingClock(min(1, method.generations - 1), method.generations, 0, 5, 0, 4)
    losses = []
    for copies in (1, 2):
        objective = method.bind(model, previous=previous, clock=clock)
        objective.measure(batches[1])
        objective.update()  # memories have something to say of these samples now
        batch = batches[1]
        if copies == 2:
            batch = Batch({view: Rows(*map(_twice, rows[:4])) for view, rows in batch.items()})  # type: ignore[arg-type]
            batch.fixed = batches[1].fixed
        losses.append(float(objective(batch).detach()))
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert losses[0] != 0.0


def test_figures_are_those_of_the_whole_batch() -> None:
    """What the progress line shows does not depend on micro-batches either."""
    shown: dict[int, list[dict[str, float]]] = {}
    for parts in (1, 3):
        shown[parts] = []
        train(METHODS["some_labels"](), accumulate=parts, progress=lambda clock, row, p=parts: shown[p].append(row))
    assert shown[3][-1] == pytest.approx(shown[1][-1], abs=1e-6)


# clipping and statistics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 10.0])
def test_clipping_scales_the_gradient_to_its_norm(share: float) -> None:
    """One step of SGD by hand in float32: a longer gradient is scaled to the norm, a shorter one is left as it is."""
    batches: list[Batch] = []

    def first(clock: TrainingClock, seen: list[Batch], loss: float) -> None:
        batches.append(seen[0])

    options: dict[str, Any] = {"steps": 1, "batch_size": 11, "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    data, method = tiny_data(0), METHODS["plain"]()
    start = _start(fit(Flat, data, method, watch=first, **options))
    rows = batches[0]["x"]
    assert rows.y is not None
    loss = nn.functional.cross_entropy(start(rows.x), rows.y)
    grads = dict(zip(dict(start.named_parameters()), torch.autograd.grad(loss, list(start.parameters())), strict=True))
    norm = float(torch.cat([g.flatten() for g in grads.values()]).norm())
    found = fit(Flat, data, method, clip=share * norm, **options).model.state_dict()
    for name, value in start.state_dict().items():
        step = 0.1 * 1.9 * min(share, 1.0) * grads[name]  # the first step with Nesterov's momentum of 0.9
        torch.testing.assert_close(found[name], value - step, rtol=1e-4, atol=1e-7)
        assert float(step.norm()) > 1e-5  # a step to be seen


def _start(result: Result) -> Flat:
    """The model as it was before the first step; the digest in the run's record says so."""
    torch.manual_seed(rng.seed(0, "init", 0))
    model = Flat()
    assert digest(model.state_dict()) == result.generations[0].start
    return model


class Normed(nn.Module):
    """Batch statistics on the pictures themselves: they depend on no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x.flatten(1)))  # type: ignore[no-any-return]


def test_statistics_see_every_micro_batch_once() -> None:
    """The pass that counts leaves no trace: one step of two micro-batches moves the running mean and variance twice."""
    seen: list[Batch] = []

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        seen.extend(batches)

    options: dict[str, Any] = {"steps": 1, "batch_size": 11, "optimizer": "sgd", "lr": 0.01, "accumulate": 2}
    found: Any = fit(Normed, tiny_data(0), METHODS["plain"](), watch=watch, **options).model
    assert [len(batch["x"].x) for batch in seen] == [5, 6]
    mean, variance = torch.zeros(64), torch.ones(64)
    for batch in seen:
        x = batch["x"].x.flatten(1)
        mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0)
    assert int(found.norm.num_batches_tracked) == 2
    torch.testing.assert_close(found.norm.running_mean, mean)
    torch.testing.assert_close(found.norm.running_var, variance)


# precision and compilation --------------------------------------------------------------------------------------------


def test_bfloat16_learns() -> None:
    """The loss falls, stays near that of float32, and weights and teachers stay float32."""
    options: dict[str, Any] = {"steps": 80, "optimizer": "adamw", "lr": 0.02}
    _, exact = train(METHODS["ps_kd"](), **options)
    result, losses = train(METHODS["ps_kd"](), precision="bfloat16", **options)
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert sum(losses[-10:]) == pytest.approx(sum(exact[-10:]), rel=0.1)
    assert losses[0] == pytest.approx(exact[0], rel=0.02)
    assert losses != exact
    assert all(value.dtype == torch.float32 for value in result.model.state_dict().values())


def test_bfloat16_accumulates(tmp_path: Path) -> None:
    """Mixed precision and micro-batches together: the tolerance is that of bfloat16."""
    _, losses = train(METHODS["plain"](), precision="bfloat16")
    _, again = train(METHODS["plain"](), precision="bfloat16", accumulate=2)
    assert again == pytest.approx(losses, rel=0.02)


@pytest.mark.slow
def test_compiled_is_the_same(tmp_path: Path) -> None:
    """torch.compile changes rounding only; the state has the names of the plain model."""
    _, losses = train(METHODS["elr"](), tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own
        _, again = train(METHODS["elr"](), tmp_path / "compiled", compile=True)
    assert again == pytest.approx(losses, abs=1e-5)
    before, after = left(tmp_path / "plain"), left(tmp_path / "compiled")
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert torch.allclose(after[key].double(), value.double(), atol=1e-5), key


# a loss that is no number ---------------------------------------------------------------------------------------------


class Poisoned(Flat):
    """Has no answer to a picture whose first pixel is far too bright."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + torch.where(x[:, :1, 0, 0] > 50.0, torch.nan, 0.0)


def _with_a_bad_sample(sample: int) -> Data:
    data = replace(tiny_data(0), augment="none")
    data.tensor[sample, 0, 0, 0] = 100.0
    return data


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_that_is_no_number_is_traced(tmp_path: Path, parts: int) -> None:
    """Forward, term and sample are named, the last checkpoint is intact and holds finite weights only."""
    data = _with_a_bad_sample(50)
    steps: list[int] = []

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        steps.append(clock.step)

    options: dict[str, Any] = {"epochs": 2, "batch_size": 8, "save_steps": 1, "accumulate": parts}
    with pytest.raises(NotFiniteError) as raised:
        fit(Poisoned, data, METHODS["plain"](), out=tmp_path, watch=watch, **options)
    message, done = str(raised.value), len(steps)
    assert done > 0, "the bad sample came first; choose another"
    assert f"generation 0, step {done}, term 'label', samples [50]" in message
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.name in message
    saved = checkpoint.read(found)
    assert TrainingClock(*saved["objective"]["_extra_state"].tolist()).step == done
    assert all(bool(torch.isfinite(value).all()) for value in saved["student"].values())


def test_a_weight_that_is_no_number_is_not_saved(tmp_path: Path) -> None:
    """A step that ruins the weights after a finite loss is not written over the last checkpoint."""

    def ruin(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        if clock.step == 4:
            with torch.no_grad():
                next(models[0].parameters()).fill_(torch.inf)

    models: list[nn.Module] = []

    def build() -> nn.Module:
        models.append(Flat())
        return models[-1]

    with pytest.raises(NotFiniteError, match="nothing was saved over the last checkpoint"):
        fit(build, tiny_data(0), METHODS["plain"](), out=tmp_path, save_steps=1, watch=ruin, batch_size=8, epochs=2)
    found = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert TrainingClock(*checkpoint.read(found)["objective"]["_extra_state"].tolist()).step == 4
