"""Weights of the teacher outside [0, 1], where the loss stays bounded."""

from __future__ import annotations

from ..core import Method, Term
from ..errors import RecipeError
from ..losses import CrossEntropy, Squared
from ..schedules import ByGeneration
from ..teachers import Beyond, Generation, Labels


def beyond(xi: float = 1.5, generations: int = 2, loss: str = "ce") -> Method:
    """Self-distillation beyond the teacher: with noisy labels the best weight of the teacher may exceed 1.

    Equation::

        generation 0:  L = l(y, p)
        generation k:  L = l(xi t + (1 - xi) y, p),  t = generation k - 1, frozen, eval mode
        loss="ce":       l = CE, and of the mixed target what is below 0 is cut off, the rest normalised
        loss="squared":  l = ||. - p||^2, as (1 - xi) ||y - p||^2 + xi ||t - p||^2, which is the same but for a constant

    A cross-entropy with a negative weight has no minimum, so the paper's xi CE(t, p) + (1 - xi) CE(y, p) is kept where
    the target is a distribution (always for xi in [0, 1]; above 1 where t_y >= 1 - 1 / xi), and the cut is ours.
    Squared distances of probabilities are bounded for every xi.

    Source: Das and Sanghavi, Understanding Self-Distillation in the Presence of Label Noise, ICML 2023.

    >>> beyond(2.0).terms["past"].teacher.xi
    2.0
    """
    if loss not in ("ce", "squared"):
        raise RecipeError(f"beyond compares by loss='ce' or loss='squared', not {loss!r}")
    if loss == "ce":
        return Method({"past": Term(Beyond(xi=xi), CrossEntropy())}, generations=generations)
    label = Term(Labels(), Squared(), weight=ByGeneration(1.0, 1.0 - xi))
    past = Term(Generation(), Squared(), weight=ByGeneration(0.0, xi))
    return Method({"label": label, "past": past}, generations=generations)
