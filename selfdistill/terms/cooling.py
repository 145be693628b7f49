"""A term whose loss cools down."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from ..core import Measured, StateOf, Step, Term
from ..errors import RecipeError


@dataclass(frozen=True)
class Cooling(Term):
    """A term whose loss begins at the temperature ``start`` and falls on a straight line to its own.

    It has that after ``share`` of the generation.

    Raises:
        RecipeError: the loss has no temperature.

    >>> from selfdistill.losses import KL
    >>> from selfdistill.step import Clock
    >>> from selfdistill.teachers import Itself
    >>> Cooling(Itself("other"), KL(), start=10.0, share=0.5).temperature(Clock(step=25, epochs=100))
    5.5
    """

    start: float = 10.0
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.loss, "temperature"):
            raise RecipeError(f"{self.loss} has no temperature that could fall; use a Term")

    def temperature(self, clock: Any) -> float:
        """Of the loss, at this place of the run."""
        left = max(0.0, 1.0 - clock.progress / self.share) if self.share > 0 else 0.0
        end = float(cast(Any, self.loss).temperature)
        return end + (self.start - end) * left

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        loss = replace(cast(Any, self.loss), temperature=self.temperature(step.clock))
        now = Term(self.teacher, loss, self.view, self.head, self.gate, self.weight, self.mean_over)
        return now.tally(state_of, step)
