"""A small network, its batches and its loop: what the tests of several bugs share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import Term
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import Ema, FrozenCopy, Labels

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
    return next(state.module for state in objective.states.values() if isinstance(state, FrozenCopy))
