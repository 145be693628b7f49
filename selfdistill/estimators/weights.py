"""Weights of rows, for whatever learner, and its seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import has_fit_parameter

from ..errors import DataError
from .tables import Floats


def weight_name(estimator: Any) -> str | None:
    """The name under which a learner's ``fit`` takes weights of rows; None if it takes none."""
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        inner = weight_name(last)
        return None if inner is None else f"{name}__{inner}"
    return "sample_weight" if has_fit_parameter(estimator, "sample_weight") else None


def weighted(estimator: Any, weights: Floats | None) -> dict[str, Floats]:
    """Arguments of ``fit`` for some weights.

    Raises:
        DataError: the learner takes none.
    """
    if weights is None:
        return {}
    name = weight_name(estimator)
    if name is None:
        raise DataError(
            f"{type(estimator).__name__} takes no sample_weight, so its rows cannot be weighted; leave sample_weight "
            "out, or take a learner that has it"
        )
    return {name: weights}


def seeded(estimator: Any, random: np.random.RandomState | None) -> Any:
    """A clone with every ``random_state`` drawn from a generator; left alone without one."""
    made = clone(estimator)
    if random is not None and hasattr(made, "get_params"):
        seeds = {
            name: int(random.randint(2**31 - 1))
            for name in sorted(made.get_params())
            if name == "random_state" or name.endswith("__random_state")
        }
        made.set_params(**seeds)
    return made
