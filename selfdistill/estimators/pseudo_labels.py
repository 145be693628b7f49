"""Pseudo-labels: which unlabelled rows a generation learns, with which targets and weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar

from ..data.copies import Floats, Ints
from .tables import EQUAL_WEIGHTS, RowWeights

Selection = float | Callable[[Floats], Floats] | None


@dataclass(frozen=True)
class PseudoLabels:
    """How the predictions of teachers for unlabelled rows, (rows, classes) or (rows,), become targets and weights.

    Probabilities are first tempered by ``temperature``; then ``selection`` weighs the rows; ``hard`` targets are the
    most probable class. The teacher of a member is the mean of the others, or of all members if ``include_self``.
    """

    selection: Selection = None
    hard: bool = False
    temperature: float = 1.0
    include_self: bool = False

    def targets(self, prediction: Floats) -> tuple[Floats, Floats | None]:
        """Targets, and a weight in [0, 1] for each row (None: all of them count in full).

        Raises:
            ValueError: the selection does not fit the predictions.
        """
        if prediction.ndim == 2 and self.temperature != 1.0:
            prediction = temper(prediction, self.temperature)
        weights = self._weights(prediction)
        if self.hard and prediction.ndim == 2:
            return np.eye(prediction.shape[1])[prediction.argmax(axis=1)], weights
        return prediction, weights

    def teacher(self, predictions: Sequence[Floats], member: int) -> Floats:
        """The prediction that a member learns: the mean of its peers, or its own where it has none."""
        others = [p for number, p in enumerate(predictions) if self.include_self or number != member] or predictions
        return np.asarray(np.mean(others, axis=0)) if len(others) > 1 else others[0]

    def _weights(self, prediction: Floats) -> Floats | None:
        if self.selection is None:
            return None
        if callable(self.selection):
            weights = np.asarray(self.selection(prediction), dtype=np.float64)
            if weights.shape != prediction.shape[:1] or not ((weights >= 0) & (weights <= 1)).all():
                raise ValueError(
                    f"selection returned {weights.shape} for {len(prediction)} rows; it gives one weight in [0, 1] for "
                    "each"
                )
            return weights
        if prediction.ndim == 1:
            raise ValueError(
                "selection is a confidence, and values have none; give a function of the predictions, or None"
            )
        return np.asarray(prediction.max(axis=1) >= self.selection, dtype=np.float64)


@dataclass(frozen=True)
class MostConfident:
    """A selection of the most confident ``share`` of the rows; ``balanced``: equally many of every predicted class.

    >>> P = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    >>> MostConfident(0.5, balanced=True)(P).tolist(), MostConfident(0.5, balanced=False)(P).tolist()
    ([1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0])
    """

    share: float
    balanced: bool = True

    def __call__(self, prediction: Floats) -> Floats:
        weights, confidence = np.zeros(len(prediction)), prediction.max(axis=1)
        groups = prediction.argmax(axis=1) if self.balanced else np.zeros(len(prediction), dtype=np.int64)
        number = prediction.shape[1] if self.balanced else 1
        for group in range(number):
            rows = np.flatnonzero(groups == group)
            order = np.argsort(-confidence[rows], kind="stable")
            weights[rows[order[: int(np.ceil(self.share * len(prediction) / number))]]] = 1.0
        return weights


def temper(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities (rows, classes) to the power 1 / temperature, normalised."""
    logs = np.log(probabilities.clip(1e-12)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def fit_temperature(probabilities: Floats, y: Ints, rows: RowWeights = EQUAL_WEIGHTS) -> float:
    """The temperature of least log loss on held-out rows: probabilities (rows, classes), class indices (rows,).

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

    >>> sharp = np.array([[0.99, 0.01]] * 4)  # sure of class 0, and right in three of four
    >>> round(float(temper(sharp, fit_temperature(sharp, np.array([0, 0, 0, 1])))[0, 0]), 2)
    0.75
    """
    weights, index = rows.of(len(y)), np.arange(len(y))

    def loss(log_temperature: float) -> float:
        tempered = temper(probabilities, float(np.exp(log_temperature)))
        return -float(weights @ np.log(tempered[index, y].clip(1e-300)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
