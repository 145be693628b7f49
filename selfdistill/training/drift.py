"""Model collapse over generations: measured after each one, with real labels and without the test split.

Where generations learn from pseudo-labels, errors can add up unseen. Three things are measured against generation 0:

* *moved*: the share of unlabelled rows that the generation answers otherwise. How it grows is compared with the linear
  model of Gerstgrasser et al. (arXiv 2404.01413, 2024): where each generation replaces the data of the one before, the
  error after n of them is n times the first one's (`replaced`); where data accumulate, it stays below pi²/6 times it
  (`accumulated`).
* *missed*: labels of the training split that it does not give back. Where generations no longer learn from real
  labels, p is exact binomial for "one in a hundred more than generation 0" (`forgetting`). It shows long before other
  rows can, but for wrong labels too: where the audit split has the generation better (at 0.05), it raises no alarm. A
  generation that still learns from the labels may miss some for good reason, and has no such test.
* *lost* and *won*: rows of the audit split that it gets wrong, or right, alone; p is McNemar's exact one.

The alarm is raised when either p falls to its level, 0.05 spent evenly over the planned generations, so that both
together err at most one time in ten. It is a warning: whether a generation may teach is the audit's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.objective import Method
from ..core.step import Passes, members
from ..data.dataset import Data
from ..errors import DataError
from ..evaluation.predict import predict_rows
from ..evaluation.statistics import mcnemar, spend
from ..teachers import PseudoLabels
from ..teachers.self_training import InheritedPseudoLabels
from .state import RunState
from .task import Callback, Task

LEVEL = 0.05


TOLERATED = 0.01  # of the labels that teach may be missed beyond those that generation 0 missed


MOST = 2000  # rows of each kind that are looked at


@dataclass(frozen=True)
class Drift:
    """A generation against generation 0. ``growth`` is the square of ``moved`` over that of generation 1; ``follows``
    says which curve that is nearer to so far, "replace" or "accumulate" (None before generation 2). ``p_missed`` is
    None where real labels still teach."""

    generation: int
    moved: float
    looked: int  # unlabelled rows looked at
    growth: float | None
    follows: str | None
    missed: int
    missed_before: int
    labels: int
    p_missed: float | None
    lost: int
    won: int
    audited: int
    p_lost: float
    level: float
    alarm: bool


def replaced(n: int) -> float:
    """Error after n >= 1 trainings, each on the labels of the one before alone, over that of the first: n.

    Linear regression with T rows of d Gaussian features and noise sigma² each time has error n sigma² d / (T - d - 1)
    (Gerstgrasser et al., arXiv 2404.01413, 2024, after Dohmatob et al. 2024).

    >>> replaced(10)
    10.0

    Raises:
        DataError: no training.
    """
    return float(_trainings(n))


def accumulated(n: int) -> float:
    """The same where each training takes all data so far: at most the sum of 1 / i² up to n, below pi²/6.

    >>> round(accumulated(10), 3), round(accumulated(10**6), 3)
    (1.55, 1.645)

    Raises:
        DataError: no training.
    """
    return math.fsum(1.0 / (i * i) for i in range(1, _trainings(n) + 1))


def _trainings(n: int) -> int:
    if n < 1:
        raise DataError(f"the error after {n} trainings is none; count them from 1")
    return n


def expected(curve: Callable[[int], float], generation: int) -> float:
    """Squared distance of a generation (from 1 on) from generation 0, over that of generation 1, by a curve.

    What a training adds to the error is independent of what was there, so squared distances are differences of errors;
    generation k is the training k + 1.

    >>> expected(replaced, 10), round(expected(accumulated, 10), 2)
    (10.0, 2.23)
    """
    return (curve(generation + 1) - curve(1)) / (curve(2) - curve(1))


def follows(shares: Sequence[float]) -> str | None:
    """The curve that the shares moved in generations 1, 2, ... are nearer to, by squared differences of logarithms.

    A class border that shifts moves rows in proportion, so the share is a distance and its square an error.

    >>> follows([0.1, 0.14, 0.17]), follows([0.1, 0.12, 0.13])
    ('replace', 'accumulate')
    """
    if len(shares) < 2 or not all(shares):
        return None
    distances = {}
    for name, curve in (("replace", replaced), ("accumulate", accumulated)):
        logs = [2 * math.log(m / shares[0]) - math.log(expected(curve, k)) for k, m in enumerate(shares, 1)]
        distances[name] = math.fsum(x * x for x in logs)
    return min(distances, key=distances.__getitem__)


def forgetting(missed: int, before: int, labels: int) -> float:
    """Exact p-value that more labels are missed than ``before`` and one in a hundred: P(X >= missed),
    X ~ Bin(labels, before / labels + 0.01).

    >>> round(forgetting(4, 0, 60), 4)
    0.0031

    Raises:
        DataError: counts that are no counts of so many labels.
    """
    from scipy.stats import binom

    if not (0 <= missed <= labels and 0 <= before <= labels):
        raise DataError(f"{missed} and {before} missed of {labels} labels; give counts from 0 to the number of labels")
    return float(binom.sf(missed - 1, labels, min(1.0, before / labels + TOLERATED))) if labels else 1.0


def is_alarm(p_missed: float | None, lost: int, won: int, level: float) -> bool:
    """Whether there is an alarm: labels are missed and the audit split does not contradict, or audit rows are lost.

    >>> is_alarm(0.001, lost=2, won=3, level=0.01), is_alarm(0.001, lost=2, won=13, level=0.01)
    (True, False)
    """
    forgot = p_missed is not None and p_missed <= level and mcnemar(won, lost) > LEVEL
    return forgot or mcnemar(lost, won) <= level


def learns_from_predecessor(method: Method) -> bool:
    """Whether a generation of this method learns from labels of the one before."""
    teachers = (term.teacher for term in method.terms.values())
    return method.generations > 1 and any(isinstance(t, (InheritedPseudoLabels, PseudoLabels)) for t in teachers)


class DriftMonitor(Callback):
    """Measures each generation that ends, records and reports the drift, and warns at the first alarm."""

    def __init__(self, task: Task, data: Data) -> None:
        self.task, self.data = task, data

    def on_generation_end(self, state: RunState) -> None:
        generation = len(state.generations) - 1
        if generation < 1 or not learns_from_predecessor(state.method):
            return
        earlier = [result.drift for result in state.generations[1:-1]]
        first = self.task.restored_model(state, 0)
        drift = measure(state, first, self.data, [record["moved"] for record in earlier])
        state.generations[-1].drift = asdict(drift)
        state.report(describe(drift))
        if drift.alarm and not any(record["alarm"] for record in earlier) and distributed.rank() == 0:
            state.warn(alarm(drift))


def measure(state: RunState, first: nn.Module, data: Data, earlier: Sequence[float]) -> Drift:
    """Compare the generation that ended last with generation 0.

    Args:
        state: the run; ``state.model`` is that generation's.
        first: generation 0.
        data: their unlabelled, labelled and audit rows are looked at, at most `MOST` of each.
        earlier: the shares moved in generations 1, 2, ...
    """
    generation, seed = len(state.generations) - 1, state.settings.seed
    ids = {name: _subset(getattr(data, name), name, seed) for name in ("unlabelled", "labelled", "audit")}
    initial, current = (
        {name: _classes(state, model, data, rows) for name, rows in ids.items()} for model in (first, state.model)
    )
    share = float((initial["unlabelled"] != current["unlabelled"]).double().mean()) if len(ids["unlabelled"]) else 0.0
    taught, audit = data.y[ids["labelled"]], data.y[ids["audit"]]
    missed, missed_before = (int((predicted["labelled"] != taught).sum()) for predicted in (current, initial))
    correct, was_correct = current["audit"] == audit, initial["audit"] == audit
    lost, won = int((was_correct & ~correct).sum()), int((correct & ~was_correct).sum())
    p_missed = None if _learns_from_labels(state, data) else forgetting(missed, missed_before, len(taught))
    level = spend(LEVEL, generation, state.method.generations - 1)
    moves = [*earlier, share]
    return Drift(
        generation,
        share,
        len(ids["unlabelled"]),
        (share / moves[0]) ** 2 if moves[0] else None,
        follows(moves),
        missed,
        missed_before,
        len(taught),
        p_missed,
        lost,
        won,
        len(audit),
        mcnemar(lost, won),
        level,
        is_alarm(p_missed, lost, won, level),
    )


def _learns_from_labels(state: RunState, data: Data) -> bool:
    """Whether the generation at hand learns from real labels."""
    ids = state.objective.eligible_ids()
    selects = any(view.rows == "chosen" for view in state.method.views.views)
    return not selects or ids is None or bool(torch.isin(data.labelled, ids).any())


def _subset(ids: Tensor, name: str, seed: int) -> Tensor:
    """At most `MOST` of some ids, the same ones in every generation."""
    return ids if len(ids) <= MOST else ids[rng.permutation((seed, "drift", name), len(ids))[:MOST]]


def _classes(state: RunState, model: nn.Module, data: Data, ids: Tensor) -> Tensor:
    """The class (rows,) that a model gives each row."""
    if not len(ids):
        return torch.zeros(0, dtype=torch.int64)
    state.passes += Passes(evaluation=members(model) * len(ids))
    return predict_rows(model, data, ids, device=state.device).argmax(-1)


def describe(drift: Drift) -> str:
    """A generation's drift in a line."""
    line = (
        f"drift: generation {drift.generation} predicts another class than generation 0 for "
        f"{100 * drift.moved:.1f} % of {drift.looked} unlabelled rows"
    )
    if drift.follows and drift.growth is not None:
        by = [f"{expected(curve, drift.generation):.1f}" for curve in (replaced, accumulated)]
        line += f"; squared, {drift.growth:.1f} x that of generation 1 (expected: {by[0]} if pseudo-labels replace the "
        line += f"old ones, {by[1]} if they accumulate; nearer to {drift.follows})"
    return f"{line}; it gets {drift.missed} of {drift.labels} real labels wrong (generation 0: {drift.missed_before})"


def alarm(drift: Drift) -> str:
    """The warning: the fault, the evidence and the remedy."""
    if drift.p_missed is not None and drift.p_missed <= drift.level:
        evidence, p = (
            f"gets {drift.missed} of {drift.labels} real labels wrong, generation 0 {drift.missed_before}",
            drift.p_missed,
        )
    else:
        evidence, p = f"loses {drift.lost} of {drift.audited} validation rows and wins {drift.won}", drift.p_lost
    if drift.p_missed is None:
        remedy = "train fewer generations, or validate them (--audit safe)"
    else:
        remedy = "accumulate or anchor with real labels (keep='accumulate' or 'anchor'), or train fewer generations"
    return f"collapse: generation {drift.generation} {evidence} (p {p:.2g}, level {drift.level:.2g}); {remedy}"
