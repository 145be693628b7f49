"""Generations of models on one table: how a teacher's predictions train the next one, on all rows or by folds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.naive_bayes import GaussianNB, _BaseDiscreteNB
from sklearn.utils.parallel import Parallel, delayed

from ..data.copies import Floats, Ints
from ..errors import DataError
from .pseudo_labels import PseudoLabels
from .resume import NO_CACHE, FitProgress, TrainingCache
from .tables import RowWeights, TrainingTable, as_rows, name_columns, predict_in_blocks, stack, take, teaching_rows
from .wrappers import row_limit, seeded_clone, weight_arguments, weight_parameter

# targets --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealTargets:
    """Targets are real numbers (rows,); the loss is the squared error."""

    labels: None = None

    def encode(self, y: NDArray[Any]) -> Floats:
        """The labels as targets."""
        return np.asarray(y, dtype=np.float64)

    def predict(self, model: Any, X: Any) -> Floats:
        """A model's predictions (rows,)."""
        return np.asarray(predict_in_blocks(model.predict, X), dtype=np.float64)

    def fit(self, learner: Any, X: Any, targets: Floats, weights: Floats | None) -> Any:
        """A clone of the learner, fitted."""
        with name_columns(X):
            return seeded_clone(learner, None).fit(X, targets, **weight_arguments(learner, weights))

    def losses(self, prediction: Floats, y: NDArray[Any]) -> Floats:
        """The squared error of each row."""
        return np.asarray((prediction - y) ** 2)


@dataclass(frozen=True, eq=False)
class ClassTargets:
    """Targets are probabilities (rows, classes) of ``labels``; y holds class indices. The loss is the wrong class."""

    labels: NDArray[Any]

    def encode(self, y: NDArray[Any]) -> Floats:
        """The labels, one-hot."""
        return np.asarray(np.eye(len(self.labels))[y])

    def predict(self, model: Any, X: Any) -> Floats:
        """A model's probabilities (rows, classes), 0 for classes that it has not been trained on."""
        probabilities = np.zeros((X.shape[0], len(self.labels)))
        probabilities[:, np.searchsorted(self.labels, model.classes_)] = predict_in_blocks(model.predict_proba, X)
        return probabilities

    def fit(self, learner: Any, X: Any, targets: Floats, weights: Floats | None) -> Any:
        """A clone of the learner, fitted to soft targets."""
        with name_columns(X):
            return fit_soft(seeded_clone(learner, None), X, targets, self.labels, weights)

    def losses(self, prediction: Floats, y: NDArray[Any]) -> Floats:
        """1 for a wrong class, else 0."""
        return np.asarray(prediction.argmax(axis=1) != y, dtype=np.float64)


Targets = RealTargets | ClassTargets


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
    if takes_probabilities(learner):
        return learner.fit(X, targets, sample_weight=weights, classes=labels)
    rows, columns = np.nonzero(targets)
    shares = targets[rows, columns]
    hard = len(rows) == len(targets) and bool((shares == 1.0).all())
    if hard:
        return learner.fit(X, labels[columns], **weight_arguments(learner, weights))
    check_teachable(learner, DataError)
    if isinstance(learner, (GaussianNB, _BaseDiscreteNB)):
        for column, label in enumerate(labels):
            share = targets[:, column] if weights is None else targets[:, column] * weights
            learner.partial_fit(X, np.full(len(targets), label), classes=labels, sample_weight=share)
        return learner
    most = row_limit(learner)
    if most is not None and len(rows) > most:
        sample, shares = threshold_sample(shares, max(most, len(targets)))
        rows, columns = rows[sample], columns[sample]
    shares = shares if weights is None else shares * weights[rows]
    return learner.fit(take(X, rows), labels[columns], **weight_arguments(learner, shares))


def threshold_sample(shares: Floats, number: int) -> tuple[Ints, Floats]:
    """Indices of about ``number`` of the shares, and weights whose sum is close to that of all shares.

    Equation::

        share s is drawn with probability min(1, s / t) and weighs max(s, t);  t: sum_i min(1, s_i / t) = number

    Source: threshold sampling; Duffield, Lund and Thorup, Learn More, Sample Less, IEEE Transactions on Information
    Theory 51, 2005.

    >>> index, weights = threshold_sample(np.array([0.9, 0.1, 0.1]), 2)
    >>> index[0], round(float(weights[0]), 2)
    (np.int64(0), 0.9)
    """
    low, high = 0.0, float(shares.max()) * len(shares)
    for _ in range(60):
        t = (low + high) / 2
        low, high = (t, high) if np.minimum(1.0, shares / t).sum() > number else (low, t)
    passed = np.floor(np.cumsum(np.minimum(1.0, shares / high)) + 0.5)  # systematic: sums stay to one share of t
    index = np.flatnonzero(np.diff(passed, prepend=0.0))
    return index, np.maximum(shares[index], high)


def takes_probabilities(learner: Any) -> bool:
    """Whether its ``fit`` takes probabilities (rows, classes) as targets."""
    return bool(getattr(learner, "takes_probabilities", False))  # an attribute that others' estimators may declare


def check_teachable(learner: Any, error: type[Exception] = ValueError) -> None:
    """Refuse a classifier that cannot be trained by soft targets.

    Raises:
        error: it takes neither weights of rows nor probabilities.
    """
    if weight_parameter(learner) is None and not takes_probabilities(learner):
        raise error(
            f"{type(learner).__name__} takes no sample_weight, so it cannot learn soft targets; take a learner that "
            "does, or SelfTrainedClassifier with hard labels"
        )


# generations ----------------------------------------------------------------------------------------------------------


def train_first(
    targets: Targets,
    learners: Sequence[Any],
    table: TrainingTable,
    seeds: Sequence[int | None],
    cache: TrainingCache = NO_CACHE,
) -> list[Any]:
    """Generation 0: every member is trained on the labels; those with a seed on a bootstrap sample of them."""
    models = []
    for member, (learner, seed) in enumerate(zip(learners, seeds, strict=False)):  # the last one has no peers
        own = table if seed is None else table.with_labelled(_bootstrap(table, seed))
        own = own.with_unlabelled(np.arange(0)).limited(row_limit(learner))
        models.append(train(targets, member, learner, own, targets.encode(own.y), own.weights, cache))
    return models


def train_next(
    targets: Targets,
    learners: Sequence[Any],
    table: TrainingTable,
    models: Sequence[Any],
    xi: float,
    pseudo_labels: PseudoLabels,
    cache: TrainingCache = NO_CACHE,
) -> list[Any]:
    """The next generation: each member is taught by the mean of the other ``models``, or of all of them."""
    limits = [row_limit(learner) for learner in learners]
    table = table.limited(None if None in limits else max(limit for limit in limits if limit is not None))
    on_labelled = [targets.predict(model, table.labelled) for model in models] if xi else []
    on_unlabelled = [targets.predict(model, table.unlabelled) for model in models] if table.n_unlabelled else []
    students = []
    for member, (learner, limit) in enumerate(zip(learners, limits, strict=True)):
        labelled, unlabelled = table.limited_counts(limit)
        own = table if labelled == len(table.y) else table.with_labelled(np.arange(labelled))
        own = own if unlabelled == table.n_unlabelled else own.with_unlabelled(np.arange(unlabelled))
        target, weights = targets.encode(own.y), own.weights
        if xi:
            target = xi * pseudo_labels.teacher(on_labelled, member)[:labelled] + (1.0 - xi) * target
        if unlabelled:
            pseudo, trust = pseudo_labels.targets(pseudo_labels.teacher(on_unlabelled, member)[:unlabelled])
            if trust is not None or weights is not None:
                weights = np.ones(len(target)) if weights is None else weights
                weights = np.concatenate([weights, np.ones(len(pseudo)) if trust is None else trust])
            target = np.concatenate([target, pseudo])
        students.append(train(targets, member, learner, own, target, weights, cache))
    return students


def train(
    targets: Targets,
    member: int,
    learner: Any,
    table: TrainingTable,
    target: Floats,
    weights: Floats | None,
    cache: TrainingCache,
) -> Any:
    """A clone of the learner, fitted to targets of the labelled rows and, where there are more, of the unlabelled ones.

    A training that ended before is read from the cache.
    """
    fit = partial(_fit, targets, learner, table, target, weights)
    return cache.train(member, learner, [table.mark, targets.labels, target, weights], fit)


def _fit(targets: Targets, learner: Any, table: TrainingTable, target: Floats, weights: Floats | None) -> Any:
    """A clone of the learner, fitted to the labelled rows and, where there are more targets, to the unlabelled too."""
    X = table.labelled if row_limit(learner) is None else table.selection
    if len(target) > X.shape[0]:
        X = stack([as_rows(X), table.unlabelled])
        if weights is not None and not weights.all():  # rows of weight 0 are left out
            rows = np.flatnonzero(weights)
            X, target, weights = take(X, rows), target[rows], weights[rows]
        if weights is not None and (weights == 1.0).all():
            weights = None  # so the learner need not take weights
    return targets.fit(learner, X, target, weights)


def _bootstrap(table: TrainingTable, seed: int) -> NDArray[Any]:
    """Indices of as many rows with replacement, every class at least once where y are classes."""
    rows = len(table.y)
    index = np.random.RandomState(seed).randint(rows, size=rows)
    if table.y.dtype.kind == "i":
        index = np.concatenate([np.unique(table.y, return_index=True)[1], index])[:rows]
    return np.asarray(index)


class CrossFitting:
    """The same generations without each fold of the labelled rows in turn; rows of fold -1 are in none."""

    def __init__(
        self,
        targets: Targets,
        table: TrainingTable,
        fold: Ints,
        distinct: Ints,
        progress: FitProgress,
        n_jobs: int | None,
    ) -> None:
        self.targets, self.table, self.progress, self.n_jobs = targets, table, progress, n_jobs
        self.tables = [table.with_labelled(rows) for rows in teaching_rows(fold)]
        self.held_out = np.flatnonzero(fold >= 0)  # the rows of all folds, in the order of the table
        self.in_fold = [np.flatnonzero(fold[self.held_out] == k) for k in range(len(self.tables))]
        self.y = table.y[self.held_out]
        weights = None if table.weights is None else table.weights[self.held_out]
        self.rows = RowWeights(weights, np.unique(distinct[self.held_out], return_inverse=True)[1].astype(np.int64))

    def __len__(self) -> int:
        return len(self.tables)

    def train_first(
        self, learners: list[Any], seeds: list[int | None], description: str = "generation 0"
    ) -> list[list[Any]]:
        """The members of generation 0, for each fold."""
        return self._train(description, train_first, learners, [seeds] * len(self))

    def train_next(
        self, description: str, learners: list[Any], models: list[list[Any]], xi: float, pseudo_labels: PseudoLabels
    ) -> list[list[Any]]:
        """The members of a later generation, for each fold; ``models`` are those of the one before."""
        return self._train(description, train_next, learners, models, xi, pseudo_labels)

    def _train(
        self, description: str, work: Callable[..., Any], learners: list[Any], by_fold: Sequence[Any], *more: Any
    ) -> list[list[Any]]:
        number = len(self)
        calls = []
        for k, (table, own) in enumerate(zip(self.tables, by_fold, strict=True), 1):
            part = f", fold {k} of {number}" if number > 1 else " without the rows held out"
            cache = TrainingCache(self.progress, description + part)
            calls.append(delayed(cache.run)(work, self.targets, learners, table, own, *more))
        members = []
        for models, unreported in Parallel(n_jobs=self.n_jobs, return_as="generator")(calls):
            for training in unreported:
                self.progress.report(training)
            members.append(models)
        return members

    def predict(self, members: list[list[Any]]) -> Floats:
        """The predictions of each fold's first member for the rows that it was not trained on, as in ``held_out``."""
        parts = [
            self.targets.predict(models[0], take(self.table.labelled, self.held_out[index]))
            for models, index in zip(members, self.in_fold, strict=True)
        ]
        prediction = np.empty((len(self.y), *parts[0].shape[1:]))
        for part, index in zip(parts, self.in_fold, strict=True):
            prediction[index] = part
        return prediction
