"""The choice of a model for a table: learners, their stack, and students that it teaches, by rows held out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from ..data.copies import Floats, Ints, row_hashes
from ..evaluation.audit import Decision
from ..training import budget
from .base import RESERVE, BaseSelfDistillation
from .base_learners import ALONE, stack_learners
from .generations import CrossFitting, RealTargets, Targets, train, train_first
from .resume import FitProgress, TrainingCache
from .self_distillation import SelfDistilledClassifier, SelfDistilledRegressor
from .stacking import LearnerPool, Stack, bounded, distinct_rows
from .students import student_of
from .tables import TrainingTable, assign_folds, resolve_folds, teaching_rows
from .wrappers import seeded_clone, weight_parameter

PRODUCTS = ("best", "single", "stack")
SYNTHETIC = 2_000  # rows that the stack labels beside the unlabelled ones
TEACHER_SHARE = 0.5  # of the target on a labelled row; the label is the rest
AUDITABLE = 300  # labelled rows below which no test could tell a student from its teacher
DOUBTFUL, DOUBTED = 0.5, 0.2  # a label is in doubt below this share of the most probable class; how many must be
CLEAR = 1.5  # standard errors by which the learner alone must be better: less is mostly luck on so few rows
REPEATED = 0.25  # the share of distinct rows below which equal rows are no copies
FEWEST_ROWS = 10  # held out, below which nothing is tried
LEAST_TRUST = 0.05  # the weight of a row whose label the stack rules out

STACK, MEAN, STUDENT, BOTH, CORRECTED = "stack", "mean", "student", "stack and student", "stack, label errors weighed"


@dataclass
class Candidate:
    """A model that may become the product, and its errors on rows held out.

    ``losses`` (distinct rows,) are squared errors of values or probabilities; None where no rows could be held out.
    """

    name: str
    about: str
    prediction: Floats | None
    losses: Floats | None
    score: float | None  # accuracy, or root mean squared error
    outcome: str = ""

    def row(self) -> dict[str, Any]:
        """The candidate as JSON has it."""
        loss = None if self.losses is None else float(self.losses.mean())
        return {"name": self.name, "about": self.about, "loss": loss, "score": self.score, "outcome": self.outcome}


@dataclass
class TableTrial:
    """Everything that is tried on one table: the learners, their stack, and its students."""

    targets: Targets
    table: TrainingTable
    folds: CrossFitting
    fold: Ints
    progress: FitProgress
    learners: dict[str, Any]
    out_of_bag: bool
    candidates: list[Candidate] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def y(self) -> Floats:
        """The targets of the rows held out: values (rows,), or one-hot labels (rows, classes)."""
        return self.targets.encode(self.folds.y)

    def add(self, name: str, about: str, prediction: Floats | None) -> Candidate:
        """A further candidate, with its errors where it has predictions for the rows held out."""
        losses = score = None
        if prediction is not None:
            squares = (prediction - self.y) ** 2
            losses = self.folds.rows.distinct_losses(squares.reshape(len(squares), -1).sum(axis=1))
            wrong = self.folds.rows.distinct_losses(self.targets.losses(prediction, self.folds.y))
            score = float(np.sqrt(wrong.mean())) if self.targets.labels is None else 1.0 - float(wrong.mean())
        self.candidates.append(Candidate(name, about, prediction, losses, score))
        return self.candidates[-1]

    def learners_alone(self) -> LearnerPool:
        """Fit the learners, refuse those that contradict the others on unlabelled rows, and judge each and the mean."""
        pool = LearnerPool.fit(self.targets, self.learners, self.table, self.folds, self.progress, self.out_of_bag)
        pool.guard(self.y, self.table)
        for name, prediction in zip(pool.names, pool.predictions, strict=True):
            candidate = self.add(name, "on the labels", prediction)
            if name in pool.refused:
                candidate.outcome = "refused"
                self.notes.append(f"{name} {pool.refused[name]}, and is refused")
        self.add(MEAN, "of all learners, each as much as the others", pool.predictions.mean(axis=0))
        return pool

    def stack(self, pool: LearnerPool, name: str = STACK, about: str = "") -> Candidate:
        """The learners, weighted by their errors on rows held out."""
        weights = pool.weights(self.y)
        parts = [f"{weight:.2f} {own}" for own, weight in zip(pool.names, weights, strict=True) if weight > 0.005]
        return self.add(name, about + " + ".join(parts), pool.held_out(self.y, self.fold))

    def doubts(self, stacked: Floats) -> Floats | None:
        """A weight for every labelled row (rows,) by how far the stack, without it, contradicts its label.

        None where too few labels are in doubt, where some rows were not held out, or of values.
        """
        if self.targets.labels is None or len(stacked) < len(self.table.y):
            return None
        share = (stacked * self.y).sum(axis=1) / stacked.max(axis=1)
        if np.average(share < DOUBTFUL, weights=self.table.weights) < DOUBTED:
            return None
        weights: Floats = np.clip(share, LEAST_TRUST, 1.0)
        return weights if self.table.weights is None else weights * self.table.weights

    def affords(self, what: str) -> bool:
        """Whether the budget has room for all learners once more."""
        again = LearnerPool.trainings(self.learners, len(self.folds), self.out_of_bag)
        return self.progress.affords(again + RESERVE, what)

    def corrected(self, weights: Floats) -> LearnerPool:
        """The learners fitted again, with labels that the stack contradicts weighed less."""
        learners = {name: own for name, own in self.learners.items() if weight_parameter(own) is not None}
        table = replace(self.table, weights=weights, mark=self.progress.digest(self.table.mark, weights))
        distinct = self.folds.rows.distinct
        assert distinct is not None
        folds = CrossFitting(self.targets, table, self.fold, distinct, self.progress, self.folds.n_jobs)
        return LearnerPool.fit(self.targets, learners, table, folds, self.progress, self.out_of_bag)

    # students ---------------------------------------------------------------------------------------------------------

    def student(self, pool: LearnerPool, stacked: Floats, learner: Any) -> Any:
        """One learner, taught on labelled, unlabelled and synthetic rows by the stack of all rows."""
        return self._teach(self.table, learner, pool, None, self._soft_labels(stacked), "student")

    def student_held_out(self, pool: LearnerPool, stacked: Floats, learner: Any) -> Floats | None:
        """The student's predictions for the rows held out, by students and teachers that know nothing of their fold."""
        if any(models is None for models in pool.fold_models):
            return None
        labels, members = self._soft_labels(stacked), list[list[Any]]()
        for k, table in enumerate(self.folds.tables):
            models = [own[k] for own in pool.fold_models if own is not None]
            description = f"student, fold {k + 1} of {len(self.folds)}"
            members.append([self._teach(table, learner, pool, models, labels[table.labelled_index], description)])
        return self.folds.predict(members)

    def _soft_labels(self, stacked: Floats) -> Floats:
        """The target of each labelled row (rows[, classes]): the label, mixed with the stack's prediction of it."""
        labels = self.targets.encode(self.table.y).astype(np.float64)
        labels[self.folds.held_out] *= 1.0 - TEACHER_SHARE
        labels[self.folds.held_out] += TEACHER_SHARE * stacked
        return labels

    def _teach(
        self,
        table: TrainingTable,
        learner: Any,
        pool: LearnerPool,
        models: list[Any] | None,
        target: Floats,
        description: str,
    ) -> Any:
        student = student_of(learner, self.targets.labels is not None, len(table.y) + table.n_unlabelled)
        if table.n_unlabelled:
            answers = bounded(
                pool.ask(table) if models is None else pool.answers(table.unlabelled, models), pool.bounds
            )
            target = np.concatenate([target, np.tensordot(pool.weights(self.y), answers, 1)])
        given = table.weights
        if given is not None:
            given = np.concatenate([given, np.ones(len(target) - len(given))])
        return train(self.targets, 0, student, table, target, given, TrainingCache(self.progress, description))


# estimators -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False, repr=False, kw_only=True)
class AutoDistillation(BaseSelfDistillation):
    """The common part of `AutoClassifier` and `AutoRegressor`."""

    generations: int = field(default=2, init=False)
    xi: float | str = field(default=TEACHER_SHARE, init=False)
    peers: Any = field(default=None, init=False)
    include_self: bool = field(default=False, init=False)
    selection: Any = field(default=None, init=False)
    audit: str = field(default="safe", init=False)
    product: str = "best"
    learners: Any = None
    synthetic: int | str = SYNTHETIC

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = False
        return tags

    def _check(self) -> None:
        if self.product not in PRODUCTS:
            raise ValueError(f"product is one of {', '.join(PRODUCTS)}, not {self.product!r}")
        if not isinstance(self.synthetic, (int, np.integer)) or self.synthetic < 0:
            raise ValueError(f"synthetic is a number of rows from 0 on, not {self.synthetic!r}")

    def _n_synthetic(self, table: TrainingTable) -> int:
        return int(self.synthetic)

    def _folds(self, table: TrainingTable) -> tuple[Ints, Ints] | None:
        """As of other estimators; but where most rows have an equal one, that is what the columns tell apart, no copy.

        A class of few rows is in few of the folds, which is no reason to try nothing.
        """
        number, rows = resolve_folds(self.audit_folds, len(table.y)), table.labelled
        if table.groups is None and table.time is None:
            distinct = len(np.unique(row_hashes(rows, table.seed)))
            rows = np.arange(len(table.y))[:, None] if distinct < REPEATED * len(table.y) else rows
        fold, distinct_of = assign_folds(rows, table.y, number, table.seed, self._classes, table.groups, table.time)
        labels = [len(np.unique(table.y[teach])) for teach in teaching_rows(fold)]
        enough = min(labels, default=0) >= 2 and len(np.unique(distinct_of[fold >= 0])) >= FEWEST_ROWS
        return (fold, distinct_of) if enough else None

    def _fit(self, targets: Targets, table: TrainingTable) -> None:
        self._check()
        if np.ndim(table.X) == 1:
            raise ValueError(
                f"{type(self).__name__} makes rows of two others' columns, and X has texts; give a table, or "
                "take SelfTrainedClassifier or SelfDistilledRegressor"
            )
        progress = FitProgress.begin()
        progress.rows = len(table.y) + table.n_unlabelled
        random = None if self.random_state is None else check_random_state(self.random_state)
        own = seeded_clone(self._base(), random)
        seed = 0 if random is None else int(random.randint(2**31 - 1))
        table = self._prepare(table, progress, seed)
        fold_and_distinct = self._folds(table)
        self.teacher_: Any = None
        self.student_: Any = None
        self.alone_: Any = None
        self.residuals_: Floats | None = None
        self.alone_residuals_: Floats | None = None
        self.held_out_: tuple[Ints, Floats] | None = None
        self.xi_ = []
        if budget.active() is not None and fold_and_distinct is not None:  # one training says what the others will take
            train_first(targets, [own], table, [None], TrainingCache(progress, f"{ALONE} on all rows"))
            folds = int(fold_and_distinct[0].max()) + 1
            if not progress.affords(folds + RESERVE, f"all but {ALONE}"):
                fold_and_distinct = None
        if fold_and_distinct is None:
            self._hand_over_alone(targets, table, own, progress)
            return
        trial = self._trial(targets, table, own, random, fold_and_distinct, progress)
        self._choose(trial)

    def _trial(
        self,
        targets: Targets,
        table: TrainingTable,
        own: Any,
        random: np.random.RandomState | None,
        fold_and_distinct: tuple[Ints, Ints],
        progress: FitProgress,
    ) -> TableTrial:
        fold, distinct = fold_and_distinct
        frame, classify = hasattr(table.X, "columns"), targets.labels is not None
        learners = stack_learners(own, frame, classify, len(table.y)) if self.learners is None else self.learners
        learners = {
            name: own if peer is own else seeded_clone(peer, random)
            for name, peer in ({ALONE: own} | dict(learners)).items()
            if peer is own or table.weights is None or weight_parameter(peer) is not None
        }
        audited = len(table.y) >= AUDITABLE
        out_of_bag = not audited and distinct_rows(table, distinct)
        folds = CrossFitting(targets, table, fold, distinct, progress, self.n_jobs)
        students = 1 + len(folds) if audited else 1
        progress.plan(LearnerPool.trainings(learners, len(folds), out_of_bag) + students)
        return TableTrial(targets, table, folds, fold[folds.held_out], progress, learners, out_of_bag)

    def _hand_over_alone(self, targets: Targets, table: TrainingTable, own: Any, progress: FitProgress) -> None:
        progress.plan(1)
        alone = table.with_unlabelled(np.arange(0))
        cache = TrainingCache(progress, f"{ALONE} on all rows")
        self.estimator_ = train(targets, 0, own, alone, targets.encode(table.y), table.weights, cache)
        self.alone_, self.product_ = self.estimator_, ALONE
        self.trainings_ = 1
        self.generation_, self.candidates_ = 0, [Candidate(ALONE, "on the labels", None, None, None, "product").row()]
        self.why_ = f"{len(table.y)} labelled rows, or the budget, are too few to hold some out"
        self.verdict_ = f"nothing was tried: {self.why_}; {ALONE} is the final model"
        self.history_ = [self._line(0, self.verdict_, None, None)]
        self.notes_: list[str] = []

    # the choice -------------------------------------------------------------------------------------------------------

    def _choose(self, trial: TableTrial) -> None:
        pool = trial.learners_alone()
        alone, self.alone_ = trial.candidates[0], pool.models[0]
        stack = trial.stack(pool)
        assert stack.prediction is not None
        weights = trial.doubts(stack.prediction)
        if weights is not None and trial.affords(CORRECTED):
            again = trial.corrected(weights)
            corrected = trial.stack(again, CORRECTED)
            if _better(corrected, stack, 1.0):
                stack.outcome = f"{CORRECTED} is better"
                pool, stack = again, corrected
        self.notes_, self.teacher_ = trial.notes, pool.stack(pool.weights(trial.y))
        contradiction = pool.contradiction(trial.y, trial.table)
        if contradiction:
            stack.outcome = "refused"
            self.notes_.append(f"{contradiction}; it is refused")
        if contradiction or _better(alone, stack, CLEAR):
            self._finish(trial, alone, pool.models[0], stack)
        elif self.product == "stack" or not trial.progress.affords(1 + RESERVE, "the student, and what follows"):
            self._finish(trial, stack, self.teacher_, stack)
        else:
            self._teach(trial, pool, stack)

    def _teach(self, trial: TableTrial, pool: LearnerPool, stack: Candidate) -> None:
        """Teach one student, and choose between it, its teacher and both; of equals the smaller model.

        Where no test could tell them apart, what was best on other tables: the mean for classes, the stack for values.
        """
        assert stack.prediction is not None
        learner, alone, classes = trial.learners[ALONE], trial.candidates[0], trial.targets.labels
        held_out = trial.student_held_out(pool, stack.prediction, learner)
        self.student_ = trial.student(pool, stack.prediction, learner)
        student = trial.add(STUDENT, f"one learner, taught by the {stack.name}", held_out)
        if self.product == "single":
            if _better(alone, student, CLEAR):
                self._finish(trial, alone, pool.models[0], student)
            else:
                self._finish(trial, student, self.student_, stack)
            return
        joint = None if held_out is None else (stack.prediction + held_out) / 2
        both = trial.add(BOTH, "the mean of the two", joint)
        halves = Stack([self.teacher_, self.student_], [0.5, 0.5], None, classes)
        models = {STUDENT: self.student_, stack.name: self.teacher_, BOTH: halves}
        usual = [stack] if classes is None else [both]
        ranked = usual if held_out is None else [student, stack, both]
        best = min(ranked, key=lambda c: np.inf if c.losses is None else float(c.losses.mean()))
        choice = next(c for c in ranked if c is best or not _better(best, c, 0.25))
        self._finish(trial, choice, models[choice.name], stack)

    def _finish(self, trial: TableTrial, choice: Candidate, model: Any, rival: Candidate) -> None:
        """Record what was tried, and why this one is the product; ``rival`` is the best beside it.

        A student that could not be audited is judged by its teacher.
        """
        for candidate in trial.candidates:
            candidate.outcome = candidate.outcome or ("product" if candidate is choice else "")
        alone = trial.candidates[0]
        judged = choice if choice.losses is not None else rival
        shown = judged if choice is not alone else rival
        self.why_ = _against(shown, alone, "it" if shown is choice else shown.name)
        self.verdict_ = f"nothing helps: {self.why_}" if choice is alone else f"{choice.name}: {self.why_}"
        self.estimator_, self.product_, self.generation_ = model, choice.name, int(choice is not alone)
        self.candidates_ = [candidate.row() for candidate in trial.candidates]
        assert judged.prediction is not None
        assert alone.prediction is not None
        self.held_out_ = (trial.folds.held_out, judged.prediction)
        if isinstance(trial.targets, RealTargets):
            fitted = 0 if choice is alone else len(trial.learners)  # weights were fitted to these rows
            self.residuals_ = (trial.folds.y - judged.prediction) * np.sqrt(1.0 + fitted / len(trial.folds.y))
            self.alone_residuals_ = trial.folds.y - alone.prediction
        members = 0 if choice is alone else len(self.teacher_.members)
        self.trainings_ = max(1, members + (model is not self.teacher_ and choice is not alone))  # of the product alone
        decision = Decision(1, choice is not alone, self.verdict_)
        self.history_ = [
            self._line(0, f"{ALONE} learns the labels", _audited_loss(trial, alone), None),
            self._line(1, f"{shown.name}: {shown.about}", _audited_loss(trial, shown), decision),
        ]

    def _line(self, generation: int, what: str, loss: float | None, decision: Decision | None) -> dict[str, Any]:
        return {
            "generation": generation,
            "what": what,
            "loss": loss,
            "xi": None,
            "labelled_by": [],
            "temperature": None,
            "decision": asdict(decision) if decision else None,
        }

    def forget(self) -> None:
        """Keep the product alone: what was held out, the stack, the student and the learner alone are set to None."""
        self.teacher_ = self.student_ = self.alone_ = self.held_out_ = None

    def report(self) -> str:
        """The verdict in a line, and a line for each candidate: its score on rows held out, and what became of it.

        Raises:
            NotFittedError: before ``fit``.
        """
        if not hasattr(self, "candidates_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        measure = "accuracy" if self._classes else "RMSE"
        lines = [self.verdict_, *self.notes_]
        for row in self.candidates_:
            score = "" if row["score"] is None else f", {measure} {row['score']:.4g}"
            lines.append(f"  {row['name']} ({row['about']}){score}{'; ' + row['outcome'] if row['outcome'] else ''}")
        return "\n".join(lines)


def _audited_loss(trial: TableTrial, candidate: Candidate) -> float:
    """The mean error rate or squared error of a candidate on rows held out."""
    assert candidate.prediction is not None
    return float(trial.folds.rows.distinct_losses(trial.targets.losses(candidate.prediction, trial.folds.y)).mean())


def _difference(one: Candidate, other: Candidate) -> tuple[float, float]:
    """The mean difference of two candidates' losses over the same rows, and its standard error."""
    assert one.losses is not None
    assert other.losses is not None
    differences = one.losses - other.losses
    return float(differences.mean()), float(differences.std() / np.sqrt(len(differences)))


def _better(one: Candidate, other: Candidate, errors: float) -> bool:
    """Whether one's loss is lower by so many standard errors of the paired difference; False where one has none."""
    if one.losses is None or other.losses is None:
        return False
    mean, error = _difference(one, other)
    return mean < 0.0 and -mean >= errors * error


def _against(one: Candidate, alone: Candidate, name: str) -> str:
    """A candidate's error beside that of the learner alone, in words."""
    if one.losses is None or alone.losses is None:
        return "no row was held out"
    mean, error = _difference(one, alone)
    share, half = (100 * v / max(float(alone.losses.mean()), 1e-300) for v in (mean, 1.96 * error))
    whose = "its" if name == "it" else f"the {name}'s"
    return (
        f"on rows held out {whose} squared error is {abs(share):.1f} % {'lower' if share <= 0 else 'higher'} than that "
        f"of {ALONE} [{share - half:+.1f}, {share + half:+.1f}]"
    )


@dataclass(eq=False, repr=False, kw_only=True)
class AutoRegressor(AutoDistillation, SelfDistilledRegressor):
    """Learners for values, their stack, and a student of it: the best of them on rows held out, or one learner.

    Equation::

        s = sum_j w_j f_j, w fitted out of fold;  the student learns s on unlabelled and synthetic rows, and (s + y) / 2
        on labelled ones

    Args:
        estimator: the learner that the student is; `usual_learner`, gradient boosting, by default.
        product: ``"best"``: the stack, its student or the mean of both; ``"single"``: the student, one learner's size
            and speed; ``"stack"``: the undistilled stack. The learner alone, where nothing is better.
        learners: a dictionary of further learners by name; by default boosting, extremely randomised trees, a forest, a
            linear model and neighbours.
        synthetic: the number of synthetic rows, each of half the columns of one row and half of another.
        audit_folds, n_jobs, random_state: as of `SelfDistilledRegressor`.

    Attributes:
        estimator_: the product. teacher_: the stack. student_: its student, if one was taught. generation_: 0 where the
            product is the learner alone, else 1.
        candidates_: name, loss, score and outcome of all that was tried; ``report()`` prints them.
        residuals_: label minus prediction of the rows held out. held_out_: the places of these rows among the labelled
            ones, and the prediction for each without its fold.

    Source: Breiman, Stacked Regressions, 1996, for the teacher; Bucila, Caruana and Niculescu-Mizil, Model Compression,
    KDD 2006, for the student.

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = AutoRegressor(random_state=0).fit(X[:60], y[:60], X_unlabeled=X[60:300])
    >>> model.predict(X[300:]).shape, [row["name"] for row in model.candidates_][-1]
    ((142,), 'stack and student')
    """


@dataclass(eq=False, repr=False, kw_only=True)
class AutoClassifier(AutoDistillation, SelfDistilledClassifier):
    """Learners for classes, their stack, and a student of it: the best of them on rows held out, or one learner.

    Where the stack contradicts many labels on rows held out, all learners are fitted again with those labels weighed
    less; that is a further candidate.

    Args:
        estimator, product, learners, synthetic, audit_folds, n_jobs, random_state: as of `AutoRegressor`.
        unlabelled: as of `SelfDistilledClassifier`.

    Attributes:
        estimator_, teacher_, student_, generation_, candidates_: as of `AutoRegressor`. classes_: the labels, sorted.

    Source: as of `AutoRegressor`.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> AutoClassifier(product="single", random_state=0).fit(X[::2], y[::2]).predict_proba(X[:1]).shape
    (1, 3)
    """
