"""Generations that learn from the one before them."""

from __future__ import annotations

from ..core import Loss, Method, Term
from ..errors import RecipeError
from ..losses import KL, CrossEntropy
from ..schedules import ByGeneration
from ..teachers import Generation, Labels


def _generations(generations: int, xi: float, loss: Loss) -> Method:
    """Generation 0 on labels; later ones on (1 - xi) label + xi last generation. xi outside [0, 1] has no minimum."""
    if not 0.0 <= xi <= 1.0:
        raise RecipeError(f"the last generation's weight lies in [0, 1] (outside, the loss has no minimum), not {xi}")
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
