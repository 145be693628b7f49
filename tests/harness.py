"""What the oracle tests share: a small real training run, recorded so that a straight-line twin can repeat it.

An oracle sees the same initial weights and the same batches as `fit` did, and computes everything else by itself.
It imports torch and this module, and no loss, teacher, gate, schedule or method of the package.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.core import Batch, Clock, Method
from selfdistill.loop import fit
from selfdistill.tasks.data import Data, from_tensors

EPOCHS, CLASSES = 2, 4
LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-3


class TinyNet(nn.Module):
    """8x8 images -> logits, with batch norm, so that it matters which rows share a forward; two shallow exits."""

    def __init__(self, exits: bool = False) -> None:
        super().__init__()
        self.exits = exits
        self.stages = nn.ModuleList([self._stage(1, 4), self._stage(4, 4), self._stage(4, 6)])
        self.necks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
        self.classifiers = nn.ModuleList([nn.Linear(6, CLASSES) for _ in range(3)])
        if not exits:
            del self.necks, self.classifiers[:2]

    @staticmethod
    def _stage(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        logits = self.classifiers[-1](pooled[-1])
        if not self.exits:
            return logits
        features = [neck(p) for neck, p in zip(self.necks, pooled, strict=False)]
        shallow = [head(f) for head, f in zip(self.classifiers, features, strict=False)]
        return {
            "logits": logits,
            "feature": pooled[-1],
            "exits": torch.stack(shallow, 1),
            "features": torch.stack(features, 1),
        }


def build(exits: bool = False) -> nn.Module:
    return TinyNet(exits)


def tiny_data(unlabelled: int = 24) -> Data:
    """66 images that a model can learn something about: a class is a bright quarter, under noise."""
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(90) % CLASSES
    x = torch.rand(90, 1, 8, 8, generator=generator) * 0.7
    for i, label in enumerate(y.tolist()):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[i, 0, row : row + 4, column : column + 4] += 0.3
    if unlabelled:
        y[-unlabelled:] = -1
    audit, test = torch.arange(0, 12), torch.arange(12, 24)
    return from_tensors(x, y, classes=tuple("abcd"), augment="weak", audit=audit, test=test)


def external_teacher() -> nn.Module:
    torch.manual_seed(99)
    return TinyNet().eval()


@dataclass
class Recorded:
    """A run of `fit`: per generation the initial model, the batches in order, and the losses it reported."""

    data: Data
    starts: list[nn.Module] = field(default_factory=list)
    steps: list[list[tuple[Clock, Batch]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    final: nn.Module | None = None

    def model(self, generation: int = 0) -> nn.Module:
        """A fresh copy of a generation's initial model, in train mode."""
        return copy.deepcopy(self.starts[generation]).train()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)

    def batches(self, generation: int = 0) -> Iterator[tuple[Clock, Any]]:
        """(clock, batch) of every step; ``batch[view]`` has ``x``, ``y`` and ``id``."""
        yield from self.steps[generation]


class _EnoughError(Exception):
    """Raised by the watcher to cut a run short."""


def record(method: Method, folder: Path, cut: int | None = None) -> Recorded:
    """Run `fit` for two epochs a generation; ``cut`` stops it dead after that many steps and resumes it from disk."""
    run = Recorded(tiny_data(24 if method.views.need_unlabelled() else 0))
    models: list[nn.Module] = []

    def building(exits: bool = False) -> nn.Module:
        model = build(exits)
        models.append(model)
        return model

    def watch(clock: Clock, batches: list[Batch], loss: float) -> None:
        while len(run.steps) <= clock.generation:
            run.steps.append([])
        run.steps[clock.generation].append((clock, batches[0]))
        run.losses.append(loss)
        if cut is not None and len(run.losses) == cut:
            raise _EnoughError

    options: dict[str, Any] = {
        "epochs": EPOCHS, "batch_size": 12, "optimizer": "sgd", "lr": LR, "weight_decay": DECAY,
        "schedule": "constant", "save_steps": 1 if cut else 10**6, "external": external_teacher(), "out": folder,
    }  # fmt: skip
    try:
        result = fit(building, run.data, method, watch=watch, audit="off", **options)
    except _EnoughError:
        # the step that was cut had not been saved: it will be repeated, as after a real kill
        run.losses.pop()
        run.steps[-1].pop()
        cut = None
        result = fit(building, run.data, method, watch=watch, resume=True, audit="off", **options)
    run.final = result.model
    run.starts = _initial_models(method, result.generations)
    return run


def _initial_models(method: Method, generations: list[Any]) -> list[nn.Module]:
    """Each generation's model as it was before its first step; their digests are checked against the run's record."""
    from selfdistill import draws
    from selfdistill.trainer import digest

    factory = method.prepare(build) if method.prepare else build
    starts = []
    for g, generation in enumerate(generations):
        torch.manual_seed(draws.seed(0, "init", g))
        model = factory()
        assert digest(model.state_dict()) == generation.start
        starts.append(model)
    return starts
