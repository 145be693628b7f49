"""Silent failures seen in public code, by their number: what is impossible here by construction.

Those that the vitals catch (a dead signal, a teacher that is the student, a second softmax, an inverted gate, a teacher
that moves the student's statistics) are built in test_vitals.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.core import Method, Objective, Rows, Step, Term
from selfdistill.errors import DataError, RecipeError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import born_again, mean_teacher, mutual, plain, ps_kd
from selfdistill.models import parse
from selfdistill.tasks.data import load
from selfdistill.tasks.guard import sealed
from selfdistill.teachers import Ema, Frozen, Held, Labels

ROWS, CLASSES = 8, 3


class Net(nn.Module):
    """A network with a running statistic and a counter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.norm(x))
        return out


def batch(seed: int = 0, ids: list[int] | None = None) -> dict[str, Tensor]:
    x = torch.randn(ROWS, 4, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "y": torch.arange(ROWS) % CLASSES, "id": torch.tensor(ids or list(range(ROWS)))}


def trained(objective: Objective, model: nn.Module, batches: list[dict[str, Tensor]]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for one in batches:
        optimizer.zero_grad()
        objective(one).backward()
        optimizer.step()
        objective.update()


def averaging(decay: float = 0.9) -> Method:
    return Method({"label": Term(Labels(), CrossEntropy()), "past": Term(Ema(decay, warm_up=False), KL())})


def held(objective: Objective) -> nn.Module:
    return next(state.module for state in objective.states.values() if isinstance(state, Held))


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


def test_bug_05_running_statistics_are_averaged_and_counters_copied() -> None:
    torch.manual_seed(0)
    model = Net()
    objective = averaging().bind(model)
    norm: Any = held(objective).norm
    mean = norm.running_mean.clone()
    for step in range(3):
        trained(objective, model, [batch(step)])
        mean = 0.9 * mean + 0.1 * model.norm.running_mean  # type: ignore[operator]
        assert torch.allclose(norm.running_mean, mean, atol=1e-6)
        assert float(norm.num_batches_tracked) == step + 1


def test_bug_06_the_average_of_a_bfloat16_student_moves_by_its_rate() -> None:
    """With 1 - d = .001 a bfloat16 average would round nearly every update away; ours is in float32."""
    torch.manual_seed(0)
    model = nn.Linear(64, 64).bfloat16()
    method = Method({"past": Term(Ema(0.999, warm_up=False), KL())})
    objective = method.bind(model)
    teacher = held(objective)
    before = [p.clone() for p in teacher.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5)
    objective({"x": torch.randn(4, 64).bfloat16(), "y": torch.zeros(4, dtype=torch.int64), "id": torch.arange(4)})
    objective.update()
    for was, now, student in zip(before, teacher.parameters(), model.parameters(), strict=True):
        expected = 0.001 * (student.float() - was)
        assert now.dtype == torch.float32
        assert torch.allclose(now - was, expected, atol=1e-6)


@pytest.mark.parametrize("make", [averaging, ps_kd], ids=["average", "memory"])
def test_bug_07_teachers_and_memories_are_in_the_state(make: Any) -> None:
    """A loop cut in the middle and loaded again goes on bit for bit; without the objective's state it would not."""
    torch.manual_seed(0)
    start = Net()
    batches = [batch(step) for step in range(6)]
    ends: list[dict[str, Tensor]] = []
    for saved in (None, True, False):
        model = copy.deepcopy(start)
        objective = make().bind(model)
        trained(objective, model, batches[:3])
        if saved is not None:
            state, weights = objective.state_dict(), model.state_dict()
            model = copy.deepcopy(start)
            model.load_state_dict(weights)
            objective = make().bind(model)
            if saved:
                objective.load_state_dict(state)
        trained(objective, model, batches[3:])
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert any(not torch.equal(ends[0][name], ends[2][name]) for name in ends[0])


def test_bug_08_a_memory_follows_the_sample_through_shuffling() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, CLASSES)
    objective = ps_kd().bind(model)
    first = batch()
    said = F.softmax(model(first["x"]), -1).detach()
    objective(first).backward()
    objective.update()
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    shuffled = {name: value[order] for name, value in first.items()}
    step: Step = objective.look(shuffled)
    name, term = next((n, t) for n, t in objective.method.terms.items() if type(t.teacher).__name__ == "LastEpoch")
    target = term.teacher.target(objective._state(name, term.teacher), step, term)
    assert torch.allclose(target.value, said[order], atol=1e-6)


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


def test_bug_12_the_gradient_has_the_square_of_the_temperature_and_stops_at_the_teacher() -> None:
    torch.manual_seed(0)
    z, teacher = torch.randn(5, CLASSES, requires_grad=True), nn.Linear(4, CLASSES)
    x, temperature = torch.randn(5, 4), 4.0
    model = copy.deepcopy(teacher)
    objective = Method({"past": Term(Frozen(), KL(temperature))}).bind(model)
    with torch.no_grad():
        model.weight.add_(torch.randn_like(model.weight))
    objective({"x": x, "y": torch.zeros(5, dtype=torch.int64), "id": torch.arange(5)}).backward()
    z = model(x).detach().requires_grad_()
    p, q = (teacher(x).detach() / temperature).softmax(-1), (z / temperature).softmax(-1)
    reference = temperature**2 * (p * (p.log() - q.log())).sum(-1).mean()
    reference.backward()
    assert z.grad is not None
    assert model.weight.grad is not None
    assert torch.allclose(model.weight.grad, z.grad.T @ x, atol=1e-5)
    assert all(p.grad is None for p in held(objective).parameters())


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


def test_bug_17_a_frozen_teacher_is_the_model_that_was_passed() -> None:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.layer.weight.mul_(3.0)  # no longer what any name or factory would give
    objective = Method({"past": Term(Frozen(), KL())}).bind(model)
    theirs, ours = held(objective).state_dict(), model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_bug_22_no_peer_is_taught_by_itself() -> None:
    """Moving one peer's output moves the others' targets and leaves its own where it was."""
    torch.manual_seed(0)
    method = mutual(peers=3)
    assert method.prepare is not None
    model: Any = method.prepare(lambda: nn.Linear(4, CLASSES))()
    objective = method.bind(model)
    term = method.terms["peers"]

    def targets() -> Tensor:
        return term.teacher.target(objective._state("peers", term.teacher), objective.look(batch()), term).value

    before = targets()
    with torch.no_grad():
        model.members[1].weight[0].add_(1.0)  # one class: a constant over all is no change
    moved = (targets() - before).abs().amax((0, 2))
    assert float(moved[1]) < 1e-6  # the sum it is taken out of rounds otherwise
    assert float(moved[0]) > 0.01
    assert float(moved[2]) > 0.01
