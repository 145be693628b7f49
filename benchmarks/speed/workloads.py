"""What is timed: two small models with made-up data, and each mode's step, by hand and through an `Objective`.

The loops by hand are what one would write without this package, with PyTorch's fastest form of every operation.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.timing import Call, one_thread
from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import Part, Term
from selfdistill.core.step import Batch, Rows
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods.controls import distil, plain
from selfdistill.models.networks import resnet
from selfdistill.teachers import Ema, Labels

CLASSES, BATCHES = 10, 4
ALPHA, TEMPERATURE, DECAY = 0.9, 4.0, 0.999
SEQUENCE, VOCABULARY = 64, 256
AVERAGE = Ema(DECAY, warm_up=False)


class _Block(nn.Module):
    """Attention and a feed-forward network, each after a layer norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before = nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.between = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        mixed = self.mix(self.before(x)).view(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)  # each (rows, heads, tokens, width of a head)
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(seen.transpose(1, 2).reshape(rows, tokens, width))
        return x + self.feed(self.between(x))  # type: ignore[no-any-return]


class _Transformer(nn.Module):
    """Reads (rows, tokens) of ids, averages over the tokens, returns logits (rows, classes)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(torch.randn(SEQUENCE, width) * 0.02)
        self.blocks = nn.Sequential(*(_Block(width, 4) for _ in range(depth)))
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.token(ids) + self.place[: ids.shape[1]]
        return self.classifier(self.norm(self.blocks(x)).mean(1))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Workload:
    """A model, the rows it sees again and again, and its optimizer."""

    about: str
    build: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batches: list[tuple[Tensor, Tensor, Tensor]]  # inputs, labels (rows,), sample ids (rows,)


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, weight_decay=5e-4, foreach=True)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), 1e-5, foreach=True)


def _rows(make: Callable[[int], Tensor], size: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    labels = torch.randint(CLASSES, (BATCHES, size))
    ids = torch.arange(BATCHES * size).view(BATCHES, size)
    return [(make(size), y, i) for y, i in zip(labels, ids, strict=True)]


def cnn(quick: bool) -> Workload:
    """A residual network of 14 layers on 1x28x28 images, with SGD."""
    size, width, side = (4, 4, 8) if quick else (128, 16, 28)
    shape = (1, side, side)
    batches = _rows(lambda rows: torch.randn(rows, *shape), size)
    about = f"residual network, 14 layers, 1x{side}x{side}, batch {size}, SGD"
    return Workload(about, lambda: resnet(shape, CLASSES, width=width), _sgd, batches)


def transformer(quick: bool) -> Workload:
    """A transformer that classifies sequences, with AdamW."""
    size, width, depth, tokens = (4, 8, 1, 8) if quick else (64, 128, 4, SEQUENCE)
    batches = _rows(lambda rows: torch.randint(VOCABULARY, (rows, tokens)), size)
    about = f"transformer, {depth} layers, width {width}, {tokens} tokens, batch {size}, AdamW"
    return Workload(about, lambda: _Transformer(width, depth), _adamw, batches)


WORKLOADS: dict[str, Callable[[bool], Workload]] = {"cnn": cnn, "transformer": transformer}


def _frozen(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).requires_grad_(False).eval()


def _distillation(logits: Tensor, target: Tensor, y: Tensor) -> Tensor:
    """(1 - a) CE + a T^2 KL, as everyone writes it."""
    t = TEMPERATURE
    divergence = F.kl_div(F.log_softmax(logits / t, 1), F.softmax(target / t, 1), reduction="batchmean")
    return (1.0 - ALPHA) * F.cross_entropy(logits, y) + ALPHA * t * t * divergence


class _Averaged:
    """Moving average of a model's weights and floating buffers, in two calls whatever their number."""

    def __init__(self, model: nn.Module) -> None:
        self.module = _frozen(model)
        self.mine, self.theirs = self._floats(self.module), self._floats(model)

    @staticmethod
    def _floats(model: nn.Module) -> list[Tensor]:
        return [v.detach() for v in (*model.parameters(), *model.buffers()) if v.is_floating_point()]

    def __call__(self) -> None:
        torch._foreach_lerp_(self.mine, self.theirs, 1.0 - DECAY)


def by_hand(work: Workload, mode: str) -> Call:
    """One step of a mode, without this package."""
    model = work.build().train()
    optimizer = work.optimizer(model)
    teacher = _frozen(model)
    averaged = _Averaged(model) if "average" in mode else None
    table = torch.cat([teacher(x) for x, _, _ in work.batches])  # (samples, classes), by sample id

    def step(i: int) -> None:
        x, y, ids = work.batches[i % len(work.batches)]
        optimizer.zero_grad(set_to_none=True)
        logits = model(x)
        if mode in ("plain", "average kept"):
            loss = F.cross_entropy(logits, y)
        elif mode == "frozen teacher, cached":
            loss = _distillation(logits, table[ids], y)
        else:
            with torch.no_grad():
                target = (averaged.module if averaged else teacher)(x)
            loss = _distillation(logits, target, y)
        loss.backward()
        optimizer.step()
        if averaged:
            averaged()

    return step


@dataclass(frozen=True)
class _Keeping(Term):
    """A term beside which an average of the weights is kept, though nobody asks it."""

    average: Ema = AVERAGE

    def parts(self) -> tuple[Part, ...]:
        return *super().parts(), self.average


def _taught_by_average() -> Method:
    label = Term(Labels(), CrossEntropy(), weight=1.0 - ALPHA)
    return Method({"label": label, "average": Term(AVERAGE, KL(TEMPERATURE), weight=ALPHA)})


METHODS: dict[str, Callable[[], Method]] = {
    "plain": plain,
    "average kept": lambda: Method({"label": _Keeping(Labels(), CrossEntropy())}),
    "frozen teacher, cached": lambda: distil(alpha=ALPHA, temperature=TEMPERATURE),
    "frozen teacher, online": lambda: distil(alpha=ALPHA, temperature=TEMPERATURE),
    "average as teacher, online": _taught_by_average,
}


def objective_of(work: Workload, mode: str, model: nn.Module, **options: Any) -> tuple[Objective, list[Batch]]:
    """A mode's objective for a model, and the batches it is called on; options as of `Objective`."""
    objective = METHODS[mode]().bind(model, external=_frozen(model), **options)
    batches = []
    for x, y, ids in work.batches:
        batch = Batch(x=Rows(x, y, ids))
        batch.fixed = frozenset({"x"}) if mode.endswith("cached") else frozenset()
        batches.append(batch)
    return objective, batches


def through_objective(work: Workload, mode: str) -> Call:
    """One step of a mode, as the README's loop has it."""
    model = work.build().train()
    return _stepping(work, model, *objective_of(work, mode, model))


def taught(work: Workload, method: Method) -> Call:
    """One step of any method of one fixed view, with a frozen copy of the model as external teacher."""
    model = work.build().train()
    objective, batches = method.bind(model, external=_frozen(model)), []
    for x, y, ids in work.batches:
        batch = Batch(x=Rows(x, y, ids))
        batch.fixed = frozenset({"x"})
        batches.append(batch)
    return _stepping(work, model, objective, batches)


def _stepping(work: Workload, model: nn.Module, objective: Objective, batches: list[Batch]) -> Call:
    optimizer = work.optimizer(model)

    def step(i: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = objective(batches[i % len(batches)])
        loss.backward()
        optimizer.step()
        objective.update()

    return step


def bare_costs(work: Workload) -> dict[str, Call]:
    """What no implementation can save: the teacher's forward pass, and one pass over the weights for an average."""
    model = work.build()
    teacher = _frozen(model)
    theirs = torch.cat([v.detach().flatten() for v in (*model.parameters(), *model.buffers())]).float()
    mine = theirs.clone()

    def forward(i: int) -> None:
        with torch.no_grad():
            teacher(work.batches[i % len(work.batches)][0])

    def average(i: int) -> None:
        mine.lerp_(theirs, 1.0 - DECAY)

    return {"teacher forward": forward, "pass over the weights": average}


__all__ = [
    "BATCHES",
    "METHODS",
    "WORKLOADS",
    "Workload",
    "bare_costs",
    "by_hand",
    "objective_of",
    "taught",
    "through_objective",
]


def each_workload(
    measure: Callable[[Workload, int, Callable[[int], None]], dict[str, Any]],
    rounds: int,
    quick: bool,
    progress: Callable[[str], None] | None,
) -> dict[str, dict[str, Any]]:
    """What is measured of each model, by its name, on one thread.

    Args:
        measure: given a workload, the rounds, and what it calls with the rounds that are done.
        rounds: of each model.
        quick: tiny models.
        progress: told now and then where the measurement is.
    """

    def told(name: str, done: int) -> None:
        if progress and (done == rounds or done % 10 == 0):
            progress(f"{name}: {done} of {rounds} rounds")

    found = dict[str, dict[str, Any]]()
    with one_thread(), torch.random.fork_rng(devices=[]):
        for name, workload in WORKLOADS.items():
            torch.manual_seed(0)
            found[name] = measure(workload(quick), rounds, partial(told, name))
    return found
