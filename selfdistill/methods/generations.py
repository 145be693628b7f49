"""Generations that learn from the one before them."""

from __future__ import annotations

from ..core import Loss, Method, Term
from ..errors import RecipeError
from ..losses import KL, CrossEntropy, Squared
from ..schedules import ByGeneration
from ..teachers import Generation, Labels


def _generations(generations: int, xi: float, loss: Loss) -> Method:
    """Generation 0 on labels; later ones on (1 - xi) label + xi last generation. xi outside [0, 1] has no minimum."""
    if not 0.0 <= xi <= 1.0:
        raise RecipeError(
            f"the last generation's weight lies in [0, 1], not {xi}: outside, one cross-entropy has a negative weight, "
            "and -log p grows without bound, so the loss has no minimum; for values mixed(xi=...) takes any number"
        )
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(Generation(), loss, weight=ByGeneration(0.0, xi)),
        },
        generations=generations,
    )


def born_again(generations: int = 2, xi: float = 1.0, temperature: float = 1.0, loss: str = "kl") -> Method:
    """Born-again networks: every generation starts afresh and imitates the one before it.

    Equation::

        generation 0:  L = CE(y, p)
        generation k:  L = (1 - xi) CE(y, p) + xi T^2 KL(t^T || p^T),  t = generation k-1, frozen, eval mode

    ``loss="ce"`` puts CE(t^T, p^T), without T^2, in the place of the KL; at T = 1 the gradient is the same.
    ``generations`` counts trainings, the first included.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, equation 5 (xi = 1, T = 1: no labels).

    >>> born_again(generations=3, xi=0.5).generations
    3
    """
    losses: dict[str, Loss] = {"kl": KL(temperature), "ce": CrossEntropy(temperature)}
    if loss not in losses:
        raise RecipeError(f"born_again compares by loss='kl' or loss='ce', not {loss!r}")
    return _generations(generations, xi, losses[loss])


def tf_kd(alpha: float = 0.95, temperature: float = 6.0) -> Method:
    """Teacher-free distillation (self-training form): a pretrained copy of the model teaches a fresh one.

    Equation::

        L = (1 - a) CE(y, p) + a T^2 KL(t^T || p^T),  t = the pretrained copy, frozen

    The authors' code averages the KL over classes too and multiplies by 50 (a factor 0.5 at 100 classes); the paper's
    equation has neither.

    Source: Yuan et al., Revisiting Knowledge Distillation via Label Smoothing Regularization, CVPR 2020, equation 8.

    >>> tf_kd().generations
    2
    """
    return _generations(2, alpha, KL(temperature))


def mixed(xi: float = 0.5, generations: int = 2) -> Method:
    """Values between label and last generation, or beyond them: squared errors allow every real weight.

    Equation::

        generation 0:  L = (y - f)^2
        generation k:  L = (1 - xi) (y - f)^2 + xi (t - f)^2 = (xi t + (1 - xi) y - f)^2 + xi (1 - xi) (t - y)^2

    So it is a squared error from the mixed target, and bounded, for xi below 0 (the student is told more of what its
    teacher missed) and above 1 too; t is generation k - 1, frozen, in eval mode.

    Source: Borup and Andersen, Even your Teacher Needs Guidance, NeurIPS 2021 (xi in [0, 1]); Pareek, Du
    and Oh, Understanding the Gains from Repeated Self-Distillation, NeurIPS 2024 (any xi).

    >>> mixed(xi=1.5).terms["label"].weight
    ByGeneration(first=1.0, later=-0.5)
    """
    return Method(
        {
            "label": Term(Labels(), Squared(mean=True), head="values", weight=ByGeneration(1.0, 1.0 - xi)),
            "past": Term(Generation(), Squared(mean=True), head="values", weight=ByGeneration(0.0, xi)),
        },
        generations=generations,
    )
