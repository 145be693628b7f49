"""The student answers for inputs that were moved to where it changes its mind most: gradients within a term."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import draws
from ..core import Loss, Step, Teacher, Term
from ..errors import RecipeError, SpaceError
from ..heads import space_of
from ..losses import KL
from ..step import Passes, members
from ..targets import Target
from ..teachers import Itself


def _unit(x: Tensor) -> Tensor:
    """Each row at length 1; a row of zeros stays."""
    length = x.flatten(1).norm(dim=1).reshape(-1, *(1,) * (x.dim() - 1))
    return x / torch.where(length > 0, length, 1.0)


@dataclass(frozen=True)
class Perturbed(Term):
    """A term whose student answers for x + r, while its teacher looks at what it always does (by default x itself).

    Equation::

        r = size x d / ||d||,  d <- H d  (``iterations`` times, from a random direction)
        H = the second derivative of loss(student(x + r), sg student(x)) in r, at r = 0

    r is the direction in which the student changes most. H d is exact, by differentiating twice; batch norm uses the
    rows of the view in these passes and keeps its running statistics. The direction is drawn by sample id and step.

    Source: Miyato et al., Virtual Adversarial Training, IEEE TPAMI 2019, section 3.3; there H d is a difference
    quotient with a step of 1e-6, which float32 does not resolve at inputs of size 1.

    Raises:
        RecipeError: a size that is not above 0, or no iteration.
    """

    teacher: Teacher = Itself()
    loss: Loss = KL()
    size: float = 8.0
    iterations: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size > 0 or self.iterations < 1:
            raise RecipeError(
                f"inputs are moved by more than 0, after 1 iteration or more; not by {self.size} after "
                f"{self.iterations}"
            )

    def said(self, step: Step) -> Tensor:
        x = step.batch[self.view].x
        if not x.is_floating_point():
            raise SpaceError(f"view {self.view!r} shows {x.dtype}, and only inputs that are real numbers can be moved")
        return step.answer(x + self.size * self.direction(step, x), self.head)

    def further(self, networks: float, rows_of: Callable[[str], float]) -> tuple[float, float]:
        """Forward and backward passes beyond those of the views, for so many networks and rows of a view."""
        rows = networks * rows_of(self.view)
        return rows * (1.0 + self.iterations), rows * (1.0 + 2.0 * self.iterations)

    @torch.enable_grad()
    def direction(self, step: Step, x: Tensor) -> Tensor:
        """Where the student changes most, a unit vector for each row."""
        clock = step.clock
        # the seed of the step is that of dropout, so that runs with other seeds draw other directions
        address = (torch.initial_seed(), "direction", clock.generation, clock.step)
        d = _unit(draws.normal(address, step.ids(self.view), x[0].numel()).view_as(x).to(x.dtype))
        for _ in range(self.iterations):
            r = torch.zeros_like(x).requires_grad_()
            said = step.answer(x + r, self.head, wrapped=False)
            apart = self.loss(said, Target(said.detach(), space_of(self.head))).sum()
            (slope,) = torch.autograd.grad(apart, r, create_graph=True)
            (curve,) = torch.autograd.grad((slope * d).sum(), r)
            step.passes += Passes(backward=members(step.owner) * len(x))  # the first was counted with its forward
            d = _unit(curve)
        return d.detach()
