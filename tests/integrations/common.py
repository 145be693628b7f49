"""What the tests of both doors share: rows, a small network, recipes, and the loop by hand they are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import PerTrust, Term
from selfdistill.core.step import TrainingClock
from selfdistill.gates import Confident
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import recipes
from selfdistill.teachers import Ema, Frozen, Labels

CLASSES, WIDTH, ROWS = 3, 4, 22
EMA = Method({"label": Term(Labels(), CrossEntropy()), "average": Term(Ema(0.8), KL(2.0), weight=0.5)})
#: How many elements count depends on the data: micro-batches have unequal counts.
KEPT = Method({
    "label": Term(Labels(), CrossEntropy(), weight=0.5),
    "sure": Term(Frozen(), CrossEntropy(hard=True), gate=Confident(0.4), reduction=PerTrust()),
})  # fmt: skip
METHODS = {"average": EMA, "memory": recipes()["ps_kd"](), "history": recipes()["elr"]()}


class Net(nn.Module):
    """Dropout and batch norm, and the loss that an evaluation asks for."""

    def __init__(self, dropout: float = 0.0, norm: bool = True) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(WIDTH, 6), nn.BatchNorm1d(6) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout)
        )
        self.last = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.last(self.layers(x))
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels, ignore_index=-1), "logits": logits}


def net(dropout: float = 0.0, norm: bool = True) -> Net:
    torch.manual_seed(0)
    return Net(dropout, norm)


def inputs() -> tuple[Tensor, Tensor]:
    """Rows and labels, of which two are missing."""
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(CLASSES, (ROWS,), generator=generator)
    x = torch.randn(ROWS, WIDTH, generator=generator) + F.one_hot(y, WIDTH)
    y[[3, 11]] = -1
    return x, y


def by_hand(
    method: Method, model: nn.Module, steps: Sequence[Sequence[Sequence[int]]], clock: TrainingClock, lr: float = 0.1
) -> tuple[list[float], Objective]:
    """The README's loop over micro-batches of ids, divided by their number; the mean loss of each step."""
    x, y = inputs()
    objective = method.bind(model.train(), clock=clock)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr, momentum=0.9), []
    for parts in steps:
        optimizer.zero_grad()
        total = 0.0
        for ids in map(torch.tensor, parts):
            loss = objective({"x": x[ids], "y": y[ids], "id": ids}) / len(parts)
            loss.backward()
            total += loss.item()
        optimizer.step()
        objective.update()
        losses.append(total)
    return losses, objective


def same(a: Any, b: Any) -> None:
    """Two states are equal, bit by bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name
