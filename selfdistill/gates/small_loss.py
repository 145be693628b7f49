"""A gate that asks the loss: wrong labels are learnt last, so what is learnt badly is suspected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Gate, Step, Target, Term
from ..errors import RecipeError
from ..targets import DISTRIBUTIONS


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

    def weigh(self, state: nn.Module, student: Tensor, target: Target, step: Step, term: Term) -> Tensor:
        epochs = self.ramp * step.clock.epochs
        forget = self.noise * (min(1.0, step.clock.epoch / epochs) if epochs > 0 else 1.0)
        loss = term.loss(student, target)
        valid = torch.ones_like(loss, dtype=torch.bool) if target.valid is None else target.valid
        kept = ((1.0 - forget) * valid.sum(0)).long()
        chosen = smallest(loss, valid, kept)
        return (chosen.roll(-1, dims=1) if self.crossed and chosen.dim() > 1 else chosen).to(student.dtype)
