"""Stacks: learners of different kinds, weighted by how well they predict rows that they were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.base import BaseEstimator, clone

from ..data.copies import Floats, Ints
from .generations import ClassTargets, CrossFitting, Targets, train_first
from .resume import FitProgress, TrainingCache
from .tables import TrainingTable
from .wrappers import RowLimit, innermost

PRIOR_ROWS = 30.0  # the weights are equal before the labels speak, as if that many rows had shown no difference
MARGIN = 0.05  # of the range of the labels, by which a predicted value may leave it
GROSS = 3.0  # root mean squared errors beyond which two predictions of a value disagree grossly
CONFIDENT = 0.9  # the probability of a class with which a learner contradicts the others grossly
FEWEST_TREES = 20  # of a forest without one fold
SIZEABLE = 0.05  # the share of unlabelled rows that the folds should have shown


def stack_weights(predictions: Floats, targets: Floats, prior_rows: float = PRIOR_ROWS) -> Floats:
    """Non-negative weights of learners that sum to 1, by their predictions for rows that they were not trained on.

    Equation::

        w = argmin |sum_j w_j p_j - y|^2 + r s^2 |w - 1 / J|^2,  w >= 0,  sum w = 1;  s: the spread of all p

    Args:
        predictions: (learners, rows) or (learners, rows, classes).
        targets: (rows,) or (rows, classes).
        prior_rows: r; with as many rows the labels weigh as much as the prior of equal weights.

    Returns:
        The weights (learners,).

    Source: Breiman, Stacked Regressions, Machine Learning 24, 1996; the prior keeps few rows from choosing one learner.

    >>> y = np.array([0.0, 1.0, 2.0, 3.0])
    >>> stack_weights(np.stack([y, np.zeros(4)]), y, prior_rows=0.0).round(6).tolist()
    [1.0, 0.0]
    >>> stack_weights(np.stack([y, y]), y).round(6).tolist()
    [0.5, 0.5]
    """
    number = len(predictions)
    A, b = predictions.reshape(number, -1).T, targets.ravel()
    spread = np.sqrt(prior_rows) * float(A.std())
    total = 1e4 * max(1.0, float(np.abs(A).max())) * np.sqrt(len(b))  # so large that the sum is 1
    rows = np.vstack([A, spread * np.eye(number), np.full((1, number), total)])
    weights, _ = nnls(rows, np.concatenate([b, np.full(number, spread / number), [total]]))
    return np.asarray(weights / weights.sum()) if weights.sum() > 0 else np.full(number, 1.0 / number)


@dataclass(eq=False, repr=False)
class Stack(BaseEstimator):  # type: ignore[misc]
    """The weighted mean of fitted learners; each one's values are bounded first.

    Args:
        members: fitted learners.
        weights: of each, summing to 1.
        bounds: the least and the largest value that a member may predict; None for classes.
        classes: of a classifier, sorted; None for values.

    >>> from sklearn.linear_model import LinearRegression
    >>> line = LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])
    >>> Stack([line], [1.0], bounds=(0.0, 2.0)).predict(np.array([[0.5], [9.0]])).tolist()
    [0.5, 2.0]
    """

    members: list[Any]
    weights: list[float]
    bounds: tuple[float, float] | None = None
    classes: Any = field(default=None)

    @property
    def classes_(self) -> NDArray[Any]:
        """The classes, sorted, of a classifier."""
        if self.classes is None:
            raise AttributeError("a stack of values has no classes")
        return np.asarray(self.classes)

    def predict(self, X: Any) -> NDArray[Any]:
        """The mean of the values (rows,), or the most probable class of each row (rows,)."""
        if self.classes is not None:
            return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])
        values = [bounded(np.asarray(member.predict(X)), self.bounds) for member in self.members]
        return np.asarray(np.tensordot(self.weights, np.stack(values), 1))

    def predict_proba(self, X: Any) -> Floats:
        """The mean of the probabilities (rows, classes); 0 for a class that a member has not been trained on."""
        targets = ClassTargets(self.classes_)
        return np.asarray(
            np.tensordot(self.weights, np.stack([targets.predict(member, X) for member in self.members]), 1)
        )


def bounded(values: Floats, bounds: tuple[float, float] | None) -> Floats:
    """Values within bounds, as they are where there are none."""
    return values if bounds is None else np.clip(values, *bounds)


@dataclass
class LearnerPool:
    """Learners fitted on all labelled rows, and what each predicts for rows that it was not trained on.

    ``predictions`` (learners, rows held out[, classes]) are out of fold, or out of bag where a forest's own trees allow
    it, which costs one training in place of six. ``fold_models`` holds the models of every fold, by learner; None where
    they were out of bag. ``answers_held_out`` are the predictions before they were bounded.
    """

    targets: Targets
    bounds: tuple[float, float] | None
    names: list[str]
    models: list[Any]
    predictions: Floats
    fold_models: list[list[Any] | None]
    answers_held_out: Floats
    refused: dict[str, str] = field(default_factory=dict)
    _unlabelled: Floats | None = None

    @classmethod
    def fit(
        cls,
        targets: Targets,
        learners: dict[str, Any],
        table: TrainingTable,
        folds: CrossFitting,
        progress: FitProgress,
        out_of_bag: bool,
    ) -> LearnerPool:
        """Train every learner on all labelled rows, and on all but each fold."""
        models, parts, fold_models = list[Any](), list[Floats](), list[list[Any] | None]()
        bounds = None if targets.labels is not None else value_bounds(table.y)
        names = list[str]()
        for name, learner in learners.items():
            bagged = out_of_bag and set_out_of_bag(learner)
            if names and not progress.affords(1 if bagged else 1 + len(folds), f"{name}, a learner of the stack"):
                continue
            cache = TrainingCache(progress, f"{name} on all rows")
            models += train_first(targets, [learner], table, [None], cache)
            held = _out_of_bag(models[-1], folds, targets) if bagged else None
            own = None
            if held is None:
                smaller = fold_learner(learner, len(folds))
                own = [members[0] for members in folds.train_first([smaller], [None], name)]
                held = folds.predict([[model] for model in own])
            names.append(name)
            parts.append(held)
            fold_models.append(own)
        answers = np.stack(parts)
        return cls(targets, bounds, names, models, bounded(answers, bounds), fold_models, answers)

    @classmethod
    def trainings(cls, learners: dict[str, Any], folds: int, out_of_bag: bool) -> int:
        """How many trainings `fit` takes."""
        return sum(1 if out_of_bag and can_be_out_of_bag(learner) else 1 + folds for learner in learners.values())

    def answers(self, X: Any, models: Sequence[Any] | None = None) -> Floats:
        """What all learners, or other ``models`` of them, predict for rows, unbounded: (learners, rows[, classes])."""
        return np.stack([self.targets.predict(model, X) for model in (self.models if models is None else models)])

    def ask(self, table: TrainingTable) -> Floats:
        """What all learners predict for all unlabelled rows, synthetic ones last; they are asked once."""
        if self._unlabelled is None:
            self._unlabelled = self.answers(table.unlabelled)
        return self._unlabelled

    def weights(self, y: Floats, rows: NDArray[Any] | None = None) -> Floats:
        """The weights of the learners (learners,), by all rows held out or by some; 0 for those that are refused."""
        rows = np.arange(len(y)) if rows is None else rows
        trusted = np.array([name not in self.refused for name in self.names])
        weights = np.zeros(len(self.names))
        weights[trusted] = stack_weights(self.predictions[trusted][:, rows], y[rows])
        return weights

    def held_out(self, y: Floats, fold: Ints) -> Floats:
        """The stack's predictions for rows held out; the weights of a row are fitted without its ``fold`` (rows,)."""
        stacked = np.empty(self.predictions.shape[1:])
        for number in np.unique(fold):
            own = fold == number
            weights = self.weights(y, np.flatnonzero(~own) if not own.all() else None)
            stacked[own] = np.tensordot(weights, self.predictions[:, own], 1)
        return stacked

    def stack(self, weights: Floats) -> Stack:
        """The learners of positive weight as one model."""
        kept = np.flatnonzero(weights)
        return Stack(
            [self.models[i] for i in kept],
            [float(weights[i]) for i in kept],
            self.bounds,
            self.targets.labels,
        )

    def guard(self, y: Floats, table: TrainingTable) -> None:
        """Refuse learners that contradict the others on unlabelled rows as they never did on rows held out.

        A category with a single labelled row can teach a learner that a tenth of all rows are extreme. No fold shows
        it: the row is in the one that is held out.
        """
        if not self._given(table):
            return
        answers, error = self.ask(table)[:, : self._given(table)], self._error(y)
        shown, share = (self._contradictions(some, _middle(some), error) for some in (self.answers_held_out, answers))
        for i, name in enumerate(self.names):
            if share[i] > SIZEABLE + 2.0 * shown[i] and len(self.refused) < len(self.names) - 1:
                self.refused[name] = (
                    f"contradicts the others grossly on {100 * share[i]:.0f} % of the unlabelled rows, and on "
                    f"{100 * shown[i]:.0f} % of the labelled rows held out"
                )

    def contradiction(self, y: Floats, table: TrainingTable) -> str:
        """How the stack contradicts the first learner on unlabelled rows, and not on rows held out; mostly empty."""
        if not self._given(table):
            return ""
        weights, error = self.weights(y), self._error(y)
        asked = bounded(self.ask(table)[:, : self._given(table)], self.bounds)
        shown, share = (
            float(self._contradictions(np.tensordot(weights, some, 1)[None], some[0], error)[0])
            for some in (self.predictions, asked)
        )
        if share <= SIZEABLE + 2.0 * shown:
            return ""
        return (
            f"the stack contradicts {self.names[0]} grossly on {100 * share:.0f} % of the unlabelled rows, and on "
            f"{100 * shown:.0f} % of the labelled rows held out"
        )

    @staticmethod
    def _given(table: TrainingTable) -> int:
        """The number of unlabelled rows that are not synthetic."""
        return table.n_unlabelled - table.synthetic

    def _error(self, y: Floats) -> float:
        """The root mean squared error of the stack on rows held out."""
        return float(np.sqrt(((np.tensordot(self.weights(y), self.predictions, 1) - y) ** 2).mean()))

    def _contradictions(self, answers: Floats, middle: Floats, error: float) -> Floats:
        """The share of rows on which each of the answers is far from ``middle`` (rows[, classes]): (learners,)."""
        if self.targets.labels is None:
            return np.asarray((np.abs(answers - middle) > GROSS * error).mean(axis=1))
        return np.asarray(((answers > CONFIDENT) & (middle < 1.0 - CONFIDENT)).any(axis=2).mean(axis=1))


def _middle(answers: Floats) -> Floats:
    """The median of the learners' answers; of two the second, as their median is as far from either."""
    return np.asarray(answers[-1] if len(answers) == 2 else np.median(answers, axis=0))


def value_bounds(y: NDArray[Any]) -> tuple[float, float]:
    """The range of the labels, and a little more: learners that are lines know no end.

    >>> value_bounds(np.array([0.0, 2.0]))
    (-0.1, 2.1)
    """
    margin = MARGIN * float(y.max() - y.min())
    return float(y.min()) - margin, float(y.max()) + margin


# out of bag -----------------------------------------------------------------------------------------------------------


def can_be_out_of_bag(learner: Any) -> bool:
    """Whether its trees can predict the rows that they were not trained on: a forest of scikit-learn."""
    return "oob_score" in innermost(learner).get_params()


def fold_learner(learner: Any, folds: int) -> Any:
    """The learner that is fitted on all but each fold: a forest is divided among the folds, and others are as they are.

    >>> from sklearn.ensemble import RandomForestClassifier
    >>> fold_learner(RandomForestClassifier(100), 5).n_estimators
    20
    """
    if folds < 2 or not can_be_out_of_bag(learner):
        return learner
    smaller = clone(learner)
    innermost(smaller).set_params(n_estimators=max(FEWEST_TREES, innermost(smaller).n_estimators // folds))
    return smaller


def set_out_of_bag(learner: Any) -> bool:
    """Have a forest keep its predictions out of bag; False where the learner is none."""
    if not can_be_out_of_bag(learner):
        return False
    innermost(learner).set_params(bootstrap=True, oob_score=True)
    return True


def _out_of_bag(model: Any, folds: CrossFitting, targets: Targets) -> Floats | None:
    """A fitted forest's predictions for the rows held out; None where it was trained on other rows than the table's."""
    forest = _fitted_forest(model)
    found = forest.__dict__.pop("oob_decision_function_", None)
    found = forest.__dict__.pop("oob_prediction_", found)  # neither belongs into the file of the model
    if found is None or len(found) != len(folds.table.y):
        return None
    held = np.asarray(found, dtype=np.float64)[folds.held_out]
    if np.isnan(held).any():  # a row that is in every tree's bag
        return None
    if targets.labels is None:
        return held
    probabilities = np.zeros((len(held), len(targets.labels)))
    probabilities[:, np.searchsorted(targets.labels, forest.classes_)] = held
    return probabilities


def _fitted_forest(model: Any) -> Any:
    while isinstance(model, RowLimit):
        model = model.estimator_
    return model[-1] if hasattr(model, "steps") else model


def distinct_rows(table: TrainingTable, distinct: Ints) -> bool:
    """Whether no row is a copy of another or belongs to a group or a time: then out of bag is out of fold."""
    return table.groups is None and table.time is None and len(np.unique(distinct)) == len(distinct)
