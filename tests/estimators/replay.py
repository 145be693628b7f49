"""What the oracles of recipes for tables share: the rows and the learners of a real fit, and what it chose by folds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Recorded:
    """Labelled rows (X, y), unlabelled rows U, the learner with its peers, and the choices of a real fit."""

    X: NDArray[Any]
    y: NDArray[Any]
    U: NDArray[Any]
    learners: list[Any]  # the learner first
    xi: list[float]  # of each later generation
    temperatures: list[float]  # of each later generation


def others(predictions: list[NDArray[Any]], member: int) -> NDArray[Any]:
    """The mean prediction of a member's peers; its own where it has none."""
    peers = [p for number, p in enumerate(predictions) if number != member]
    return np.asarray(np.mean(peers or predictions, axis=0))
