"""What the oracle tests share: a small real training run, recorded so that a straight-line twin can repeat it.

An oracle sees the same initial weights and the same batches as `fit` did, and computes everything else by itself.
It imports torch and this module, and no loss, teacher, gate, schedule or method of the package.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.outputs import space_of
from selfdistill.core.step import Batch, TrainingClock
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.models.networks import vit
from selfdistill.training.fit import fit

EPOCHS, CLASSES = 2, 4
LR, MOMENTUM, DECAY = 0.05, 0.9, 1e-3


class TinyNet(nn.Module):
    """8x8 images -> logits, with batch norm, so that it matters which rows share a forward; two shallow exits."""

    def __init__(self, exits: bool = False, outputs: int = CLASSES, dropout: float = 0.0, last: int = 2) -> None:
        super().__init__()
        self.exits, self.dropout = exits, nn.Dropout(dropout)
        self.stages = nn.ModuleList([self._stage(1, 4), self._stage(4, 4), self._stage(4, 6, last)])
        self.necks = nn.ModuleList([nn.Linear(4, 6), nn.Linear(4, 6)])
        self.classifiers = nn.ModuleList([nn.Linear(6, outputs) for _ in range(3)])
        if not exits:
            del self.necks, self.classifiers[:2]

    @staticmethod
    def _stage(before: int, after: int, stride: int = 2) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        logits = self.classifiers[-1](self.dropout(pooled[-1]))
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


def build_values(outputs: int = 1) -> nn.Module:
    """For recipes of values: with dropout, so that it matters what a pass draws."""
    return TinyNet(outputs=outputs, dropout=0.2)


def build_maps(exits: bool = False) -> nn.Module:
    """For recipes that read maps: the last one has four positions, where the other's has one."""
    return TinyNet(exits, last=1)


def build_patches() -> nn.Module:
    """For recipes that hide patches: sixteen of side two, in one block."""
    return vit((1, 8, 8), CLASSES, width=8, depth=1, heads=2)


def build_dropping(exits: bool = False) -> nn.Module:
    """For recipes of classes that ask a model several times: with dropout, or all answers would be one."""
    return TinyNet(exits, dropout=0.3)


def building_for(method: Method) -> Any:
    """The factory of models that the recipe is tried on."""
    if of_values(method):
        return build_values
    if method.wrap_model and method.wrap_model.patches:
        return build_patches
    if method.wrap_model and method.wrap_model.maps:
        return build_maps
    several = any(hasattr(part, "passes") for term in method.terms.values() for part in term.parts())
    return build_dropping if several else build


def of_values(method: Method) -> bool:
    """Does a recipe learn values, and no classes?"""
    return any(space_of(term.head) in ("values", "gaussian", "ranks") for term in method.terms.values())


def value_data(unlabelled: int = 24) -> Data:
    """The same images with a value each: how bright the left half is, under noise."""
    data = tiny_data(0)
    y = data.tensor[:, 0, :, :4].mean((1, 2)) * 20 + torch.randn(90, generator=torch.Generator().manual_seed(3))
    if unlabelled:
        y[-unlabelled:] = torch.nan
    return from_tensors(data.tensor, y, augment="weak", audit=data.audit, test=data.test)


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
    steps: list[list[tuple[TrainingClock, Batch]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    final: nn.Module | None = None
    lr: float = LR

    def model(self, generation: int = 0) -> nn.Module:
        """A fresh copy of a generation's initial model, in train mode."""
        return copy.deepcopy(self.starts[generation]).train()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), self.lr, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)

    def batches(self, generation: int = 0) -> Iterator[tuple[TrainingClock, Any]]:
        """(clock, batch) of every step; ``batch[view]`` has ``x``, ``y`` and ``id``. What is drawn is drawn again."""
        for clock, batch in self.steps[generation]:
            torch.manual_seed(rng.seed(0, "step", clock.generation, clock.step, 0, 0))
            yield clock, batch

    def settled(self, model: nn.Module) -> nn.Module:
        """With the run's classifier, fitted at its end (see `tests.evaluation.test_linear_probe`)."""
        assert self.final is not None
        name = next(n for n in ("model.classifiers.0", "model.classifier") if f"{n}.weight" in model.state_dict())
        model.get_submodule(name).load_state_dict(self.final.get_submodule(name).state_dict())
        return model

    def uniform(self, name: str, clock: TrainingClock, ids: Tensor) -> Tensor:
        """What a part draws for each sample in this step: as for batches, an address decides."""
        return rng.uniform((0, name, clock.generation, clock.step), ids, 1)[:, 0]

    def directions(self, clock: TrainingClock, ids: Tensor, count: int) -> Tensor:
        """The normal numbers (rows, count) that a step draws for its samples, as `batches` left the step's seed."""
        return rng.normal((torch.initial_seed(), "direction", clock.generation, clock.step), ids, count)

    def places(self, first: int, rows: int) -> list[int]:
        """The places in a reservoir that rows of these numbers draw, each below its number plus one."""
        numbers = torch.arange(first, first + rows)
        u = rng.uniform((0, "reservoir"), numbers, 2).double()
        return ((u[:, 0] + u[:, 1] / 2**24) * (numbers + 1)).long().tolist()

    def replayed(self, clock: TrainingClock, view: str, batch: Any, stored: int, count: int) -> list[int]:
        """The stored rows that a step draws for a view, of a number of them."""
        first = int(batch["x"].id[0])
        return rng.sample((0, "stored", view, clock.generation, clock.step, 0, first), stored, min(count, stored))

    def seeded(self, *address: int | str) -> None:
        """Set torch's generator as a run of seed 0 does for something it draws between steps."""
        torch.manual_seed(rng.seed(0, *address))


def short_share(clock: TrainingClock, short: float, full: float = 0.0, steps: int = 2**20) -> float:
    """A share of the run: ``full`` in a run of ``steps`` steps, and growing to ``short`` in shorter ones."""
    return full + (short - full) * max(0.0, 1 - clock.length / steps)


def risen(clock: TrainingClock, share: float, steps: int = 2**20) -> float:
    """A weight of 1 that rises on a line from 0 in short runs, over a share of them."""
    share = short_share(clock, share, steps=steps)
    return 1.0 if share == 0 else min(1.0, clock.step / clock.length / share)


def beside(clock: TrainingClock, ratio: float | None, most: float = 7.0, steps: int = 2**20, batch: int = 12) -> int:
    """The unlabelled rows beside a batch: ``most`` for each of its rows in a run of ``steps``, else fewer in fewer."""
    several = ratio if ratio is not None else math.exp(math.log(most) * math.log(clock.length) / math.log(steps))
    return round(batch * several)


def forgetting(clock: TrainingClock, decay: float, steps: int = 2**20, least: float = 0.9) -> float:
    """The decay of an average over a share of the run: ``decay`` in a run of ``steps`` steps."""
    return max(least, 1 - (1 - decay) * steps / clock.length)


class Shares:
    """The running mean of a plain loop's predictions, and predictions that are evened out by it."""

    def __init__(self, decay: float = 0.999) -> None:
        self.decay, self.mean = decay, torch.zeros(0)

    def even(self, clock: TrainingClock, q: Tensor) -> Tensor:
        d = forgetting(clock, self.decay)
        self.mean = d * self.mean + (1 - d) * q.mean(0) if len(self.mean) else q.mean(0)
        p = q / self.mean
        return p / p.sum(1, keepdim=True)


def bounded(run: Recorded, model: nn.Module, max_error: float) -> float:
    """The least confidence from which the validation rows' error rate is at most so much, at level .05."""
    with torch.no_grad():
        p = copy.deepcopy(model).eval()(run.data.rows(run.data.audit)).softmax(1)
    rows = sorted(
        zip(p.amax(1).tolist(), (p.argmax(1) != run.data.y[run.data.audit]).tolist(), strict=True), reverse=True
    )
    limit, wrong = math.inf, 0
    for n, (confidence, error) in enumerate(rows, 1):
        wrong += error
        likely = sum(math.comb(n, k) * max_error**k * (1 - max_error) ** (n - k) for k in range(wrong + 1))
        if likely > 0.05 and n >= math.log(0.05) / math.log(1 - max_error):
            break
        limit = confidence if likely <= 0.05 else limit
    return limit


class Reservoir:
    """Past rows (x, y, logits) kept by a plain loop: each offered once, in the first epoch."""

    def __init__(self, run: Recorded, memory: int) -> None:
        self.run, self.memory, self.seen = run, memory, 0
        self.rows: list[tuple[Tensor, ...]] = []

    def offer(self, clock: TrainingClock, x: Tensor, y: Tensor, logits: Tensor) -> None:
        if clock.epoch:
            return
        for row, place in zip(zip(x, y, logits.detach(), strict=True), self.run.places(self.seen, len(x)), strict=True):
            if len(self.rows) < self.memory:
                self.rows.append(row)
            elif place < self.memory:
                self.rows[place] = row
            self.seen += 1

    def draw(self, clock: TrainingClock, view: str, batch: Any, count: int) -> tuple[Tensor, ...]:
        """The x, y and logits of a step's rows; none before the first step."""
        places = self.run.replayed(clock, view, batch, len(self.rows), count) if self.rows else []
        if not places:
            x = batch["x"].x
            return x[:0], batch["x"].y[:0], x.new_zeros(0, CLASSES)
        return tuple(torch.stack([self.rows[place][field] for place in places]) for field in range(3))


class _EnoughError(Exception):
    """Raised by the watcher to cut a run short."""


def record(method: Method, folder: Path, cut: int | None = None, device: str = "cpu") -> Recorded:
    """Run `fit` for two epochs a generation; ``cut`` stops it dead after that many steps and resumes it from disk."""
    unlabelled = 24 if method.views.need_unlabelled() else 0
    values = of_values(method)
    run = Recorded(value_data(unlabelled) if values else tiny_data(unlabelled))
    building = building_for(method)
    # a weight of 10 on values, and weights that are quotients of small numbers, blow the last bits up at the larger one
    run.lr = LR / 5 if values or method.views.need_clean() else LR

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        while len(run.steps) <= clock.generation:
            run.steps.append([])
        run.steps[clock.generation].append((clock, batches[0]))
        run.losses.append(loss)
        if cut is not None and len(run.losses) == cut:
            raise _EnoughError

    options: dict[str, Any] = {
        "epochs": EPOCHS, "batch_size": 12, "optimizer": "sgd", "lr": run.lr, "weight_decay": DECAY,
        "schedule": "constant", "save_steps": 1 if cut else 10**6, "external": external_teacher(), "out": folder,
        "device": device,
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
    run.starts = _initial_models(method, building, result.generations)
    return run


def _initial_models(method: Method, building: Any, generations: list[Any]) -> list[nn.Module]:
    """Each generation's model as it was before its first step; their digests are checked against the run's record."""
    from selfdistill.io.tensors import digest

    factory = method.wrap_model(building) if method.wrap_model else building
    starts = []
    for g, generation in enumerate(generations):
        torch.manual_seed(rng.seed(0, "init", g))
        starts.append(factory())
        warm = g and method.wrap_model and method.wrap_model.warm
        start = generations[g - 1].weights if warm else starts[-1].state_dict()
        assert digest(start) == generation.start
    return starts
