"""Teachers of classes: targets by class, by rank of classes or of confidence, and by similar rows of the batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.memory import Buffers, FrozenCopy, copy_model
from ..core.parts import BaseTerm, BindArgs, GenerationData, Teacher
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError
from .memories import memory_space
from .weights import Ema


class _ClassMeans(Buffers):
    """The targets ``soft`` (classes, classes), and ``sums`` and ``counts`` of the current epoch."""

    soft: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("soft", "sums"):
            self.register_buffer(name, torch.zeros(0, 0))
        self.register_buffer("counts", torch.zeros(0))

    def resize(self, output: Tensor) -> None:
        """The first output says how many classes there are."""
        classes = output.shape[-1]
        if len(self.counts) != classes:
            self.soft = output.new_full((classes, classes), 1.0 / classes)
            self.sums, self.counts = output.new_zeros(classes, classes), output.new_zeros(classes)

    def end_epoch(self) -> None:
        """Turn the means of an epoch into targets; a class without a correct row gets the uniform distribution."""
        means = self.sums / self.counts.clamp(min=1.0)[:, None]
        self.soft = torch.where(self.counts[:, None] > 0, means, 1.0 / len(self.counts))
        self.sums, self.counts = torch.zeros_like(self.sums), torch.zeros_like(self.counts)


@dataclass(frozen=True)
class ClassMean(Teacher[_ClassMeans]):
    """The mean of the student's predictions over the rows of a class that it classified correctly in the last epoch.

    In the first epoch, and for a class without a correct row, it is the uniform distribution (online label smoothing,
    Zhang et al. 2021).
    """

    even: ClassVar[bool] = True  # a uniform target is meant, not the sign of a second softmax

    def start(self, model: nn.Module, args: BindArgs) -> _ClassMeans:
        return _ClassMeans()

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: _ClassMeans, forward: Forward, term: BaseTerm) -> Target:
        y = forward.labels(term.view)
        state.resize(forward.student(term.view, term.head).detach())
        return Target(state.soft[y.clamp(min=0)], "probabilities", y >= 0)

    def update(self, state: _ClassMeans, forwards: Sequence[Forward], term: BaseTerm) -> None:
        clock = forwards[0].clock
        for forward in (forward for forward in forwards if forward.rows(term.view)):
            p, y = F.softmax(forward.student(term.view, term.head), dim=-1), forward.labels(term.view)
            state.resize(p)
            correct = (p.argmax(-1) == y).to(p.dtype)
            sums = torch.zeros_like(state.sums).index_add_(0, y.clamp(min=0), p * correct[:, None])
            counts = torch.zeros_like(state.counts).index_add_(0, y.clamp(min=0), correct)
            state.sums, state.counts = state.sums + distributed.add(sums), state.counts + distributed.add(counts)
        if (clock.step + 1) % clock.per_epoch == 0:
            state.end_epoch()


@dataclass(frozen=True)
class Virtual(Teacher):
    """A fixed distribution: ``correct`` on the label, the rest evenly on the other classes (Tf-KD, 2020)."""

    correct: float = 0.99

    def __post_init__(self) -> None:
        if not 0.0 < self.correct < 1.0:
            raise RecipeError(f"a virtual teacher gives the label a probability inside (0, 1), not {self.correct}")

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        y, classes = forward.labels(term.view), forward.student(term.view, term.head).shape[-1]
        value = torch.full((len(y), classes), (1.0 - self.correct) / (classes - 1), device=y.device)
        return Target(value.scatter_(1, y.clamp(min=0)[:, None], self.correct), "probabilities", y >= 0)


class _SeededCopy(FrozenCopy):
    """An average of weights, and the seed of the draws."""

    seed: Tensor

    def __init__(self, module: nn.Module, train: bool) -> None:
        super().__init__(module, train)
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))


@dataclass(frozen=True)
class BetaRanked(Ema[_SeededCopy]):
    """Smoothed labels whose confidences are drawn from Beta(a, 1) and ordered by those of an average of the weights.

    In a batch, the row with the k-th largest probability of the true class under the average gets the k-th largest draw
    (Zhang and Sabuncu 2020). The average runs in train mode. A row's draw depends on seed, step and sample id; the
    order is within the micro-batch of one process.
    """

    train: bool = True
    a: float = 3.0

    def __post_init__(self) -> None:
        if not self.a > 0:
            raise RecipeError(f"a of Beta(a, 1) is above 0, not {self.a}")

    def start(self, model: nn.Module, args: BindArgs) -> _SeededCopy:
        return _SeededCopy(copy_model(model), self.train)

    def key(self, term: BaseTerm) -> Hashable:
        return self, term.view, term.head

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def prepare(self, state: _SeededCopy, pool: GenerationData) -> None:
        state.seed.fill_(pool.seed)

    def target(self, state: _SeededCopy, forward: Forward, term: BaseTerm) -> Target:
        y, clock = forward.labels(term.view), forward.clock
        z = forward.teacher_output(state.module, self.view or term.view, term.head)
        labelled = y >= 0
        address = (int(state.seed), "beta", clock.generation, clock.step)
        draws = rng.uniform(address, forward.ids(term.view), 1)[:, 0] ** (1.0 / self.a)  # the inverse of x^a
        confidence = F.softmax(z, dim=-1).gather(-1, y.clamp(min=0)[:, None])[:, 0]
        correct = torch.zeros_like(draws)
        rows = labelled.nonzero().squeeze(1)
        correct[rows[confidence[rows].argsort(stable=True)]] = draws[rows].sort().values
        value = ((1.0 - correct) / (z.shape[-1] - 1))[:, None].repeat(1, z.shape[-1])
        return Target(value.scatter_(1, y.clamp(min=0)[:, None], correct[:, None]), "probabilities", labelled)


@dataclass(frozen=True)
class Neighbours(Teacher):
    """Predictions of the batch, propagated along the similarity of features (BAKE, Ge et al. 2021).

    Q = (1 - omega) (I - omega A)^-1 softmax(z / T): the limit of Q <- omega A Q + (1 - omega) softmax(z / T), with
    A_ij the softmax over j != i of the cosine of the features of i and j. The head ``feature`` has the features. The
    batch is the micro-batch of a process; a single row teaches itself.
    """

    omega: float = 0.5
    temperature: float = 4.0
    feature: str = "feature"
    mixes: ClassVar[bool] = True  # a row's target depends on the other rows

    def __post_init__(self) -> None:
        if not 0.0 <= self.omega < 1.0:
            raise RecipeError(f"omega is the share of the neighbours, at least 0 and below 1, not {self.omega}")

    def space(self, head: str) -> str:
        memory_space(self, head, values=False)
        return "logits"

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        logits = forward.student(term.view, term.head).detach()
        if len(logits) < 2:
            return Target(logits, "logits")
        f = F.normalize(forward.student(term.view, self.feature).detach(), dim=-1)
        diagonal = torch.eye(len(f), dtype=torch.bool, device=f.device)
        affinity = (f @ f.T).masked_fill(diagonal, -torch.inf).softmax(-1)
        p = F.softmax(logits / self.temperature, dim=-1)
        propagated = torch.linalg.solve(diagonal.to(f.dtype) - self.omega * affinity, (1.0 - self.omega) * p)
        # as logits, so that a loss at the same temperature recovers the same probabilities
        return Target(self.temperature * propagated.clamp(min=1e-30).log(), "logits")


def zipf(scores: Tensor, y: Tensor, power: float = 1.0) -> Tensor:
    """r^-power for the class of rank r by these scores, 0 for the label, normalised: (rows, classes).

    A class has rank 1 + the number of classes with a higher score, the label's among them, so equal scores share one.

    >>> zipf(torch.tensor([[5.0, 3.0, 3.0, 0.0]]), torch.tensor([0]))
    tensor([[0.0000, 0.4000, 0.4000, 0.2000]])
    """
    ordered, classes = scores.sort(dim=-1).values.contiguous(), scores.shape[-1]
    rank = 1 + classes - torch.searchsorted(ordered, scores.contiguous(), right=True)
    weights = rank.float().pow(-power).scatter(-1, y.clamp(min=0)[:, None], 0.0)
    return weights / weights.sum(-1, keepdim=True)


@dataclass(frozen=True)
class ZipfRanks(Teacher):
    """Zipf's law over the other classes, in the order of the votes of all positions of a map (Liang et al. 2022).

    ``votes`` is the head that has a classification of every position, such as ``dense:stages.2``.
    """

    votes: str
    power: float = 1.0

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        maps, y = (
            forward.student(term.view, self.votes).detach(),
            forward.labels(term.view),
        )  # (rows, positions, classes)
        votes = F.one_hot(maps.argmax(-1), maps.shape[-1]).sum(1).float()
        return Target(zipf(votes, y, self.power), "probabilities", y >= 0)


@dataclass(frozen=True)
class WeakRanks(Teacher):
    """Zipf's law over the other classes, in the order of w_c / (1 - w_y) + p_c / (1 - p_y) (USKD, Yang et al. 2023).

    ``weak`` is the head of a weak classifier of the same rows, w its probabilities and p the student's.
    """

    weak: str

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        y = forward.labels(term.view)
        label, scores = y.clamp(min=0)[:, None], torch.zeros(())
        for head in (self.weak, term.head):
            p = F.softmax(forward.student(term.view, head).detach(), dim=-1)
            scores = scores.to(p) + p / (1.0 - p.gather(-1, label)).clamp(min=1e-6)
        return Target(zipf(scores, y), "probabilities", y >= 0)
