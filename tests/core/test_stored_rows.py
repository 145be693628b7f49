"""Views whose rows a part supplies from its own state: replayed rows, drawn by address and saved with the objective."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.memory import Buffers
from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import BaseTerm, BindArgs, Teacher, Term
from selfdistill.core.step import Batch, Forward, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods.validate import check_method
from selfdistill.rng import Address
from selfdistill.teachers import Labels

ROOM, REPLAYED, WIDTH, CLASSES = 16, 4, 5, 3


class Reservoir(Buffers):
    """A uniform sample of all rows so far, with the logits that the student gave them."""

    x: Tensor
    logits: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("x", torch.zeros(0, WIDTH))
        self.register_buffer("logits", torch.zeros(0, CLASSES))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def take(self, x: Tensor, logits: Tensor) -> None:
        for row, logit in zip(x, logits, strict=True):
            number = int(self.seen)
            place = int(rng.uniform(("reservoir",), torch.tensor([number]), 1) * (number + 1))
            if number < ROOM:
                self.x, self.logits = torch.cat([self.x, row[None]]), torch.cat([self.logits, logit[None]])
            elif place < ROOM:
                self.x[place], self.logits[place] = row, logit
            self.seen += 1


@dataclass(frozen=True)
class Replay(Teacher[Reservoir]):
    """What the student said of past rows when they were shown (dark experience replay)."""

    def start(self, model: nn.Module, args: BindArgs) -> Reservoir:
        return Reservoir()

    def rows(self, state: Reservoir, batch: Batch, address: Address) -> Rows | None:
        if not len(state.x):
            return None
        places = rng.permutation(address, len(state.x))[:REPLAYED]
        return Rows(state.x[places], None, places)

    def target(self, state: Reservoir, forward: Forward, term: BaseTerm) -> Target:
        return Target(state.logits[forward.ids(term.view)], "logits")

    def update(self, state: Reservoir, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in forwards:
            state.take(forward.batch["x"].x, forward.student("x"))


METHOD = Method({"label": Term(Labels(), CrossEntropy()), "past": Term(Replay(), KL(), view="past")})


def batch(step: int) -> dict[str, Tensor]:
    ids = torch.arange(8) + 8 * step
    return {"x": rng.normal(("rows",), ids, WIDTH), "y": ids % CLASSES, "id": ids}


def training(seed: int = 0) -> tuple[nn.Module, Objective, Any]:
    torch.manual_seed(seed)
    model = nn.Linear(WIDTH, CLASSES)
    return (
        model,
        METHOD.bind(model, clock=TrainingClock(epochs=20)),
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
    )


def train(parts: tuple[nn.Module, Objective, Any], steps: range) -> list[float]:
    _, objective, optimizer = parts
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = objective(batch(step))
        loss.backward()
        optimizer.step()
        objective.update()
        losses.append(float(loss.detach()))
    return losses


def test_rows_of_the_past_are_replayed_with_what_was_said_of_them() -> None:
    """In the first step there are none; then as many as are asked for, and they pull the student to its old answers."""
    check_method(METHOD)
    parts = training()
    train(parts, range(1))
    assert float(parts[1].figures["past"].valid) == 0
    train(parts, range(1, 6))
    assert float(parts[1].figures["past"].valid) == REPLAYED
    assert float(parts[1].figures["past"].loss) > 0
    forward = parts[1].forward_views(batch(6))
    stored: Any = parts[1].states["past_replay"]
    assert torch.equal(forward.batch["past"].x, stored.x[forward.batch["past"].id])
    assert forward.student("past").requires_grad


def test_what_is_replayed_differs_by_step_and_not_by_who_asks() -> None:
    parts = training()
    train(parts, range(4))
    first, again = (parts[1].forward_views(batch(4)).batch["past"].id for _ in range(2))
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    parts[1].clock = parts[1].clock.at(5)
    later = parts[1].forward_views(batch(5)).batch["past"].id
    assert later is not None
    assert not torch.equal(first, later)


def test_a_run_with_replay_resumes_exactly() -> None:
    uncut = training()
    train(uncut, range(6))
    saved = [copy.deepcopy(part.state_dict()) for part in uncut]
    expected = train(uncut, range(6, 12))
    resumed = training(seed=1)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    assert train(resumed, range(6, 12)) == expected
    assert all(torch.equal(a, b) for a, b in zip(uncut[0].parameters(), resumed[0].parameters(), strict=True))
