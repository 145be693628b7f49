"""Gates on a single target: its confidence, its precision, its agreement with the label, or its loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.parts import Always, BaseTerm, Gate
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError

__all__ = ["Agreement", "Always", "Confidence", "Confident", "Correct", "Precision"]


def _top(student: Tensor, target: Target) -> Tensor:
    """Largest probability of the target, (rows, ...)."""
    return target.probabilities(student.shape[-1]).amax(-1)


@dataclass(frozen=True)
class Confident(Gate):
    """1 where the target's largest probability reaches the threshold, else 0 (FixMatch, Sohn et al. 2020)."""

    threshold: float = 0.95
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        return (_top(student, target) >= self.threshold).to(student.dtype)


@dataclass(frozen=True)
class Confidence(Gate):
    """Trust equal to the target's largest probability (self-adaptive training, Huang et al. 2020)."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        return _top(student, target).to(student.dtype)


@dataclass(frozen=True)
class Agreement(Gate):
    """1 where student and target are at most ``within`` apart, else 0: the confidence of targets that have none.

    Values are apart by mean_c |s_c - t_c|, so ``within`` counts in their units (1 is a standard deviation where values
    are standardised). A target (m, log variance) is apart by |m_s - m_t| / sigma_t: it brings a unit of its own. The
    spread of a batch is none: a row's trust would depend on the other rows, and micro-batches differ from the whole.
    """

    within: float = 1.0
    spaces: ClassVar[frozenset[str] | None] = frozenset({"values", "gaussian"})

    def measures(self, student: Tensor, target: Target) -> Tensor:
        """How sure an element is: minus the distance. Of a head (m, log variance) beside values, m counts."""
        apart = (student[..., : target.value.shape[-1]] - target.value).abs()
        return -(apart[..., 0] * torch.exp(-target.value[..., 1] / 2) if target.space == "gaussian" else apart.mean(-1))

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        return (self.measures(student, target) >= -self.within).to(student.dtype)


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
            raise RecipeError(f"the variance that is half trusted is above 0, not {self.variance}")

    def measures(self, student: Tensor, target: Target) -> Tensor:
        """How sure an element is: minus its log variance."""
        return -target.value[..., 1]

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        return torch.sigmoid(math.log(self.variance) + self.measures(student, target)).to(student.dtype)


@dataclass(frozen=True)
class Correct(Gate):
    """1 where the target's best class is the label; rows without a label are kept."""

    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # it asks the label

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        labels = Target(step.labels(term.view), "classes").spread(student).value
        return torch.where(labels < 0, True, target.best() == labels).to(student.dtype)


def smallest(loss: Tensor, valid: Tensor, kept: int | Tensor) -> Tensor:
    """A mask (rows, ...) of the ``kept`` smallest valid losses down the rows, for each inner element by itself.

    >>> smallest(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True]), 1).tolist()
    [False, False, True]
    """
    order = loss.masked_fill(~valid, torch.inf).argsort(dim=0, stable=True)
    return (order.argsort(dim=0) < kept) & valid


@dataclass(frozen=True)
class SmallLoss(Gate):
    """1 for the share 1 - F of the rows with the smallest loss, else 0 (co-teaching, Han et al. 2018).

    F = noise x min(e / E, 1) in epoch e (from 0), E the share ``ramp`` of all epochs; of n rows int((1 - F) n) stay.
    With ``crossed`` each peer gets the rows that the next one finds easy, the last one those of the first. With several
    micro-batches, rows are ranked within one.

    Raises:
        RecipeError: a noise outside [0, 1).
    """

    noise: float = 0.4
    ramp: float = 0.05
    crossed: bool = False
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # it asks the loss

    def __post_init__(self) -> None:
        if not 0.0 <= self.noise < 1.0:
            raise RecipeError(f"noise is the share of labels taken for wrong, from 0 to below 1, not {self.noise}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Forward, term: BaseTerm) -> Tensor:
        epochs = self.ramp * step.clock.epochs
        forget = self.noise * (min(1.0, step.clock.epoch / epochs) if epochs > 0 else 1.0)
        if term.loss is None:
            raise RecipeError("SmallLoss asks a term's loss, and this term has none")
        loss = term.loss(student, target)
        valid = torch.ones_like(loss, dtype=torch.bool) if target.valid is None else target.valid
        kept = ((1.0 - forget) * valid.sum(0)).long()
        chosen = smallest(loss, valid, kept)
        return (chosen.roll(-1, dims=1) if self.crossed and chosen.dim() > 1 else chosen).to(student.dtype)
