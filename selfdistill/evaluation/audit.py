"""The audit: it decides whether a generation may teach the next one, and which is the final model.

The audit split is labelled and never teaches. After a generation, candidate and champion (the best one audited so far)
are compared row by row on it. The split is used again for every generation, so the level of the test is spent over
them. Classes are audited by accuracy unless another measure is asked for: when audit labels are wrong as often as
training labels, with no class preferred, accuracy still ranks models by how often they are right, while the likelihood
rewards whoever is less sure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .statistics import mcnemar, one_sided_t, smallest_visible, spend

MEASURES = {
    "classify": ("accuracy", "nll", "brier"),
    "regress": ("mse",),
    "generate": ("accuracy", "nll"),
    "control": ("return",),
}


# by task; the first is the usual one
FEW = 200  # audit rows, below which cross-fitting is offered


POLICIES = ("safe", "strict", "off")


POWER = 0.8  # of a test that is said to see a change


BLUNT = 0.2  # share of rows; an audit that lets a larger loss pass unseen is said to tell nothing


@dataclass(frozen=True)
class Decision:
    """One audit: accepted or rolled back, and why. ``change`` is the gain in mean loss, positive where the candidate
    is better: a share of rows for accuracy, else in the unit of the measure, as is ``delta``."""

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
    """The rule by which generations are accepted.

    ``safe`` takes a candidate unless it may be worse than the champion by ``delta`` (a share of rows for accuracy);
    left open, that is the change the comparison can see with a power of 80 %. ``strict`` takes it only if it is shown
    to be better. ``off`` takes the last generation. ``level`` is spent over ``planned`` audits. After ``patience``
    audited generations in a row that improve the best audited score no further, training ends. ``measure`` is
    ``accuracy``, ``nll``, ``brier``, or ``mse`` for values.

    Raises:
        DataError: no such policy or measure, or a number out of its range.

    >>> Audit("strict", planned=1).decide(1, [0.0] * 8, [1.0] * 6 + [0.0] * 2, against=0).accepted
    True
    """

    policy: str = "safe"
    level: float = 0.05
    delta: float | None = None
    planned: int | None = None
    patience: int | None = None
    measure: str = "accuracy"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise DataError(f"audit is {', '.join(POLICIES[:-1])} or {POLICIES[-1]}, not {self.policy!r}")
        allowed_measures = [measure for measures in MEASURES.values() for measure in measures]
        if self.measure not in allowed_measures:
            raise DataError(
                f"audit_measure is {', '.join(allowed_measures[:-1])} or {allowed_measures[-1]}, not {self.measure!r}"
            )
        if not 0.0 < self.level < 0.5:
            raise DataError(f"audit_level lies between 0 and 0.5, not {self.level}; 0.05 is usual")
        limit = 1.0 if self.measure == "accuracy" else math.inf
        if self.delta is not None and not 0.0 < self.delta < limit:
            raise DataError(f"audit_delta is a loss of {self.measure} above 0 and below {limit:g}, not {self.delta}")
        if self.patience is not None and self.patience < 1:
            raise DataError(f"patience is at least 1, not {self.patience}")

    def foreword(self, rows: int, labelled: int = 0) -> str:
        """The notice before training of the change that the split can detect; ``labelled`` rows could be audited by
        folds.
        """
        if self.policy == "off" or not rows:
            return "audit: off; the last generation is the final model"
        level = spend(self.level, 1, self.planned)
        if self.measure == "accuracy":
            sees = _sees(rows, level)
            by = "accuracy (random label errors do not change which model is better)"
        else:
            sees, by = "the smallest detectable change depends on the spread of the losses", self.measure
        notice = f"audit: {self.policy}, by {by}; {rows} validation rows, {sees}, level {level:.3g} per generation"
        if rows < FEW and labelled and self.measure == "accuracy":
            pooled = 100 * smallest_visible(rows + labelled, level)
            notice += f"; --audit-folds 5 would validate on all {rows + labelled} labels and detect {pooled:.1f} points"
        return notice

    def decide(
        self,
        number: int,
        candidate: Sequence[float],
        champion: Sequence[float],
        *,
        against: int,
        unit: str = "generation",
        audit: int | None = None,
        rejected: str = "rolled back",
    ) -> Decision:
        """Compare the losses of two models on the same rows (for accuracy: 0 where right, else 1).

        ``strict`` is McNemar's exact one-sided test, or Student's paired one for other measures. ``safe`` tests that
        the candidate is not worse by ``delta``: for accuracy by Tango's score test if it is given and else by the
        normal approximation to the paired difference, for other measures by Student's test.

        Args:
            number: of the candidate.
            candidate, champion: losses of the two by row.
            against: number of the champion; -1 is the model before training.
            unit: the noun for what is numbered.
            audit: number of this audit, over which the level is spent [default: that of the candidate].
            rejected: what is said of a candidate that is not accepted.

        Raises:
            DataError: the two were not audited on the same rows.
        """
        reference = "the model before training" if against < 0 else f"{unit} {against}"
        if len(candidate) != len(champion):
            raise DataError(
                f"{unit} {number} was audited on {len(candidate)} rows and {reference} on {len(champion)}; audit "
                "both on the same split"
            )
        rows, level = len(candidate), spend(self.level, number if audit is None else audit, self.planned)
        gains = np.asarray(champion, dtype=np.float64) - np.asarray(candidate, dtype=np.float64)
        better, worse = int((gains > 0).sum()), int((gains < 0).sum())
        p, delta = self._improved(gains, better, worse) if self.policy == "strict" else self._not_worse(gains, level)
        accepted = p <= level
        outcome = self._asked(accepted, delta, rows, level, reference)
        counts = f"{better} rows better, {worse} worse, of {rows}; p {p:.3g}, level {level:.3g}"
        if not better and not worse:  # then p is no probability of anything
            counts = f"no row better or worse, of {rows}"
        reason = f"{unit} {number} {'accepted' if accepted else rejected}: {outcome} ({counts})"
        return Decision(number, accepted, reason, against, better, worse, rows, float(gains.mean()), p, level, delta)

    def _asked(self, accepted: bool, delta: float | None, rows: int, level: float, reference: str) -> str:
        """The outcome of an audit beside ``reference`` in words, in the figure of the foreword."""
        if delta is None:
            return f"{'shown' if accepted else 'not shown'} to be better than {reference}"
        relation = "not worse" if accepted else "may be worse"
        if self.measure != "accuracy":
            return f"{relation} by {delta:.3g} {self.measure} than {reference}"
        if self.delta is not None:
            return f"{relation} by {100 * delta:.1f} points than {reference}"
        sees = _sees(rows, level)
        if accepted and max(delta, smallest_visible(rows, level)) > BLUNT:
            return f"not distinguishable from {reference}, {sees}"
        return f"{relation} than {reference}, {sees}"

    def _improved(self, gains: NDArray[np.float64], better: int, worse: int) -> tuple[float, None]:
        return (mcnemar(better, worse) if self.measure == "accuracy" else one_sided_t(gains)), None

    def _not_worse(self, gains: NDArray[np.float64], level: float) -> tuple[float, float]:
        """p-value of "worse by delta or more", and that delta."""
        normal, rows = NormalDist(), len(gains)
        if self.delta is not None and self.measure == "accuracy":
            score = _score(int((gains > 0).sum()), int((gains < 0).sum()), rows, self.delta)
            return 1.0 - normal.cdf(score), self.delta
        if self.delta is not None:
            return one_sided_t(gains + self.delta), self.delta
        change, error = float(gains.mean()), float(gains.std()) / math.sqrt(rows)
        delta = (normal.inv_cdf(1 - level) + normal.inv_cdf(POWER)) * error
        if error == 0.0:  # the same row by row, or different by the same in all rows
            return (0.0 if change >= 0 else 1.0), delta
        return 1.0 - normal.cdf((change + delta) / error), delta


def _sees(rows: int, level: float) -> str:
    """The smallest change in accuracy that so many rows can show, in words."""
    least = smallest_visible(rows, level)
    return f"smallest detectable change {100 * least:.1f} points" if least <= 1 else "no change is detectable"


def _score(better: int, worse: int, rows: int, delta: float) -> float:
    """Score statistic of "worse by delta" for paired shares (Tango, Statistics in Medicine 17, 1998).

    Its variance is that under the hypothesis: with the observed one, 8 % instead of 5 % passed in simulation.
    """
    a, b = 2 * rows, -better - worse - (2 * rows - better + worse) * delta
    c = worse * delta * (1 + delta)
    q = (math.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)  # share of rows worse, given the hypothesis
    variance = rows * (2 * q - delta * (1 + delta))
    return (better - worse + rows * delta) / math.sqrt(variance) if variance > 0 else math.inf


def row_losses(logits: Tensor, y: Tensor, measure: str = "accuracy") -> list[float]:
    """Each row's loss by a measure, from logits (rows, classes) and labels (rows,), in float64.

    Accuracy counts 1 for a wrong row, nll is in nats, brier the sum of squared errors over the classes; mse takes
    predicted values (rows,) and counts the squared error.

    >>> row_losses(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    [0.0, 1.0]
    """
    if measure == "mse":
        losses = (logits.double() - y.double()).square()
    elif measure == "accuracy":
        losses = (logits.argmax(-1) != y).double()
    elif measure == "nll":
        losses = F.cross_entropy(logits.double(), y, reduction="none")
    else:
        errors = F.softmax(logits.double(), -1) - F.one_hot(y, logits.shape[-1])
        losses = errors.square().sum(-1)
    return [float(loss) for loss in losses]


def champion(
    losses: Sequence[Sequence[float]], accepted: Sequence[int], baseline: Sequence[float] | None = None
) -> int:
    """The accepted generation with the smallest loss over the audit rows; of equals the earliest.

    -1 where ``baseline``, the losses of the model before training, has a smaller loss still.

    >>> champion([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [0, 1, 2]), champion([[0.0, 1.0]], [0], [0.0, 0.5])
    (1, -1)
    """
    best = min(accepted, key=lambda g: (math.fsum(losses[g]), g))
    return -1 if baseline is not None and math.fsum(losses[best]) > math.fsum(baseline) else best


def exhausted(losses: Sequence[Sequence[float]], patience: int | None) -> bool:
    """Have the last ``patience`` generations failed to lower the smallest audited loss?

    >>> exhausted([[0.0], [0.0], [0.0]], 2), exhausted([[1.0], [0.0], [0.0]], 2)
    (True, False)
    """
    if patience is None or len(losses) <= patience:
        return False
    sums = [math.fsum(row) for row in losses]
    return min(sums[-patience:]) >= min(sums[:-patience])


def measure_for(task: str, request: str | None) -> str:
    """The measure of an audit: the requested one, else accuracy for classes and mse for values.

    Raises:
        DataError: the measure is none of this task.

    >>> measure_for("regress", None)
    'mse'
    """
    if task == "features":  # nothing will be audited
        return MEASURES["classify"][0]
    if request is not None and request not in MEASURES[task]:
        subject = {"regress": "values are", "classify": "classes are", "generate": "answers are"}[task]
        raise DataError(
            f"{subject} audited by {' or '.join(MEASURES[task])}, not by {request}; leave --audit-measure out"
        )
    return request or MEASURES[task][0]


def whole_classes(y: Tensor, classes: Sequence[str], name: str) -> None:
    """Refuse an audit split that lacks a class: a model that fails on it would be accepted.

    Raises:
        DataError: labels ``y`` (rows,) of the split lack a class.

    >>> whole_classes(torch.tensor([0, 1, 1]), ("cat", "dog"), "pets")
    """
    counts = torch.bincount(y[y >= 0], minlength=len(classes))
    missing = [classes[int(c)] for c in torch.nonzero(counts == 0)]
    if missing:
        raise DataError(
            f"{name}: the audit split of {len(y)} rows has none of class {', '.join(missing[:5])}; give more --labels, "
            "audit by --audit-folds 5, or by --audit off do without"
        )
