"""What is asked of a model that was trained without labels: the place for a linear probe."""

from __future__ import annotations

from torch import Tensor, nn

from ..compare.jobs import Spoken
from ..errors import RecipeError
from ..tasks.data import Data


def probed(model: nn.Module, data: Data, weights: dict[str, Tensor] | None = None) -> Spoken:
    """What a linear classifier on the model's features, learnt from the training labels, says of audit and test rows.

    Raises:
        RecipeError: always, until there is one.
    """
    raise RecipeError("there is no linear probe yet, so that models without labels cannot be judged")
