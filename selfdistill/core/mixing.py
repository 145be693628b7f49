"""Rows mixed with each other (mixup): an axis of a method, and what a forward pass makes of it.

A method with a `Mixing` has two more views of the rows of ``x``. ``mixed`` shows their mixed inputs; ``between`` has no
inputs, but the outputs for ``x``, mixed in the same way. The partner of the first row is the last, and so on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.distributions import Beta

from ..errors import RecipeError, SpaceError
from .step import Batch, DerivedViews, Forward, Rows

MIXED, BETWEEN = "mixed", "between"  # the two views


@dataclass(frozen=True)
class Mixing(DerivedViews):
    """Each batch draws the share of a row beside that of its partner from Beta(a, a), with a = ``alpha``.

    Source: Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.

    Raises:
        RecipeError: alpha is not above 0.
    """

    alpha: float = 1.0

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise RecipeError(f"rows are mixed by shares of Beta(a, a) with an a above 0, not {self.alpha}")

    def draw(self) -> Mixture:
        return Mixture(self.alpha, float(Beta(self.alpha, self.alpha).sample()))

    def sources(self, views: tuple[str, ...]) -> tuple[str, ...]:
        """The views that are forwarded for these: ``x`` stands for ``between``.

        >>> Mixing().sources(("mixed", "between"))
        ('mixed', 'x')
        """
        forwarded = tuple(view for view in views if view != BETWEEN)
        return (*forwarded, "x") if BETWEEN in views and "x" not in views else forwarded


@dataclass(frozen=True)
class Mixture(Mixing):
    """A `Mixing` of one batch, with the share that was drawn for it."""

    share: float = 1.0

    def mix(self, value: Tensor) -> Tensor:
        """Rows mixed with their partners."""
        return self.share * value + (1.0 - self.share) * value.flip(0)

    def extend(self, batch: Batch) -> Batch:
        x = batch["x"].x if "x" in batch else None
        if x is None or not x.is_floating_point():
            raise SpaceError("rows are mixed by their numbers: the batch needs a view 'x' of floating-point inputs")
        whole = Batch({**batch, MIXED: Rows(self.mix(x)), BETWEEN: batch["x"]})
        whole.fixed = batch.fixed
        return whole

    def outputs(self, views: tuple[str, ...], of: Callable[[str], dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        if BETWEEN not in views:
            return {}
        return {BETWEEN: {head: self.mix(value) for head, value in of("x").items()}}

    def lacking(self, view: str, what: str) -> str | None:
        if view != MIXED:
            return None
        if what == "ids":
            return "a row of view 'mixed' is two samples and has no id; remember those of view 'x'"
        return "a row of view 'mixed' has two labels; MixedLabels gives both, and a gate must ask for none"


def mixture_of(forward: Forward) -> Mixture:
    """The mixture of a forward pass.

    Raises:
        SpaceError: its method mixes no rows.
    """
    if not isinstance(forward.derived, Mixture):
        raise SpaceError("labels are mixed where rows are: give the method mixing=Mixing()")
    return forward.derived
