"""The audit: may this generation teach the next one, and may it be the product?

The audit split is labelled and never teaches. After a generation, candidate and champion (the best generation audited
so far) are compared row by row on it. The split is used again for every generation, so the level of the test is spent
over them. Classes are audited by accuracy: when audit labels are wrong as often as training labels, with no class
preferred, accuracy still ranks models by how often they are right, while the likelihood rewards whoever is less sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from .errors import DataError
from .stats import mcnemar, smallest_visible, spend

POLICIES = ("safe", "strict", "off")
POWER = 0.8  # of a test that is said to see a change


@dataclass(frozen=True)
class Decision:
    """One generation's audit: accepted or rolled back, and why. ``change`` is a share of rows, candidate - champion."""

    generation: int
    accepted: bool
    why: str
    against: int | None = None
    better: int = 0
    worse: int = 0
    rows: int = 0
    change: float = 0.0
    p: float | None = None
    level: float | None = None
    delta: float | None = None


@dataclass(frozen=True)
class Audit:
    """How generations are accepted.

    ``safe`` takes a candidate unless it may be worse than the champion by ``delta`` (a share of rows); left open, that
    is the change the comparison can see with a power of 80 %. ``strict`` takes it only if it is shown to be better.
    ``off`` takes the last generation. ``level`` is spent over ``planned`` audits. After ``patience`` audited
    generations in a row that raise the best audited accuracy no further, training ends.

    Raises:
        DataError: no such policy, or a number out of its range.

    >>> Audit("strict", planned=1).decide(1, [True] * 8, [False] * 6 + [True] * 2, against=0).accepted
    True
    """

    policy: str = "safe"
    level: float = 0.05
    delta: float | None = None
    planned: int | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise DataError(f"audit is {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, not {self.policy!r}")
        if not 0.0 < self.level < 0.5:
            raise DataError(f"audit_level lies between 0 and 0.5, not {self.level}; 0.05 is usual")
        if self.delta is not None and not 0.0 < self.delta < 1.0:
            raise DataError(f"audit_delta is a share of rows above 0 and below 1, not {self.delta}; try 0.01")
        if self.patience is not None and self.patience < 1:
            raise DataError(f"patience is at least 1, not {self.patience}")

    def foreword(self, rows: int) -> str:
        """What the split can see, said before training."""
        if self.policy == "off" or not rows:
            return "audit: off; the last generation is the product"
        level = spend(self.level, 1, self.planned)
        least = smallest_visible(rows, level)
        sees = f"the smallest change I can see is {100 * least:.1f} points" if least <= 1 else "I can see no change"
        return (
            f"audit: {self.policy}, by accuracy (labels wrong at random still rank models by it); with {rows} audit "
            f"samples {sees}, at level {level:.3g} a generation"
        )

    def decide(self, generation: int, candidate: Sequence[bool], champion: Sequence[bool], *, against: int) -> Decision:
        """Compare two models on the same rows; each sequence says which rows that model got right.

        ``strict`` is McNemar's exact one-sided test; ``safe`` tests that the candidate is not worse by ``delta``:
        by Tango's score test for a given one, else by the normal approximation to the paired difference.

        Raises:
            DataError: the two were not audited on the same rows.
        """
        if len(candidate) != len(champion):
            raise DataError(
                f"generation {generation} was audited on {len(candidate)} rows and generation {against} on "
                f"{len(champion)}; audit both on the same split"
            )
        rows, level = len(candidate), spend(self.level, generation, self.planned)
        better = sum(c and not i for c, i in zip(candidate, champion, strict=True))
        worse = sum(i and not c for c, i in zip(candidate, champion, strict=True))
        change = (better - worse) / rows
        if self.policy == "strict":
            p, delta = mcnemar(better, worse), None
            accepted = p <= level
            asked = "shown to be better" if accepted else "not shown to be better"
        else:
            p, delta = self._not_worse(better, worse, rows, level)
            accepted = p <= level
            asked = f"{'not worse' if accepted else 'may be worse'} by {100 * delta:.1f} points"
        verb = "accepted" if accepted else "rolled back"
        why = (
            f"generation {generation} {verb}: {asked} than generation {against} ({better} rows better, {worse} worse, "
            f"of {rows}; p {p:.3g}, level {level:.3g})"
        )
        return Decision(generation, accepted, why, against, better, worse, rows, change, p, level, delta)

    def _not_worse(self, better: int, worse: int, rows: int, level: float) -> tuple[float, float]:
        """p-value of "worse by delta or more", and that delta."""
        normal = NormalDist()
        if self.delta is not None:
            return 1.0 - normal.cdf(_score(better, worse, rows, self.delta)), self.delta
        change = (better - worse) / rows
        error = math.sqrt(max(better + worse - rows * change**2, 0.0)) / rows
        delta = (normal.inv_cdf(1 - level) + normal.inv_cdf(POWER)) * error
        if error == 0.0:  # the same row by row, or different in all rows
            return (0.0 if change >= 0 else 1.0), delta
        return 1.0 - normal.cdf((change + delta) / error), delta


def _score(better: int, worse: int, rows: int, delta: float) -> float:
    """Score statistic of "worse by delta" for paired shares (Tango, Statistics in Medicine 17, 1998).

    Its variance is that under the hypothesis: with the observed one, 8 % instead of 5 % passed in simulation.
    """
    a, b = 2 * rows, -better - worse - (2 * rows - better + worse) * delta
    c = worse * delta * (1 + delta)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # share of rows worse, given the hypothesis
    variance = rows * (2 * q - delta * (1 + delta))
    return (better - worse + rows * delta) / math.sqrt(variance) if variance > 0 else math.inf


def champion(right: Sequence[Sequence[bool]], accepted: Sequence[int]) -> int:
    """The accepted generation that got most audit rows right; of equals the earliest.

    >>> champion([[True, False], [True, True], [True, True]], [0, 1, 2])
    1
    """
    return max(accepted, key=lambda g: (sum(right[g]), -g))


def exhausted(right: Sequence[Sequence[bool]], patience: int | None) -> bool:
    """Have the last ``patience`` generations failed to raise the best audited accuracy?

    >>> exhausted([[True], [True], [True]], 2), exhausted([[False], [True], [True]], 2)
    (True, False)
    """
    if patience is None or len(right) <= patience:
        return False
    scores = [sum(row) for row in right]
    return max(scores[-patience:]) <= max(scores[:-patience])
