"""Gates on a target: its confidence, variance, agreement with labels, peers or dropout passes, or its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import Buffers
from ..core.parts import Always, BaseTerm, BindArgs, Gate
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError

__all__ = ["Agreement", "Always", "Confidence", "Confident", "Correct", "ErrorBound", "Precision"]


def _confidence(student: Tensor, target: Target) -> Tensor:
    """Largest probability of the target, (rows, ...)."""
    return target.probabilities(student.shape[-1]).amax(-1)


@dataclass(frozen=True)
class Confident(Gate):
    """1 where the target's largest probability reaches the threshold, else 0 (FixMatch, Sohn et al. 2020)."""

    threshold: float = 0.95
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return (_confidence(student, target) >= self.threshold).to(student.dtype)


class _Limit(Buffers):
    """The least confidence of a target; infinite as long as none is known to be enough."""

    threshold: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.full((), math.inf))


@dataclass(frozen=True)
class ErrorBound(Gate[_Limit]):
    """1 where the target's largest probability reaches a threshold that follows validation rows, else 0.

    The threshold is the smallest confidence from which at most the share ``max_error`` of rows is predicted wrongly, by
    the upper bound of Clopper and Pearson on the validation rows, wrong with a probability of at most ``level``. `fit`
    renews it at the end of each epoch, from the student in eval mode; before, and where no confidence is enough, trust
    is 0. Validation rows then teach which pseudo-labels count: a choice by the same rows is optimistic.

    Raises:
        RecipeError: an error rate or level outside (0, 1).
    """

    max_error: float = 0.05
    level: float = 0.05
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def __post_init__(self) -> None:
        if not (0.0 < self.max_error < 1.0 and 0.0 < self.level < 1.0):
            raise RecipeError(f"max_error and level lie between 0 and 1, not {self.max_error} and {self.level}")

    def start(self, model: nn.Module, args: BindArgs) -> _Limit:
        return _Limit()

    def weigh(self, state: _Limit, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return (_confidence(student, target) >= state.threshold).to(student.dtype)


@dataclass(frozen=True)
class Confidence(Gate):
    """Trust equal to the target's largest probability (self-adaptive training, Huang et al. 2020)."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return _confidence(student, target).to(student.dtype)


@dataclass(frozen=True)
class Agreement(Gate):
    """1 where the distance of student and target is at most ``within``, else 0: a gate for values without confidence.

    The distance of values is mean_c |s_c - t_c|, so ``within`` has their unit (1 is a standard deviation of
    standardised values). That of a target (m, log variance) is |m_s - m_t| / sigma_t. The spread of a batch is not used
    as a unit, since trust would then depend on the other rows and on the size of micro-batches.
    """

    within: float = 1.0
    spaces: ClassVar[frozenset[str] | None] = frozenset({"values", "gaussian"})

    def confidence(self, student: Tensor, target: Target) -> Tensor:
        """The confidence of each element: minus the distance. Of a head (m, log variance) beside values, m counts."""
        distance = (student[..., : target.value.shape[-1]] - target.value).abs()
        return -(
            distance[..., 0] * torch.exp(-target.value[..., 1] / 2) if target.space == "gaussian" else distance.mean(-1)
        )

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return (self.confidence(student, target) >= -self.within).to(student.dtype)


@dataclass(frozen=True)
class Precision(Gate):
    """Trust v / (v + s^2) in a target of variance s^2: one half where that is ``variance``, 1 where it is certain.

    Values are standardised, so a variance of 1 is that of the labels: the trust is the share of a label's variance
    that a target with such noise would leave explained.
    """

    variance: float = 1.0
    spaces: ClassVar[frozenset[str] | None] = frozenset({"gaussian"})

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise RecipeError(f"Precision: variance (that of trust 1/2) is above 0, not {self.variance}")

    def confidence(self, student: Tensor, target: Target) -> Tensor:
        """The confidence of each element: minus its log variance."""
        return -target.value[..., 1]

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return torch.sigmoid(math.log(self.variance) + self.confidence(student, target)).to(student.dtype)


@dataclass(frozen=True)
class Correct(Gate):
    """1 where the target's best class is the label; rows without a label are kept."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the label decides

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        labels = Target(forward.labels(term.view), "classes").spread(student).value
        return torch.where(labels < 0, True, target.best() == labels).to(student.dtype)


def smallest(loss: Tensor, valid: Tensor, number: int | Tensor) -> Tensor:
    """A mask (rows, ...) of the ``number`` smallest valid losses down the rows, for each inner element by itself.

    >>> smallest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]), 1).tolist()
    [False, False, True]
    """
    order = loss.masked_fill(~valid, torch.inf).argsort(dim=0, stable=True)
    return (order.argsort(dim=0) < number) & valid


@dataclass(frozen=True)
class SmallLoss(Gate):
    """1 for the share 1 - F of the rows with the smallest loss, else 0 (co-teaching, Han et al. 2018).

    F = noise x min(e / E, 1) in epoch e (from 0), E the share ``ramp`` of all epochs; of n rows int((1 - F) n) stay.
    With ``crossed`` each peer gets the rows with the smallest loss of the next peer, the last one those of the first.
    With several micro-batches, rows are ranked within one.

    Raises:
        RecipeError: a noise outside [0, 1).
    """

    noise: float = 0.4
    ramp: float = 0.05
    crossed: bool = False
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the loss decides

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise RecipeError(f"SmallLoss: noise is the share of wrong labels, in [0, 1), not {self.noise}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        epochs = self.ramp * forward.clock.epochs
        rate = self.noise * (min(1.0, forward.clock.epoch / epochs) if epochs > 0 else 1.0)
        if term.loss is None:
            raise RecipeError("SmallLoss ranks rows by the loss of its term, and this term has none; give it one")
        loss = term.loss(student, target)
        valid = torch.ones_like(loss, dtype=torch.bool) if target.valid is None else target.valid
        number = ((1.0 - rate) * valid.sum(0)).long()
        mask = smallest(loss, valid, number)
        return (mask.roll(-1, dims=1) if self.crossed and mask.dim() > 1 else mask).to(student.dtype)


@dataclass(frozen=True)
class Unanimous(Gate):
    """1 where all peers predict the target's class; for the target of a peer, all other peers.

    ``head`` has the outputs of the peers (rows, K, classes) on ``view`` (the term's own if None).

    Source: Zhou and Li, Tri-Training, IEEE TKDE 2005 (two teach the third where they agree).
    """

    head: str = "peers"
    view: str | None = None
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the peers decide

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        votes, best = (
            forward.student(self.view or term.view, self.head).argmax(-1),
            target.best(),
        )  # (rows, K), (rows, ...)
        agreement = votes.reshape(*votes.shape, *(1,) * (best.dim() - 1)) == best.unsqueeze(1)  # (rows, K, ...)
        if term.head == self.head:
            agreement.diagonal(dim1=1, dim2=2).fill_(True)  # a peer does not vote on its own target
        return agreement.all(1).to(student.dtype)


@dataclass(frozen=True)
class LowVariance(Gate):
    """1 where the probability of the target's class has a standard deviation of at most ``spread``, else 0.

    The deviation is the unbiased one over ``passes`` forward passes with dropout on or, if ``head`` is given, over its
    peers, on ``view`` (the term's own if None). Without dropout it is 0.

    Source: Rizve et al., UPS, ICLR 2021 (10 passes; 0.05).

    Raises:
        RecipeError: fewer than two passes, or a spread below 0.
    """

    spread: float = 0.05
    passes: int = 10
    head: str | None = None
    view: str | None = None
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the deviation decides

    def __post_init__(self) -> None:
        if self.passes < 2 or not self.spread >= 0:
            raise RecipeError(
                f"LowVariance: passes is at least 2 and spread at least 0, not {self.passes} and {self.spread}"
            )

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        view = self.view or term.view
        logits = (
            forward.student(view, self.head) if self.head else forward.dropout_outputs(view, term.head, self.passes)
        )
        p, best = F.softmax(logits.detach(), dim=-1), target.best().clamp(min=0)  # (rows, passes, ..., classes)
        if p.dim() == 3 and best.dim() == 2:  # the passes of a row judge each of its exits or peers
            p = p.unsqueeze(2).expand(-1, -1, best.shape[1], -1)
        index = best.unsqueeze(1).unsqueeze(-1).expand(*p.shape[:-1], 1)
        return (p.gather(-1, index).squeeze(-1).std(1) <= self.spread).to(student.dtype)
