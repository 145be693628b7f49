"""Silent failures seen in public code, by their number: teachers that hold weights or memories."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, PerRow, Teacher, Term
from selfdistill.core.step import Forward
from selfdistill.core.targets import Target
from selfdistill.errors import VitalsError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import mutual, plain, ps_kd
from selfdistill.teachers import (
    CurrentStudent,
    Ema,
    External,
    Frozen,
    FrozenCopy,
    History,
    Labels,
    LastBatch,
    LastEpoch,
    OtherPeers,
)
from tests import signals
from tests.signals import LABEL, caught, train

from .common import CLASSES, ROWS, Net, averaging, batch, held, trained


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


@dataclass(frozen=True)
class WeightsOnly(Ema):
    """Forgets the buffers."""

    def update(self, state: nn.Module, steps: Any, term: BaseTerm) -> None:
        teacher, student = cast(FrozenCopy, state).module, steps[0].owner
        assert isinstance(self.decay, float)
        for mine, now in zip(teacher.parameters(), student.parameters(), strict=True):
            mine.lerp_(now, 1.0 - self.decay)


@dataclass(frozen=True)
class AllAlike(Ema):
    """Averages whatever it finds, so that a counter is rounded down again and again."""

    def update(self, state: nn.Module, steps: Any, term: BaseTerm) -> None:
        teacher, student = cast(FrozenCopy, state).module.state_dict(), steps[0].owner.state_dict()
        assert isinstance(self.decay, float)
        for name, mine in teacher.items():
            mine.copy_(self.decay * mine + (0 if name.endswith("tracked") else 1.0 - self.decay) * student[name])


def test_bug_05_an_average_that_forgets_buffers_or_shrinks_counters_is_caught() -> None:
    assert caught(Term(WeightsOnly(0.9), KL())).vital == "lost-buffers"
    pretrained: Any = signals.Net()
    pretrained.layers[1].num_batches_tracked += 1000
    error = caught(Term(AllAlike(0.9), KL()), model=pretrained)
    assert error.vital == "lost-buffers"
    assert "num_batches_tracked" in str(error)
    for sound in (Ema(0.9), Ema(0.9, train=True), Frozen()):
        model: Any = signals.Net()
        model.layers[1].num_batches_tracked += 1000
        train({"label": LABEL, "fine": Term(sound, KL())}, model=model)


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


def test_bug_06_an_average_in_bfloat16_that_stands_still_is_caught() -> None:
    """The student moves away, and (1 - d) of the distance is less than bfloat16 can add."""

    def lowered(objective: Any, step: int) -> None:
        if step == 0:
            objective.bfloat16()

    average = Term(Ema(0.999, warm_up=False), KL())
    error = caught(average, model=nn.Linear(6, 4), each=lowered, lr=0.01)
    assert error.vital == "stuck-average"
    assert "bfloat16" in str(error)
    objective = train({"label": LABEL, "fine": average}, model=nn.Linear(6, 4), lr=0.01)
    assert objective.vitals().warnings == []
    # far apart and slow, in float32: every update is small and none is lost
    train({"label": LABEL, "fine": Term(Ema(0.99999, warm_up=False), KL())}, model=nn.Linear(6, 4), lr=1.0)


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


@dataclass(frozen=True)
class Python(Teacher):
    """Remembers in a dictionary and adapts a number: neither is in a ``state_dict``."""

    def target(self, state: Any, forward: Forward, term: BaseTerm) -> Target:
        return Target(torch.zeros_like(forward.student(term.view)), "logits")

    def start(self, model: nn.Module, given: Any) -> nn.Module:
        state: Any = nn.Module()
        state.memory, state.level, state.said, state.still = {}, 0.5, torch.zeros(3), torch.ones(3)
        return cast(nn.Module, state)

    def update(self, state: Any, steps: Any, term: BaseTerm) -> None:
        state.memory.update((i, None) for i in steps[0].ids("x").tolist())
        state.level *= 0.9
        state.said = 0.9 * state.said + 0.1


def test_bug_07_a_state_outside_the_state_dict_is_told() -> None:
    read = train({"label": LABEL, "odd": Term(Python(), KL(), weight=0.01)}, steps=4).vitals()
    warnings = [warning for warning in read.warnings if "one class" not in warning]
    assert [next(n for n in ("memory", "level", "said", "still") if repr(n) in w) for w in warnings] == [
        "memory", "level", "said",
    ]  # fmt: skip
    assert all("lost on resume" in warning and "'odd'" in warning for warning in warnings)
    for sound in (History(0.7, "labels"), LastEpoch(), LastBatch(), Ema(0.9), Frozen()):
        assert train({"label": LABEL, "fine": Term(sound, KL())}, steps=8).vitals().warnings == []


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
    step: Forward = objective.forward_views(shuffled)
    term: Any
    name, term = next((n, t) for n, t in objective.method.terms.items() if type(t.teacher).__name__ == "LastEpoch")
    target = term.teacher.target(objective.state_of(name, term.teacher), step, term)
    assert torch.allclose(target.value, said[order], atol=1e-6)


def test_bug_08_ids_that_do_not_belong_to_the_samples_are_caught() -> None:
    """Numbered by their place in the batch, while the batches are shuffled."""
    found = {}
    for ids in ("place", "sample"):
        torch.manual_seed(0)
        model = nn.Linear(4, CLASSES)
        objective = ps_kd().bind(model)
        x, y = torch.randn(64, 4), torch.arange(64) % CLASSES
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        try:
            for _ in range(40):
                order = torch.randperm(64)[:32]
                optimizer.zero_grad()
                objective(
                    {"x": x[order], "y": y[order], "id": torch.arange(32) if ids == "place" else order}
                ).backward()
                optimizer.step()
                objective.update()
        except VitalsError as error:
            found[ids] = str(error)
            assert error.vital == "ids-misaligned"
            assert "'past'" in str(error)
    assert list(found) == ["place"]


def test_bug_08_labels_that_are_corrected_or_not_asked_for_are_no_misalignment() -> None:
    torch.manual_seed(0)
    for method, changed in ((ps_kd(), 0.2), (plain(), 1.0)):
        objective, y = method.bind(nn.Linear(4, CLASSES)), torch.arange(64) % CLASSES
        for _ in range(40):
            y = torch.where(torch.rand(64) < changed / 10, torch.randint(CLASSES, (64,)), torch.arange(64) % CLASSES)
            y = y if changed < 1 else torch.randint(CLASSES, (64,))
            objective({"x": torch.randn(64, 4), "y": y, "id": torch.arange(64)}).backward()
            objective.update()


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


def test_bug_17_a_frozen_teacher_is_the_model_that_was_passed() -> None:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        model.layer.weight.mul_(3.0)  # no longer what any name or factory would give
    objective = Method({"past": Term(Frozen(), KL())}).bind(model)
    theirs, ours = held(objective).state_dict(), model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_bug_17_a_frozen_teacher_that_is_moved_is_caught() -> None:
    """By an optimizer that reaches it through a layer it shares with the student, or by who copies weights into it."""
    shared, model = nn.Linear(6, 16), nn.Module()
    other = nn.Sequential(shared, nn.ReLU(), nn.Linear(16, 4))
    model = nn.Sequential(shared, nn.ReLU(), nn.Linear(16, 4))
    objective = Method({"label": LABEL, "odd": Term(External(), KL())}).bind(model, external=other)
    model.requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    objective({"x": torch.randn(8, 6), "y": torch.arange(8) % 4, "id": torch.arange(8)}).backward()
    optimizer.step()
    with pytest.raises(VitalsError, match=r"'odd'.*External") as found:
        objective.update()
    assert found.value.vital == "frozen-teacher-moved"

    def copied(objective: Any, step: int) -> None:
        if step == 5:  # between two looks
            held(objective).load_state_dict(objective.student.state_dict())

    assert caught(Term(Frozen(), KL()), each=copied).vital == "frozen-teacher-moved"

    def loaded(objective: Any, step: int) -> None:
        if step == 5:
            with torch.no_grad():
                state = {
                    name: value * 1.1 if "weight" in name else value for name, value in objective.state_dict().items()
                }
            objective.load_state_dict(state)

    train({"label": LABEL, "fine": Term(Frozen(), KL())}, each=loaded)  # a resumed run has another teacher
    train({"label": LABEL, "fine": Term(Ema(0.9), KL())}, each=lambda objective, step: None)


def test_bug_22_no_peer_is_taught_by_itself() -> None:
    """Moving one peer's output moves the others' targets and leaves its own where it was."""
    torch.manual_seed(0)
    method = mutual(peers=3)
    assert method.wrap_model is not None
    model: Any = method.wrap_model(lambda: nn.Linear(4, CLASSES))()
    objective = method.bind(model)
    term: Any = method.terms["peers"]

    def targets() -> Tensor:
        step, teacher = objective.forward_views(batch()), term.teacher
        value: Tensor = teacher.target(objective.state_of("peers", teacher), step, term).value
        return value

    before = targets()
    with torch.no_grad():
        model.members[1].weight[0].add_(1.0)  # one class: a constant over all is no change
    moved = (targets() - before).abs().amax((0, 2))
    assert float(moved[1]) < 1e-6  # the sum it is taken out of rounds otherwise
    assert float(moved[0]) > 0.01
    assert float(moved[2]) > 0.01


def test_bug_22_a_learner_that_labels_its_own_pool_is_caught() -> None:
    """Each peer taught by its own output, in what is called mutual learning."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.members = nn.ModuleList([nn.Linear(6, 4), nn.Linear(6, 4)])

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"logits": self.members[0](x), "peers": torch.stack([member(x) for member in self.members], 1)}

    own = Term(CurrentStudent(head="peers"), KL(), head="peers", reduction=PerRow())
    label = Term(Labels(), CrossEntropy(), head="peers", reduction=PerRow())
    with pytest.raises(VitalsError, match="'peers'") as found:
        train({"label": label, "peers": own}, model=Two())
    assert found.value.vital == "teacher-is-student"
    train({"label": label, "peers": replace(own, teacher=OtherPeers())}, model=Two())
