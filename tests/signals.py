"""A loop over learnable data, with a term whose signal may be odd: what the tests of the vitals share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, Gate, Teacher, Term
from selfdistill.core.step import Forward
from selfdistill.core.targets import Target
from selfdistill.errors import VitalsError
from selfdistill.losses import CrossEntropy
from selfdistill.teachers import Labels

CLASSES, ROWS = 4, 32


@dataclass(frozen=True)
class Says(Teacher):
    """Says what a function of the step says."""

    what: Callable[[Forward], Tensor]
    called: str = "logits"

    def space(self, head: str) -> str:
        return self.called

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        return Target(self.what(forward), self.called)


@dataclass(frozen=True)
class Inverted(Gate):
    """Keeps what it should drop, or makes no claim."""

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        top = target.probabilities(student.shape[-1]).amax(-1)
        return (top < top.median()).float()


@dataclass(frozen=True)
class Unclaimed(Inverted):
    prefers: ClassVar[str | None] = None


class Net(nn.Module):
    """A network with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layers(x)
        return found


def clear(forward: Forward) -> Tensor:
    """Confident and right: logits of the labels."""
    return F.one_hot(forward.labels("x"), CLASSES).float() * (2 + torch.rand(forward.rows("x"), 1) * 4)


LABEL = Term(Labels(), CrossEntropy())


def train(
    terms: dict[str, Term],
    steps: int = 60,
    lr: float = 0.1,
    model: nn.Module | None = None,
    rows: int = ROWS,
    each: Callable[[Any, int], None] = lambda objective, step: None,
) -> Any:
    """A loop of one's own over learnable data; ``each`` comes between the optimizer's step and the update."""
    torch.manual_seed(0)
    model = model or Net()
    objective = Method(terms).bind(model.train())
    optimizer = torch.optim.SGD(model.parameters(), lr)
    for step in range(steps):
        y = torch.randint(0, CLASSES, (rows,))
        x = torch.cat([F.one_hot(y, CLASSES).float() * 2, torch.zeros(rows, 2)], 1) + 0.3 * torch.randn(rows, 6)
        optimizer.zero_grad()
        objective({"x": x, "y": y, "id": step * rows + torch.arange(rows)}).backward()
        optimizer.step()
        each(objective, step)
        objective.update()
    return objective


def caught(term: Term, **options: Any) -> VitalsError:
    """What stops a loop in which ``term`` is the odd one, beside the labels."""
    with pytest.raises(VitalsError) as found:
        train({"label": LABEL, "odd": term}, **options)
    assert "'odd'" in str(found.value)
    assert "\n" not in str(found.value)
    assert str(found.value).startswith(found.value.vital)
    return found.value
