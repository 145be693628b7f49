"""Terms whose loss cools down, or warms up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from ..core import Measured, StateOf, Step, Tally, Term
from ..errors import RecipeError


@dataclass(frozen=True)
class Cooling(Term):
    """A term whose loss begins at the temperature ``start`` and goes on a straight line to its own.

    It has that after ``share`` of the generation. ``which`` names the temperature, where a loss has several.

    Raises:
        RecipeError: the loss has no such temperature.

    >>> from selfdistill.losses import KL
    >>> from selfdistill.step import Clock
    >>> from selfdistill.teachers import Itself
    >>> Cooling(Itself("other"), KL(), start=10.0, share=0.5).temperature(Clock(step=25, epochs=100))
    5.5
    """

    start: float = 10.0
    share: float = 0.5
    which: str = "temperature"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.loss, self.which):
            raise RecipeError(f"{self.loss} has no {self.which} that could change; use a Term")
        if not self.start > 0:
            raise RecipeError(f"temperatures are above 0, not {self.start}")

    def temperature(self, clock: Any) -> float:
        """Of the loss, at this place of the run."""
        left = max(0.0, 1.0 - clock.progress / self.share) if self.share > 0 else 0.0
        end = float(getattr(self.loss, self.which))
        return end + (self.start - end) * left

    def told(self) -> str:
        """How it changes, in words."""
        return f"whose {self.which} goes from {self.start:g} to its own in the first {100 * self.share:g} %"

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        loss: Any = self.loss
        now = replace(loss, **{self.which: self.temperature(step.clock)})
        return Term.tally(replace(self, loss=now), state_of, step)


@dataclass(frozen=True)
class PerRow(Cooling):
    """A `Cooling` whose mean is over rows, of the mean over a row's elements; a row of which none is valid counts as 0.

    Source: the patches of Zhou et al., iBOT, ICLR 2022, equation 2, as the authors compute it.
    """

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        found = super().tally(state_of, step)
        if found.seen is None:
            return found
        loss, valid = found.seen.loss, found.seen.target.valid
        number = (torch.ones_like(loss) if valid is None else valid.to(loss.dtype)).flatten(1).sum(1)
        total = (loss.flatten(1).sum(1) / number.clamp(min=1.0)).sum()
        return found._replace(tally=Tally(total, loss.new_full((), float(len(loss)))))
