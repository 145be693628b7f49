"""A loss whose target is sharpened first, while the student stays as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Loss
from ..errors import RecipeError
from ..targets import DISTRIBUTIONS, Target
from .common import CrossEntropy


@dataclass(frozen=True)
class Sharpened:
    """``loss`` against t^(1/T), normalised: below temperature 1 the target is surer than what was said, above softer.

    The gate still judges the target as it was said. (`CrossEntropy` and `KL` with a temperature temper both sides.)

    Source: Xie et al., Unsupervised Data Augmentation, NeurIPS 2020 (T = 0.4); Berthelot et al., MixMatch, NeurIPS
    2019 (T = 0.5).

    Raises:
        RecipeError: a temperature that is not above 0, or a loss that compares no distributions.

    >>> import torch
    >>> said = Target(torch.tensor([[0.6, 0.4]]), "probabilities")
    >>> round(Sharpened(CrossEntropy(), 0.5)(torch.tensor([[1.0, 0.0]]), said).item(), 4)  # against 9/13, 4/13
    0.621
    """

    loss: Loss = CrossEntropy()
    temperature: float = 0.4
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS
    flat = property(lambda self: bool(getattr(self.loss, "flat", False)))
    signed = property(lambda self: bool(getattr(self.loss, "signed", False)))

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"a temperature is above 0, not {self.temperature}")
        if "probabilities" not in getattr(self.loss, "target_spaces", DISTRIBUTIONS):
            raise RecipeError(f"{type(self.loss).__name__} compares no distributions, so there is nothing to sharpen")

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        sharp = target.probabilities(student.shape[-1], self.temperature)
        return self.loss(student, Target(sharp, "probabilities", target.valid))
