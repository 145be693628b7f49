"""What the tests of teachers share: a small student, its rows, a method of one teacher, and what was said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import Teacher, Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.losses import CrossEntropy
from selfdistill.testing.specimens import CLASSES, WIDTH, inputs

IDS = torch.arange(24)


def still(model: nn.Module) -> nn.Module:
    """A student in training whose layers are in eval mode (frozen statistics, no dropout): what it says repeats."""
    model.eval().training = True
    return model


class Net(nn.Module):
    """A linear model with batch statistics, an integer buffer and a half-precision choice."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, CLASSES)
        self.register_buffer("drift", torch.zeros(3))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(x))  # type: ignore[no-any-return]


def rows(ids: Any, y: Any = None) -> Rows:
    ids = torch.as_tensor(ids)
    return Rows(inputs(ids), ids % CLASSES if y is None else torch.as_tensor(y), ids)


def bound(teacher: Teacher, model: nn.Module, clock: TrainingClock | None = None, **given: Any) -> Objective:
    """A method of this one term, bound."""
    return Method({"t": Term(teacher, CrossEntropy(), weight=0.5)}).bind(model, clock=clock, **given)


def state_of(objective: Objective) -> Any:
    """The teacher's state: the first part of the only term."""
    return next(iter(objective.states.values()))


def said(objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """What the teacher says of a batch, and of which rows."""
    term: Any = objective.method.terms["t"]
    step = objective.forward_views(batch)
    target = term.teacher.target(state_of(objective), step, term)
    valid = torch.ones(len(target.value), dtype=torch.bool) if target.valid is None else target.valid
    return target.value, valid


def learn(objective: Objective, model: Any, batch: Batch) -> None:
    """One step of gradient descent on something, then the teacher's update."""
    objective(batch)
    for p in model.parameters():
        p.grad = None
    model(batch["x"].x).float().square().sum().backward()
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(0.005 * p.grad)
        model.drift += 0.25
    objective.update()
