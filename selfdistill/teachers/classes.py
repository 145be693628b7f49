"""Teachers of classes: one target for each class, or for each place in an order of confidence."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import draws, ranks
from ..core import Given, Pool, Step, Target, Teacher, Term
from ..errors import RecipeError
from ..memory import Buffers
from .memories import one_per_row
from .weights import Ema, Held


class _ClassMeans(Buffers):
    """``soft`` (classes, classes) is what is taught; ``sums`` and ``counts`` are those of the epoch under way."""

    soft: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("soft", "sums"):
            self.register_buffer(name, torch.zeros(0, 0))
        self.register_buffer("counts", torch.zeros(0))

    def room(self, like: Tensor) -> None:
        """The first output says how many classes there are."""
        classes = like.shape[-1]
        if len(self.counts) != classes:
            self.soft = like.new_full((classes, classes), 1.0 / classes)
            self.sums, self.counts = like.new_zeros(classes, classes), like.new_zeros(classes)

    def turn(self) -> None:
        """An epoch ends: its means are taught now; a class that was never right gets the uniform distribution."""
        means = self.sums / self.counts.clamp(min=1.0)[:, None]
        self.soft = torch.where(self.counts[:, None] > 0, means, 1.0 / len(self.counts))
        self.sums, self.counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)


@dataclass(frozen=True)
class ClassMean(Teacher):
    """The mean of the student's own predictions for rows of the same class that it got right in the last epoch.

    Before the first epoch has ended, and for a class of which no row was right, the mean is the uniform distribution
    (online label smoothing, Zhang et al. 2021).
    """

    even: ClassVar[bool] = True  # a uniform target is meant, not the sign of a second softmax

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _ClassMeans()

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        means, y = cast(_ClassMeans, state), step.labels(term.view)
        means.room(step.student(term.view, term.head).detach())
        return Target(means.soft[y.clamp(min=0)], "probabilities", y >= 0)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        means, clock = cast(_ClassMeans, state), steps[0].clock
        for step in (step for step in steps if step.rows(term.view)):
            p, y = F.softmax(step.student(term.view, term.head), dim=-1), step.labels(term.view)
            means.room(p)
            right = (p.argmax(-1) == y).to(p.dtype)
            sums = torch.zeros_like(means.sums).index_add_(0, y.clamp(min=0), p * right[:, None])
            counts = torch.zeros_like(means.counts).index_add_(0, y.clamp(min=0), right)
            means.sums, means.counts = means.sums + ranks.add(sums), means.counts + ranks.add(counts)
        if (clock.step + 1) % clock.per_epoch == 0:
            means.turn()


@dataclass(frozen=True)
class Virtual(Teacher):
    """A teacher that nobody trained: ``correct`` on the label, the rest evenly on the other classes (Tf-KD, 2020)."""

    correct: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 < self.correct < 1.0:
            raise RecipeError(f"a virtual teacher gives the label a probability inside (0, 1), not {self.correct}")

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y, classes = step.labels(term.view), step.student(term.view, term.head).shape[-1]
        value = torch.full((len(y), classes), (1.0 - self.correct) / (classes - 1), device=y.device)
        return Target(value.scatter_(1, y.clamp(min=0)[:, None], self.correct), "probabilities", y >= 0)


@dataclass(frozen=True)
class BetaRanked(Ema):
    """Smoothed labels whose confidences are drawn from Beta(a, 1) and ordered as an average of the weights orders them.

    In a batch, the row whose true class the average finds k-th most probable gets the k-th largest draw (Zhang and
    Sabuncu 2020). The average runs in train mode. A row's draw depends on seed, step and sample id; the order is that
    of the micro-batch of one process.
    """

    train: bool = True
    a: float = 3.0

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise RecipeError(f"a of Beta(a, 1) is above 0, not {self.a}")

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        held = cast(Held, super().start(model, given))
        held.register_buffer("seed", torch.zeros((), dtype=torch.int64))
        return held

    def key(self, term: Term) -> Hashable:
        return self, term.view, term.head

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        cast(Any, state).seed.fill_(pool.seed)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y, clock, held = step.labels(term.view), step.clock, cast(Any, state)
        z = step.look(held.module, self.view or term.view, term.head)
        known = y >= 0
        address = (int(held.seed), "beta", clock.generation, clock.step)
        drawn = draws.uniform(address, step.ids(term.view), 1)[:, 0] ** (1.0 / self.a)  # the inverse of x^a
        sure = F.softmax(z, dim=-1).gather(-1, y.clamp(min=0)[:, None])[:, 0]
        correct = torch.zeros_like(drawn)
        rows = known.nonzero().squeeze(1)
        correct[rows[sure[rows].argsort(stable=True)]] = drawn[rows].sort().values
        value = ((1.0 - correct) / (z.shape[-1] - 1))[:, None].repeat(1, z.shape[-1])
        return Target(value.scatter_(1, y.clamp(min=0)[:, None], correct[:, None]), "probabilities", known)
