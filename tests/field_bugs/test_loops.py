"""Silent failures seen in public code, by their number: what training loops do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from selfdistill import fit
from selfdistill.core.objective import Method
from selfdistill.core.parts import Always, BaseTerm, Gate, PerRow, PerTrust, Tally, Term, TermResult
from selfdistill.core.step import Forward, Rows
from selfdistill.core.targets import Target
from selfdistill.data.dataset import from_tensors, load, sealed
from selfdistill.errors import DataError, RecipeError, SpaceError, VitalsError
from selfdistill.losses import KL, CrossEntropy, Squared
from selfdistill.methods import born_again, mean_teacher, mutual, plain
from selfdistill.models.registry import parse
from selfdistill.teachers import CurrentStudent, Ema, Labels
from selfdistill.views import two

from .common import CLASSES, ROWS, Net, batch, trained


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
    from selfdistill.training.trainer import Trainer

    begin = Trainer.begin

    def remembered(self: Trainer, generation: int) -> None:
        begin(self, generation)
        MADE.append(self.state.model)

    monkeypatch.setattr(Trainer, "begin", remembered)


class Exits(nn.Module):
    """Returns two heads by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.last, self.shallow = nn.Linear(4, 8), nn.Linear(8, CLASSES), nn.Linear(8, 2 * CLASSES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.body(x))
        return {"logits": self.last(h), "exits": self.shallow(h).unflatten(1, (2, CLASSES)), "feature": h}


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("wrapped", ["model", "called through", "bound"])
def test_bug_09_a_name_that_was_never_seen_is_refused_and_a_wrapper_loses_none(wrapped: str) -> None:
    """The head and those there are in the message; under DistributedDataParallel every name is found, and trained."""
    found: dict[str, list[Tensor]] = {}
    for way in ("model", wrapped):
        torch.manual_seed(0)
        model, terms = Exits(), {
            "label": Term(Labels(), CrossEntropy()),
            "deep": Term(CurrentStudent(head="logits"), KL(), head="exits", reduction=PerRow()),
            "past": Term(Ema(0.5, warm_up=False), Squared(), head="feature"),
        }  # fmt: skip
        ddp: Any = DistributedDataParallel(model) if way != "model" else model
        objective = Method(terms).bind(ddp if way == "bound" else model)
        if way == "called through":
            objective.call_through(ddp)
        trained(objective, model, [batch(i) for i in range(3)])
        found[way] = [p.detach() for p in model.parameters()]
        assert objective.figures["deep"].loss > 0
        assert (objective.vitals().terms["past"]["weight_distance"] or 0.0) > 0
        for head in ("exit", "module.exits"):
            odd = Method({"odd": Term(Labels(), CrossEntropy(), head=head)}).bind(ddp if way == "bound" else model)
            odd.call_through(ddp)
            with pytest.raises(SpaceError, match=rf"no output '{head}' \(it returns: logits, exits, feature\)"):
                odd(batch())
    for mine, theirs in zip(found["model"], found[wrapped], strict=True):
        assert torch.equal(mine, theirs)


@dataclass(frozen=True)
class Halves(Gate):
    """Keeps the rows whose first input is positive."""

    prefers: ClassVar[str | None] = None

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return (forward.batch["x"].x[:, 0] > 0).float()


@pytest.mark.parametrize("unequal", ["labels", "gate", "rows"])
def test_bug_10_unequal_micro_batches_give_the_loss_and_gradient_of_the_batch(unequal: str) -> None:
    """By their tallies; the mean of the means, which is what the bug computes, is another loss."""
    whole = batch()
    if unequal == "labels":
        whole["y"][:3] = -1
    whole["x"][:3, 0] = -1.0
    term = Term(Labels(), CrossEntropy(), gate=Halves() if unequal == "gate" else Always(), reduction=PerTrust())
    cuts = [slice(0, 3), slice(3, 8)] if unequal == "rows" else [slice(0, 4), slice(4, 8)]
    parts = [{name: value[cut] for name, value in whole.items()} for cut in cuts]
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES)

    def gradient(loss: Tensor) -> Tensor:
        return torch.autograd.grad(loss, model.weight)[0]

    objective = Method({"label": term}).bind(model)
    wanted = objective(whole)
    slope = gradient(wanted)
    with torch.no_grad():
        measured = [objective.measure(part)["label"].tally for part in parts]
    counts = {"label": measured[0].count + measured[1].count}
    assert int(measured[0].count) != int(measured[1].count)
    losses = [objective.combine(objective.measure(part), counts) for part in parts]
    assert torch.allclose(sum(losses, torch.zeros(())), wanted)
    means = sum((objective(part) for part in parts), torch.zeros(())) / 2
    assert not torch.allclose(means, wanted, rtol=1e-3)
    together = sum((gradient(loss) for loss in losses), torch.zeros(()))
    assert torch.allclose(together, slope, atol=1e-6)
    assert not torch.allclose(gradient(means), slope, rtol=1e-2)


@dataclass(frozen=True)
class Own(Term):
    """Writes its own tally: what ``how`` makes of the labels' loss."""

    how: str = "sum"

    def tally(self, state_of: Any, forward: Forward) -> TermResult:
        (total, count), kept, valid, _ = super().tally(state_of, forward)
        z = forward.student(self.view)
        tallies: dict[str, Callable[[], Tally]] = {
            "sum": lambda: Tally(total, count),
            "mean": lambda: Tally(total / count, torch.ones(())),
            "mean and count": lambda: Tally(total / count, count),
            "mean over rows": lambda: Tally(total / len(z), torch.ones(())),
            "a draw": lambda: Tally(total * torch.rand(()), count),
            "pairs of rows": lambda: Tally(torch.cdist(z, z).sum(), count),
            "spread": lambda: Tally(z.softmax(-1).mean(0).square().sum(), torch.ones(())),
            "whole batches": lambda: Tally(total + 0 * z[7].sum(), count),
            "nothing": lambda: Tally(total * 0, count),
        }
        return TermResult(tallies[self.how](), kept, valid)


SOUND = ("sum", "a draw", "pairs of rows", "spread", "whole batches", "nothing")


@pytest.mark.parametrize("how", [*SOUND, "mean", "mean and count", "mean over rows"])
@pytest.mark.parametrize("teacher", [Labels(), Ema(0.9, train=True)], ids=["labels", "average"])
def test_bug_10_a_tally_that_is_a_mean_is_refused_before_the_first_step(how: str, teacher: Any) -> None:
    """Of a model with batch norm and dropout; terms that compare rows, draw or need a batch are left alone."""
    ids = torch.arange(60)
    data = from_tensors(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), ids % CLASSES, name="few")
    loss = CrossEntropy() if isinstance(teacher, Labels) else Squared()
    method = Method({"label": Term(Labels(), CrossEntropy()), "odd": Own(teacher, loss, weight=0.1, how=how)})
    if isinstance(teacher, Ema):
        method = replace(method, views=two())

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, CLASSES))

    def run() -> None:
        fit(build, data, method, steps=1, batch_size=12, optimizer="sgd", lr=0.01)

    if how in SOUND:
        return run()
    with pytest.raises(VitalsError, match=r"'odd'.*sum over the elements and their count") as found:
        run()
    assert found.value.vital == "mean-of-means"
    return None


@pytest.mark.parametrize("make", [plain, mean_teacher, mutual], ids=["plain", "mean_teacher", "mutual"])
def test_bug_11_a_batch_twice_has_the_loss_of_the_batch(make: Any) -> None:
    torch.manual_seed(0)
    method = make()
    model = (method.wrap_model or (lambda build: build))(lambda: nn.Linear(4, CLASSES))()
    views = [look.name for look in method.views.views]
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
