"""One generation after another on one table: what a teacher says, and how a learner learns from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.naive_bayes import GaussianNB, _BaseDiscreteNB

from ..errors import DataError
from .bounded import bound
from .labelling import Labelling
from .resume import Ledger, Page
from .tables import Floats, Ints, Table, blockwise, count, stack, take
from .weights import seeded, weight_name, weighted

NOBODY = np.arange(0)


BLANK = Page(Ledger(), "")  # keeps nothing and tells nobody


@dataclass(frozen=True)
class Values:
    """Targets are real numbers (rows,); errors are squared."""

    def known(self, y: NDArray[Any]) -> Floats:
        """What the labels say."""
        return np.asarray(y, dtype=np.float64)

    def says(self, model: Any, X: Any) -> Floats:
        """What a model says of rows."""
        return np.asarray(blockwise(model.predict, X), dtype=np.float64)

    def learn(self, learner: Any, X: Any, targets: Floats, weights: Floats | None) -> Any:
        """A fresh learner, fitted."""
        return seeded(learner, None).fit(X, targets, **weighted(learner, weights))

    def losses(self, said: Floats, y: NDArray[Any]) -> Floats:
        """The loss of each row."""
        return np.asarray((said - y) ** 2)


@dataclass(frozen=True, eq=False)
class Classes:
    """Targets are distributions over ``labels``, (rows, classes); y holds their places. Errors are wrong classes."""

    labels: NDArray[Any]

    def known(self, y: NDArray[Any]) -> Floats:
        """One-hot."""
        return np.asarray(np.eye(len(self.labels))[y])

    def says(self, model: Any, X: Any) -> Floats:
        """Probabilities, zero for classes the model has not seen."""
        found = np.zeros((X.shape[0], len(self.labels)))
        found[:, np.searchsorted(self.labels, model.classes_)] = blockwise(model.predict_proba, X)
        return found

    def learn(self, learner: Any, X: Any, targets: Floats, weights: Floats | None) -> Any:
        """A fresh learner, fitted to soft targets."""
        return fit_soft(seeded(learner, None), X, targets, self.labels, weights)

    def losses(self, said: Floats, y: NDArray[Any]) -> Floats:
        """1 for a wrong class, else 0."""
        return np.asarray(said.argmax(axis=1) != y, dtype=np.float64)


Kind = Values | Classes


def fit_soft(learner: Any, X: Any, targets: Floats, labels: NDArray[Any], weights: Floats | None = None) -> Any:
    """Fit a classifier to distributions over classes, exactly: its loss is that of the expected label.

    A learner with ``takes_probabilities = True`` gets them as they are, ``fit(X, P, sample_weight, classes)``. Naive
    Bayes adds up class by class over the same rows. Any other learner with ``sample_weight`` gets each row once for
    every class of probability above 0.

    Args:
        learner: unfitted; it is fitted in place.
        X: rows.
        targets: (rows, classes), rows sum to 1.
        labels: what the columns stand for, sorted.
        weights: of the rows.

    Raises:
        DataError: the learner cannot learn soft targets.

    >>> X, P = np.array([[0.0], [1.0]]), np.array([[0.75, 0.25], [0.25, 0.75]])
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> fit_soft(DecisionTreeClassifier(), X, P, np.array([0, 1])).predict_proba(X).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    if getattr(learner, "takes_probabilities", False):
        return learner.fit(X, targets, sample_weight=weights, classes=labels)
    rows, columns = np.nonzero(targets)
    shares = targets[rows, columns]
    hard = len(rows) == len(targets) and bool((shares == 1.0).all())
    if hard:
        return learner.fit(X, labels[columns], **weighted(learner, weights))
    if weight_name(learner) is None:
        raise DataError(
            f"{type(learner).__name__} takes no sample_weight, so it cannot learn soft targets; possible are a learner "
            "that does, or SelfTrainedClassifier with hard labels"
        )
    if isinstance(learner, (GaussianNB, _BaseDiscreteNB)):
        for place, label in enumerate(labels):
            share = targets[:, place] if weights is None else targets[:, place] * weights
            learner.partial_fit(X, np.full(len(targets), label), classes=labels, sample_weight=share)
        return learner
    most = bound(learner)
    if most is not None and len(rows) > most:
        there, shares = thinned(shares, max(most, len(targets)))
        rows, columns = rows[there], columns[there]
    shares = shares if weights is None else shares * weights[rows]
    return learner.fit(take(X, rows), labels[columns], **weighted(learner, shares))


def thinned(shares: Floats, number: int) -> tuple[Ints, Floats]:
    """So many of the shares, by place, with weights that add up to what all of them do.

    Equation::

        share s stays in min(1, s / t) of all cases and weighs max(s, t);  t such that sum_i min(1, s_i / t) = number

    Source: threshold sampling; Duffield, Lund and Thorup, Learn More, Sample Less, IEEE Transactions on Information
    Theory 51, 2005.

    >>> places, weights = thinned(np.array([0.9, 0.1, 0.1]), 2)
    >>> places[0], round(float(weights[0]), 2)
    (np.int64(0), 0.9)
    """
    low, high = 0.0, float(shares.max()) * len(shares)
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if np.minimum(1.0, shares / t).sum() > number else (low, t)
    passed = np.floor(np.cumsum(np.minimum(1.0, shares / high)) + 0.5)  # systematic: sums stay to one share of t
    there = np.flatnonzero(np.diff(passed, prepend=0.0))
    return there, np.maximum(shares[there], high)


def able(estimator: Any, soft: bool) -> None:
    """A learner that can teach, and be taught by soft targets where they are ``soft``.

    Raises:
        ValueError: it cannot, with what is possible instead.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "predict_proba"):
        raise ValueError(f"{name} has no predict_proba to teach with; wrap it in CalibratedClassifierCV")
    if soft and weight_name(estimator) is None and not getattr(estimator, "takes_probabilities", False):
        raise ValueError(
            f"{name} takes no sample_weight, so it cannot learn soft targets; take a learner that does, or "
            "SelfTrainedClassifier with hard labels"
        )


def first(
    kind: Kind, learners: Sequence[Any], table: Table, seeds: Sequence[int | None], page: Page = BLANK
) -> list[Any]:
    """Generation 0: every member learns from the labels; those with a seed from a bootstrap sample of them."""
    made = []
    for number, (learner, seed) in enumerate(zip(learners, seeds, strict=False)):  # of the last one the learner alone
        own = (table if seed is None else table.at(_bootstrap(table, seed))).among(NOBODY).few(bound(learner))
        known = kind.known(own.y)
        learn = partial(_learnt, kind, learner, own, known, own.weights)
        made.append(page.train(number, learner, [own.mark, getattr(kind, "labels", None), known, own.weights], learn))
    return made


def _learnt(kind: Kind, learner: Any, table: Table, targets: Floats, weights: Floats | None) -> Any:
    """A fresh learner, fitted to targets of the labelled rows and, where there are more, of the others too."""
    X = table.rows
    if len(targets) > count(X):
        X = stack([X, table.unlabelled])
        if weights is not None and not weights.all():  # a weight of 0 is a row that is not there
            there = np.flatnonzero(weights)
            X, targets, weights = take(X, there), targets[there], weights[there]
        if weights is not None and (weights == 1.0).all():
            weights = None  # then the learner need not take weights
    return kind.learn(learner, X, targets, weights)


def _bootstrap(table: Table, seed: int) -> NDArray[Any]:
    """As many rows with replacement, every class at least once where y are classes."""
    random, rows = np.random.RandomState(seed), len(table.y)
    drawn = random.randint(rows, size=rows)
    if table.y.dtype.kind == "i":
        drawn = np.concatenate([np.unique(table.y, return_index=True)[1], drawn])[:rows]
    return np.asarray(drawn)


def later(
    kind: Kind,
    learners: Sequence[Any],
    table: Table,
    models: Sequence[Any],
    xi: float,
    labelling: Labelling,
    page: Page = BLANK,
) -> list[Any]:
    """The next generation: each member is taught by the mean of the others, or of all."""
    bounds = [bound(learner) for learner in learners]
    table = table.few(None if None in bounds else max(b for b in bounds if b is not None))
    shown = _said(kind, models, table.rows) if xi else []
    pseudo = _said(kind, models, table.unlabelled) if table.unknown() else []
    made = []
    for number, (learner, most) in enumerate(zip(learners, bounds, strict=True)):
        known, unknown = table.split(most)
        own = table if known == len(table.y) else table.at(np.arange(known))
        own = own if unknown == table.unknown() else own.among(np.arange(unknown))
        targets, weights = kind.known(own.y), own.weights
        if xi:
            targets = xi * labelling.teacher(shown, number)[:known] + (1.0 - xi) * targets
        if unknown:
            said, trust = labelling.of(labelling.teacher(pseudo, number)[:unknown])
            if trust is not None or weights is not None:
                weights = np.ones(len(targets)) if weights is None else weights
                weights = np.concatenate([weights, np.ones(len(said)) if trust is None else trust])
            targets = np.concatenate([targets, said])
        learn = partial(_learnt, kind, learner, own, targets, weights)
        made.append(page.train(number, learner, [own.mark, getattr(kind, "labels", None), targets, weights], learn))
    return made


def _said(kind: Kind, models: Sequence[Any], X: Any) -> list[Floats]:
    return [kind.says(model, X) for model in models]
