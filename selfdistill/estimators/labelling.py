"""Which unlabelled rows a generation learns, and what their labels look like."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from .tables import ALIKE, Floats, Rows

Selection = float | Callable[[Floats], Floats] | None


@dataclass(frozen=True)
class Labelling:
    """From what teachers say of unlabelled rows, (rows, classes) or (rows,), to targets and weights.

    ``temperature`` tempers distributions first, p^(1/T) normalised; then ``selection`` weighs the rows; ``hard`` leaves
    the best class alone. The teacher of a member is the mean of the other ones, or of all where ``itself`` says so.
    """

    selection: Selection = None
    hard: bool = False
    temperature: float = 1.0
    itself: bool = False

    def of(self, said: Floats) -> tuple[Floats, Floats | None]:
        """Targets, and a weight in [0, 1] for each row (None: all of them count in full).

        Raises:
            ValueError: a selection that does not fit what was said.
        """
        if said.ndim == 2 and self.temperature != 1.0:
            said = tempered(said, self.temperature)
        trust = self._trust(said)
        return np.eye(said.shape[1])[said.argmax(axis=1)] if self.hard and said.ndim == 2 else said, trust

    def teacher(self, said: Sequence[Floats], number: int) -> Floats:
        """Who teaches a member: its peers, or itself where it is alone."""
        rest = [one for place, one in enumerate(said) if self.itself or place != number] or list(said)
        return np.asarray(np.mean(rest, axis=0)) if len(rest) > 1 else rest[0]

    def _trust(self, said: Floats) -> Floats | None:
        if self.selection is None:
            return None
        if callable(self.selection):
            found = np.asarray(self.selection(said), dtype=np.float64)
            if found.shape != said.shape[:1] or not ((found >= 0) & (found <= 1)).all():
                raise ValueError(
                    f"selection returned {found.shape} for {len(said)} rows; it gives one weight in [0, 1] for each"
                )
            return found
        if said.ndim == 1:
            raise ValueError(
                "selection is a confidence, and values have none; give a function of the predictions, or None"
            )
        return np.asarray(said.max(axis=1) >= self.selection, dtype=np.float64)


@dataclass(frozen=True)
class Share:
    """The most confident ``share`` of the rows, of every predicted class as many where ``balanced``.

    >>> P = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]])
    >>> Share(0.5, balanced=True)(P).tolist(), Share(0.5, balanced=False)(P).tolist()
    ([1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0])
    """

    share: float
    balanced: bool = True

    def __call__(self, said: Floats) -> Floats:
        found, best, sure = np.zeros(len(said)), said.argmax(axis=1), said.max(axis=1)
        classes = range(said.shape[1]) if self.balanced else [None]
        each = int(np.ceil(self.share * len(said) / len(classes)))
        for c in classes:
            rows = np.flatnonzero(best == c) if c is not None else np.arange(len(said))
            found[rows[np.argsort(-sure[rows], kind="stable")[:each]]] = 1.0
        return found


def tempered(said: Floats, temperature: float) -> Floats:
    """Distributions (rows, classes) to the power 1 / T, normalised."""
    logs = np.log(said.clip(1e-12)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def best_temperature(said: Floats, y: NDArray[np.int64], rows: Rows = ALIKE) -> float:
    """The temperature of least log loss on rows that the predictions (rows, classes) have not learnt from.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

    >>> sharp = np.array([[0.99, 0.01]] * 4)  # sure of class 0, and right in three of four
    >>> round(float(tempered(sharp, best_temperature(sharp, np.array([0, 0, 0, 1])))[0, 0]), 2)
    0.75
    """
    w = rows.weigh(len(y))
    at = np.arange(len(y))

    def loss(log_t: float) -> float:
        return -float(w @ np.log(tempered(said, float(np.exp(log_t)))[at, y].clip(1e-300)))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))
