"""The common part of the estimators that distil themselves: checked input, generations, mixing weights, the audit."""

from __future__ import annotations

from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_consistent_length, check_random_state, get_tags
from sklearn.utils.validation import _check_sample_weight, validate_data

from ..data.copies import Floats, Ints
from ..errors import DataError
from ..evaluation.audit import Audit, Decision, champion
from ..training import budget
from .base_learners import usual_learner
from .generations import CrossFitting, RealTargets, Targets, train_first, train_next
from .mixing_weight import smoother, step_weights
from .pseudo_labels import PseudoLabels, Selection
from .resume import FitProgress, TrainingCache
from .tables import (
    EQUAL_WEIGHTS,
    RowWeights,
    TrainingTable,
    assign_folds,
    has_target,
    refuse_stray_cells,
    resolve_folds,
    stack,
    take,
    target_column,
    teaching_rows,
    text_rows,
)
from .wrappers import Wrapper, innermost, seeded_clone, weight_arguments


@dataclass
class GenerationAudit:
    """The audit of generations on held-out rows: their predictions, their losses by distinct row, the decisions."""

    audit: Audit
    folds: CrossFitting
    predictions: list[Floats] = field(default_factory=list)
    losses: list[Floats] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)

    def add(self, prediction: Floats) -> bool:
        """Judge the next generation by its predictions for the held-out rows; returns whether it may teach."""
        number = len(self.losses)
        self.predictions.append(prediction)
        self.losses.append(self.folds.rows.distinct_losses(self.folds.targets.losses(prediction, self.folds.y)))
        if number == 0:
            self.decisions.append(Decision(0, True, "generation 0 accepted: there is none before it"))
            return True
        against = self.final()
        decision = self.audit.decide(number, self.losses[-1], self.losses[against], against=against)  # type: ignore[arg-type]
        if self.audit.policy == "off":
            decision = replace(decision, accepted=True, why=f"generation {number} accepted: the audit is off")
        self.decisions.append(decision)
        return decision.accepted

    def final(self) -> int:
        """The best accepted generation; the last one where the audit is off."""
        if self.audit.policy == "off":
            return len(self.losses) - 1
        accepted = [d.generation for d in self.decisions if d.accepted]
        return champion([[float(v) for v in losses] for losses in self.losses], accepted)


@dataclass
class GenerationPlan:
    """The mixing weight and the pseudo-labels of each later generation, and the audit of all where there is one."""

    audit: GenerationAudit | None
    xis: list[float] = field(default_factory=list)
    pseudo_labels: list[PseudoLabels] = field(default_factory=list)


@dataclass(eq=False, repr=False)  # scikit-learn compares and shows estimators in its own way
class BaseSelfDistillation(Wrapper):
    """An estimator that trains a learner for several generations, each taught by the one before it."""

    _classes = False
    _measure = "mse"
    _needs_unlabelled = False  # without unlabelled rows there is nothing to learn after the labels
    estimator: Any = None
    _: KW_ONLY
    generations: int = 2
    xi: float | str = "auto"
    peers: Any = None
    include_self: bool = False
    selection: Selection = None
    audit: str = "safe"
    audit_folds: int | float | str = "auto"
    n_jobs: int | None = None
    random_state: Any = None

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        members = [get_tags(learner).input_tags for learner in self._learners()]
        for name in ("sparse", "allow_nan", "categorical"):
            setattr(tags.input_tags, name, all(getattr(member, name) for member in members))
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = False
        return tags

    # what a subclass may change ---------------------------------------------------------------------------------------

    def _base(self) -> Any:
        if self.estimator is None:
            return usual_learner(self._classes, hasattr(self, "feature_names_in_"))
        return self.estimator

    def _peers(self) -> Any:
        return self.peers

    def _targets(self, y: Any) -> NDArray[Any]:
        """Checked targets (rows,): numbers, or indices of classes."""
        raise NotImplementedError

    def _has_label(self, y: NDArray[Any]) -> NDArray[np.bool_]:
        """A mask of the targets (rows,) that are there."""
        return has_target(y, self)

    def _n_synthetic(self, table: TrainingTable) -> int:
        """The number of synthetic rows to add."""
        return 0

    def _pseudo_labels(
        self, generation: int, last: int, prediction: Floats | None, y: NDArray[Any], rows: RowWeights
    ) -> PseudoLabels:
        """How ``generation`` is labelled, of ``last`` later ones; ``prediction`` are those of the one before for
        held-out rows, where there are some, and ``y`` and ``rows`` their targets and weights."""
        return PseudoLabels(self.selection, include_self=bool(self.include_self))

    def _best_xi(self, y: NDArray[Any], teacher: Floats, student: Floats, rows: RowWeights) -> float:
        """The best xi on held-out rows, from students of labels alone and of the teacher alone."""
        raise NotImplementedError

    def _check(self) -> None:
        if not isinstance(self.generations, (int, np.integer)) or self.generations < 1:
            raise ValueError(f"generations counts trainings: a whole number from 1 on, not {self.generations!r}")
        if self.xi != "auto" and (isinstance(self.xi, str) or not np.isfinite(self.xi)):
            raise ValueError(f"xi is a number or 'auto', not {self.xi!r}")

    # input ------------------------------------------------------------------------------------------------------------

    def _inputs(self, X: Any, reset: bool = False) -> Any:
        """Checked rows: a frame stays a frame, lists and arrays become arrays, a sparse matrix becomes CSR; texts an
        array (rows,) of strings."""
        if hasattr(X, "columns"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            if reset:
                refuse_stray_cells(X)
            return X
        texts = text_rows(X)
        if texts is not None:
            if self.estimator is None:
                raise ValueError("X is a list of texts; give an estimator that reads them, such as "
                                 "make_pipeline(TfidfVectorizer(), LogisticRegression())")  # fmt: skip
            return texts
        tags = get_tags(self)
        finite: bool | str = "allow-nan" if tags.input_tags.allow_nan else True
        sparse = "csr" if tags.input_tags.sparse else False
        return validate_data(self, X, reset=reset, accept_sparse=sparse, dtype=None, ensure_all_finite=finite)

    def _table(
        self, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any, groups: Any = None, time: Any = None
    ) -> TrainingTable:
        """The checked arguments of ``fit``, without rows of weight 0; rows without a label are unlabelled ones."""
        X = self._inputs(X, reset=True)
        y = target_column(y, self)
        check_consistent_length(X, y, groups, time)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            weight_arguments(self._base(), weights)
        U = None if X_unlabeled is None else self._unlabelled(X, X_unlabeled)
        labelled = self._has_label(y)
        if not labelled.any():
            raise ValueError(f"none of {len(y)} rows has a label in y; give some")
        if not labelled.all():
            U = stack([take(X, np.flatnonzero(~labelled)), *([] if U is None else [U])])
        rows = np.flatnonzero(labelled if weights is None else labelled & (weights > 0))
        groups, time = (None if v is None else np.asarray(v) for v in (groups, time))
        if len(rows) < len(y):
            X, y = take(X, rows), y[rows]
            weights, groups, time = (None if v is None else v[rows] for v in (weights, groups, time))
        return TrainingTable(X, self._targets(y), weights, U, groups=groups, time=time)

    def _unlabelled(self, X: Any, U: Any) -> Any:
        names, given = (list(rows.columns) if hasattr(rows, "columns") else None for rows in (X, U))
        if names != given and names is not None and given is not None:
            odd = sorted({*names} ^ {*given}, key=str)
            what = f"column {odd[0]!r} is in one of them only" if odd else "the order of the columns differs"
            raise ValueError(f"X_unlabeled has other columns than X: {what}; give the columns of X, in their order")
        if (names is None) != (given is None):
            raise ValueError("one of X and X_unlabeled is a frame and the other is not; give both in the same form")
        wide = U.shape[1] if hasattr(U, "shape") and len(U.shape) == 2 else None
        if wide is not None and wide != self.n_features_in_:
            raise ValueError(f"X_unlabeled has {wide} columns and X has {self.n_features_in_}; give the same columns")
        U = self._inputs(U)
        return U if U.shape[0] else None

    # generations ------------------------------------------------------------------------------------------------------

    def _fit(self, targets: Targets, table: TrainingTable) -> None:
        self._check()
        progress = FitProgress.begin()
        random = None if self.random_state is None else check_random_state(self.random_state)
        seed = 0 if random is None else int(random.randint(2**31 - 1))
        table = self._prepare(table, progress, seed)
        progress.rows = len(table.y) + table.n_unlabelled
        learners, seeds = self._members(random, seed)
        last = 0 if self._needs_unlabelled and not table.n_unlabelled else self.generations - 1
        plan = self._plan(targets, learners, seeds, table, last, progress)
        self.xi_, self.residuals_ = plan.xis, None
        self.history_ = self._history(plan, last, table)
        self.generation_ = plan.audit.final() if plan.audit else len(plan.xis) if self.audit == "off" else 0
        if plan.audit and isinstance(targets, RealTargets):
            self.residuals_ = plan.audit.folds.y - plan.audit.predictions[self.generation_]
        self.trainings_ = _trainings(len(learners), self.generation_)  # of the final chain alone
        progress.plan(self.trainings_)
        cache = TrainingCache(progress, "generation 0 on all rows")
        members = train_first(targets, _trained(learners, 0, self.generation_), table, seeds, cache)
        for k in range(1, self.generation_ + 1):
            trained = _trained(learners, k, self.generation_)
            cache = TrainingCache(progress, f"generation {k} on all rows")
            members = train_next(targets, trained, table, members, plan.xis[k - 1], plan.pseudo_labels[k - 1], cache)
        self.estimator_ = members[0]

    def _prepare(self, table: TrainingTable, progress: FitProgress, seed: int) -> TrainingTable:
        """The table with its seed, its synthetic rows and, where trainings are kept in files, its digest."""
        synthetic = self._n_synthetic(table)
        mark = progress.digest(table.X, table.X_unlabelled, synthetic, seed)
        return replace(table, mark=mark, seed=seed, synthetic=synthetic)

    def _learners(self) -> list[Any]:
        """The learner and its peers of other kinds."""
        peers = self._peers()
        return [self._base(), *([] if peers is None or isinstance(peers, (int, np.integer)) else peers)]

    def _members(self, random: np.random.RandomState | None, seed: int) -> tuple[list[Any], list[int | None]]:
        """The learner and its peers, and a bootstrap sample's seed for each copy of it, which would agree otherwise."""
        learner, peers = seeded_clone(self._base(), random), self._peers()
        if peers is None:
            return [learner], [None]
        if isinstance(peers, (int, np.integer)):
            if peers < 1:
                raise ValueError(f"peers is a number from 1 on, a list of estimators, or None, not {peers}")
            drawn = np.random.RandomState(seed)
            copies = [seeded_clone(self._base(), drawn) for _ in range(peers)]
            return [learner, *copies], [None, *(int(s) for s in drawn.randint(2**31 - 1, size=peers))]
        others = [seeded_clone(peer, random) for peer in peers]
        if not others:
            raise ValueError("peers is an empty list; give estimators, a number, or None")
        return [learner, *others], [None] * (1 + len(others))

    def _folds(self, table: TrainingTable) -> tuple[Ints, Ints] | None:
        """The fold and the distinct row of each labelled row; None where there are too few rows to audit."""
        number = resolve_folds(self.audit_folds, len(table.y))
        fold, distinct = assign_folds(
            table.labelled, table.y, number, table.seed, self._classes, table.groups, table.time
        )
        parts = [np.unique(table.y[rows]) for rows in teaching_rows(fold)]
        if not parts or (self._classes and min(map(len, parts)) < 2):
            return None  # all rows are of one group or time, or a class is of one
        if isinstance(number, float) or table.time is not None:
            sizes = len(np.unique(distinct[fold == 0])), len(np.unique(distinct[fold == -1]))
            return (fold, distinct) if min(sizes) >= 2 else None
        enough = distinct.max() + 1 >= 2 * number and len(parts) > 1
        if self._classes:
            first = np.unique(distinct, return_index=True)[1]
            enough = enough and np.unique(table.y[first], return_counts=True)[1].min() >= number
        return (fold, distinct) if enough else None

    def _plan(
        self,
        targets: Targets,
        learners: list[Any],
        seeds: list[int | None],
        table: TrainingTable,
        last: int,
        progress: FitProgress,
    ) -> GenerationPlan:
        """Choose the mixing weight and the pseudo-labels of every generation, and audit each, on held-out rows."""
        fixed = None if self.xi == "auto" else float(self.xi)
        fold_and_distinct = self._folds(table) if last else None
        try:
            audit = Audit(self.audit, planned=max(1, last), measure=self._measure)
        except DataError as error:
            raise ValueError(str(error)) from None
        if fold_and_distinct is None or (audit.policy == "off" and fixed is not None):
            blind = [self._pseudo_labels(k, last, None, table.y, EQUAL_WEIGHTS) for k in range(1, last + 1)]
            return GenerationPlan(None, [fixed or 0.0] * last, blind)
        folds = CrossFitting(targets, table, *fold_and_distinct, progress, self.n_jobs)
        if budget.active() is not None:  # one training says what the others will take; it is kept
            train_first(targets, learners[:1], table, seeds, TrainingCache(progress, "generation 0 on all rows"))
            if not progress.affords(len(learners) * len(folds) + RESERVE, "the audit, and all generations after 0"):
                return GenerationPlan(None)
        given: list[float | None] = [fixed] * last
        if fixed is None and isinstance(targets, RealTargets) and len(learners) == 1 and not table.n_unlabelled:
            H = smoother(learners[0], table.labelled, table.y, **weight_arguments(learners[0], table.weights))
            copies = RowWeights(table.weights, fold_and_distinct[1])
            given = given if H is None else [*step_weights(H, table.y, last, rows=copies)]
        progress.plan(_trainings(len(learners), last) * (1 + len(folds)) + 2 * len(folds) * given.count(None))
        audited = GenerationAudit(audit, folds)
        plan = GenerationPlan(audited)
        members = folds.train_first(learners, seeds)
        prediction = folds.predict(members)
        audited.add(prediction)
        for k, xi in enumerate(given, 1):
            further = len(folds) * (len(_trained(learners, k, last)) + 2 * (xi is None)) + _trainings(len(learners), k)
            if not progress.affords(further + RESERVE, f"generation {k}"):
                break
            labels = self._pseudo_labels(k, last, prediction, folds.y, folds.rows)
            plan.pseudo_labels.append(labels)
            plan.xis.append(self._search_xi(folds, learners[:1], members, labels, k) if xi is None else xi)
            members = folds.train_next(f"generation {k}", _trained(learners, k, last), members, plan.xis[-1], labels)
            prediction = folds.predict(members)
            if not audited.add(prediction):
                break  # the folds went on from it, so nothing after it can be judged
        return plan

    def _search_xi(
        self, folds: CrossFitting, learner: list[Any], members: list[list[Any]], labels: PseudoLabels, k: int
    ) -> float:
        """The best xi of generation ``k``, from students of its two ends."""
        teacher, student = (
            folds.predict(folds.train_next(f"generation {k}, xi = {end:g} tried", learner, members, end, labels))
            for end in (0.0, 1.0)
        )
        return self._best_xi(folds.y, teacher, student, folds.rows)

    # report -----------------------------------------------------------------------------------------------------------

    def _history(self, plan: GenerationPlan, last: int, table: TrainingTable) -> list[dict[str, Any]]:
        """A line for each generation: what it learns from, its loss, its mixing weight and the audit's decision."""
        if plan.audit is None and last and self.audit != "off":
            why = "learns from labels; too few rows, or too small a budget, to audit, so nothing after it is trusted"
            return [{"generation": 0, "what": why, "loss": None, "decision": None, "xi": None, "labelled_by": []}]
        first: dict[str, Any] = {"generation": 0, "what": "learns from labels", "loss": None, "decision": None}
        history = [{**first, "xi": None, "labelled_by": [], "temperature": None}]
        for number, (xi, labels) in enumerate(zip(plan.xis, plan.pseudo_labels, strict=True), 1):
            by = f"generation {number - 1}" if self._peers() is None else "its peers"
            what = f"trusts {by}{' and itself' if labels.include_self else ''} by xi = {xi + 0.0:.3g}"
            if table.n_unlabelled:
                what += f", and by their labels for {table.n_unlabelled} rows"
                what += f" ({table.synthetic} of them synthetic)" if table.synthetic else ""
            history.append(
                {
                    **first,
                    "generation": number,
                    "what": what,
                    "xi": xi,
                    "labelled_by": self._teachers(labels.include_self) if table.n_unlabelled else [],
                    "temperature": labels.temperature,
                }
            )
        if plan.audit:
            for row, losses, decision in zip(history, plan.audit.losses, plan.audit.decisions, strict=True):
                row["loss"] = float(losses.mean())
                row["decision"] = asdict(decision) if row["generation"] else None
        return history

    def _teachers(self, include_self: bool) -> list[str]:
        """The names of the learners whose predictions label unlabelled rows."""
        own, peers = type(innermost(self._base())).__name__, self._peers()
        if peers is None:
            return [own]
        copies = isinstance(peers, (int, np.integer))
        names = [own] * int(peers) if copies else [type(innermost(peer)).__name__ for peer in peers]
        return [own, *names] if include_self else names

    def report(self) -> str:
        """The history in lines: each generation, its mixing weight, its score, and the decision of the audit.

        Raises:
            NotFittedError: before ``fit``.
        """
        if not hasattr(self, "history_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        lines = []
        for row in self.history_:
            lines.append(f"generation {row['generation']}: {row['what']}{self._score(row['loss'])}")
            if row["decision"]:
                lines.append(f"  {row['decision']['why']}")
        best = "" if self.audit == "off" or len(lines) < 2 else ", the best of those accepted on held-out rows"
        return "\n".join([*lines, f"the final model is generation {self.generation_}{best}"])

    def _score(self, loss: float | None) -> str:
        """A mean loss in words; of classes, the accuracy."""
        if loss is None:
            return ""
        score = 1.0 - loss if self._measure == "accuracy" else loss
        return f", {self._measure} {score:.4g} on held-out rows"


RESERVE = 2  # trainings that stay affordable: the learner alone, and its interval or score


def _trained(learners: list[Any], generation: int, last: int) -> list[Any]:
    """Who is trained in a generation: in the last one the learner alone."""
    return learners[:1] if generation == last else learners


def _trainings(members: int, last: int) -> int:
    """The number of trainings of a chain that ends with generation ``last``."""
    return members * last + 1
