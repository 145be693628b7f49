"""Self-distillation of any scikit-learn estimator: each generation learns from the last one and from the labels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from .base import Audited, SelfTaught, available_if, delegates, told
from .bounded import core
from .chain import Classes, Kind, Values, able, first, later
from .folding import Folded
from .labelling import Labelling, Selection
from .ledger import Ledger, Page, opened
from .rows import ALIKE, Floats, Rows
from .table import Table
from .targets import class_targets, real_targets
from .trust import held_out, mixture, smoother, steps
from .usual import usual_learner
from .weights import seeded, weighted


class SelfDistilled(SelfTaught):
    """The common part of classifier and regressor."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        generations: int = 2,
        xi: float | str = "auto",
        peers: Any = None,
        selection: Selection = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.generations = generations
        self.xi = xi
        self.peers = peers
        self.selection = selection
        self.audit = audit
        self.audit_folds = audit_folds
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _fit(self, kind: Kind, table: Table) -> None:
        self._check()
        ledger = opened()
        random = self._random()
        seed = 0 if random is None else int(random.randint(2**31 - 1))
        table = replace(table, mark=ledger.mark(table.whole, table.without), seed=seed)
        learners, seeds = self._members(random, seed)
        number = self._rounds(table.without is not None) - 1
        self.residuals_: Floats | None = None
        audited, self.xi_, self._labellings, held = self._choose(kind, learners, seeds, table, seed, number, ledger)
        self.history_ = self._history(audited, number, table)
        self.generation_ = audited.product() if audited else number if self.audit == "off" else 0
        if held and audited and isinstance(kind, Values):
            self.residuals_ = held.y - audited.said[self.generation_]
        ledger.left(_trainings(len(learners), self.generation_))
        steps_taken = list(zip(self.xi_, self._labellings, strict=True))[: self.generation_]
        page = Page(ledger, "generation 0 on all rows")
        members = first(kind, _needed(learners, 0, self.generation_), table, seeds, page)
        for k, (xi, labelling) in enumerate(steps_taken, 1):
            page = Page(ledger, f"generation {k} on all rows")
            members = later(kind, _needed(learners, k, self.generation_), table, members, xi, labelling, page)
        self.estimator_ = members[0]

    def _usual(self) -> Any:
        return usual_learner(self._classes, hasattr(self, "feature_names_in_"))

    def _peers(self) -> Any:
        return self.peers

    def _learners(self) -> list[Any]:
        peers = self._peers()
        return [self._base(), *([] if peers is None or isinstance(peers, (int, np.integer)) else peers)]

    def _rounds(self, unlabelled: bool) -> int:
        return self.generations

    def _check(self) -> None:
        if not isinstance(self.generations, (int, np.integer)) or self.generations < 1:
            raise ValueError(f"generations counts trainings: a whole number from 1 on, not {self.generations!r}")
        if self.xi != "auto" and (isinstance(self.xi, str) or not np.isfinite(self.xi)):
            raise ValueError(f"xi is a number or 'auto', not {self.xi!r}")

    def _members(self, random: np.random.RandomState | None, seed: int) -> tuple[list[Any], list[int | None]]:
        """The learner and its peers; copies of it learn from bootstrap samples, or they would agree in everything."""
        learner, peers = seeded(self._base(), random), self._peers()
        if peers is None:
            return [learner], [None]
        if isinstance(peers, (int, np.integer)):
            if peers < 1:
                raise ValueError(f"peers is a number from 1 on, a list of estimators, or None, not {peers}")
            drawn = np.random.RandomState(seed)
            copies = [seeded(self._base(), drawn) for _ in range(peers)]
            return [learner, *copies], [None, *(int(s) for s in drawn.randint(2**31 - 1, size=peers))]
        others = [seeded(peer, random) for peer in peers]
        if not others:
            raise ValueError("peers is an empty list; give estimators, a number, or None")
        return [learner, *others], [None] * (1 + len(others))

    def _choose(
        self,
        kind: Kind,
        learners: list[Any],
        seeds: list[int | None],
        table: Table,
        seed: int,
        number: int,
        ledger: Ledger,
    ) -> tuple[Audited | None, list[float], list[Labelling], Folded | None]:
        """The trust weight and the labelling of every generation, and the audit of each on rows left out."""
        fixed = None if self.xi == "auto" else float(self.xi)
        parts = self._parts(table, seed) if number else None
        audit = self._audit(number)
        if parts is None or (audit.policy == "off" and fixed is not None):
            blind = [self._labelling(k, number, None, table.y, ALIKE) for k in range(1, number + 1)]
            return None, [0.0 if fixed is None else fixed] * number, blind, None
        folded = Folded(kind, table, *parts, ledger, self.n_jobs)
        plan: list[float | None] = [fixed] * number
        if fixed is None and isinstance(kind, Values) and len(learners) == 1 and table.without is None:
            H = smoother(learners[0], table.rows, table.y, **weighted(learners[0], table.weights))
            copies = Rows(table.weights, parts[1])
            plan = plan if H is None else [*steps(H, table.y, number, rows=copies)]
        ledger.left(_trainings(len(learners), number) * (1 + len(folded)) + 2 * len(folded) * plan.count(None))
        audited = Audited(audit, folded.rows, [], [])
        members = folded.each("generation 0", first, learners, seeds)
        said = folded.said(members)
        audited.add(said, kind.losses(said, folded.y))
        xis, labellings = list[float](), list[Labelling]()
        for k, planned in enumerate(plan, 1):
            labellings.append(self._labelling(k, number, said, folded.y, folded.rows))
            xi = self._tried(folded, learners, members, labellings[-1], k) if planned is None else planned
            xis.append(xi)
            needed = _needed(learners, k, number)
            members = folded.each(f"generation {k}", later, needed, members, xi, labellings[-1])
            said = folded.said(members)
            if not audited.add(said, kind.losses(said, folded.y)):
                break  # the folds went on from it, so nothing after it can be judged
        return audited, xis, labellings, folded

    def _tried(self, folded: Folded, learners: list[Any], members: list[Any], labelling: Labelling, k: int) -> float:
        """The best xi of generation ``k``, by its two ends."""
        without, taught = (
            folded.said(
                folded.each(f"generation {k}, xi = {end:g} tried", later, learners[:1], members, end, labelling)
            )
            for end in (0.0, 1.0)
        )
        return self._best(folded.y, without, taught, folded.rows)

    def _labelling(self, number: int, of: int, said: Floats | None, y: NDArray[Any], rows: Rows) -> Labelling:
        """How generation ``number`` of ``of`` later ones labels; ``said`` of labelled rows left out, if there are."""
        return Labelling(self.selection)

    def _best(self, y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
        """The best xi on rows left out, from students of labels alone and of the teacher alone."""
        raise NotImplementedError

    def _history(self, audited: Audited | None, planned: int, table: Table) -> list[dict[str, Any]]:
        if audited is None and planned and self.audit != "off":
            why = "learns from labels; too few rows to audit, so nothing after it is trusted"
            return [told(0, why, None, None, xi=None, labelled_by=[])]
        lines = []
        teachers = [type(core(self._base())).__name__] if self._peers() is None else self._names()
        for number in range(len(audited.losses) if audited else planned + 1):
            xi = self.xi_[number - 1] if number else None
            by = "its peers" if self._peers() is not None else f"generation {number - 1}"
            what = "learns from labels" if xi is None else f"trusts {by} by xi = {xi:.3g}"
            labelled = table.unknown() if number else 0
            what += f", and by their labels for {labelled} rows" if labelled else ""
            loss = float(audited.losses[number].mean()) if audited else None
            decision = audited.decisions[number] if audited and number else None
            lines.append(
                told(
                    number,
                    what,
                    loss,
                    decision,
                    xi=xi,
                    labelled_by=teachers if labelled else [],
                    temperature=self._labellings[number - 1].temperature if number else None,
                )
            )
        return lines

    def _names(self) -> list[str]:
        peers = self._peers()
        if isinstance(peers, (int, np.integer)):
            return [type(core(self._base())).__name__] * int(peers)
        return [type(core(peer)).__name__ for peer in peers]


def _needed(learners: list[Any], generation: int, last: int) -> list[Any]:
    """Who is trained in a generation: in the last one nobody but the learner."""
    return learners[:1] if generation == last else learners


def _trainings(members: int, last: int) -> int:
    """How many a chain takes that ends with generation ``last``."""
    return members * last + 1


class SelfDistilledRegressor(RegressorMixin, SelfDistilled):  # type: ignore[misc]
    """Self-distillation of any regressor: each generation learns from the last one and from the labels.

    Equation::

        t_k = xi_k f_(k-1)(x) + (1 - xi_k) y  on labelled rows,  t_k = f_(k-1)(u)  on unlabelled ones

    Args:
        estimator: the learner; gradient boosting by default.
        generations: trainings, the first one included.
        xi: how far the teacher is trusted on labelled rows. ``"auto"`` chooses it from the data for every generation:
            for learners that are linear in their targets in closed form (negative and above 1 allowed), for others on
            rows left out; what cannot be told from noise is 0.
        peers: None, and a generation is taught by the one before it; a number of copies (on bootstrap samples) or a
            list of estimators, and each is taught by the mean of the others, never by itself. The product is
            ``estimator``'s.
        selection: a function of the teacher's predictions (rows,) that gives each unlabelled row a weight in [0, 1].
        audit: ``"safe"``, ``"strict"`` or ``"off"``: which generations may teach and be the product, by their errors on
            folds that they have not learnt from.
        audit_folds: a number, and as many trainings more for each generation; or a share between 0 and 1, and that
            share of the distinct rows is left out once, for one training more. ``"auto"`` is 5 folds up to 20,000
            labelled rows, and beyond that a share of 5,000 rows at most.
        n_jobs: processes for the folds.
        random_state: seeds the learner and the folds.

    Attributes:
        estimator_: the product. generation_: its number. xi_: the trust weight of each later generation.
        residuals_: label minus prediction of the labelled rows left out, in their order; None without an audit.
        history_: for each generation its loss, xi and decision; ``report()`` puts it in words.

    Source: Mobahi, Farajtabar and Bartlett, NeurIPS 2020; xi by Dang, Patil and Rinaldo, ICML 2026, equations 17-19.

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = SelfDistilledRegressor(Ridge(1.0)).fit(X, y)  # too strong a penalty: the best xi is negative
    >>> bool(model.xi_[0] < 0), bool(model.score(X, y) > Ridge(1.0).fit(X, y).score(X, y))
    (True, True)
    """

    _measure = "mse"

    def _base(self) -> Any:
        return self._usual() if self.estimator is None else self.estimator

    def _targets(self, y: Any, X: Any) -> Floats:
        return real_targets(y, self)

    def fit(self, X: Any, y: Any, sample_weight: Any = None, X_unlabeled: Any = None) -> SelfDistilledRegressor:
        """Train; ``X_unlabeled`` are rows (rows, columns) that the teacher labels.

        Raises:
            ValueError: what was given does not fit together.
        """
        self._fit(Values(), self._table(X, y, sample_weight, X_unlabeled))
        return self

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds (rows,) that hold a new row's value with about this probability.

        The product's prediction, plus and minus the conformal quantile of the errors on rows left out by the folds. New
        rows must come from where the labelled ones came from; the share is that over all rows, not at each place.

        Source: Barber, Candès, Ramdas and Tibshirani, Predictive Inference with the Jackknife+, Annals of Statistics
        49, 2021 (the cross-validation of section 3, around the model of all rows).

        Raises:
            ValueError: the coverage is no probability that so many rows can promise, or no row was left out.

        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> X, y = load_diabetes(return_X_y=True)
        >>> low, high = SelfDistilledRegressor(Ridge(0.1)).fit(X[:300], y[:300]).predict_interval(X[300:])
        >>> bool(0.8 < ((low <= y[300:]) & (y[300:] <= high)).mean() < 1.0)
        True
        """
        check_is_fitted(self, "estimator_")
        if self.residuals_ is None:
            raise ValueError("no row was left out to learn errors from; fit with an audit and 2 generations or more")
        errors = np.sort(np.abs(self.residuals_))
        rank = int(np.ceil((len(errors) + 1) * coverage)) if 0 < coverage < 1 else 0
        if not 1 <= rank <= len(errors):
            most = len(errors) / (len(errors) + 1)
            raise ValueError(f"coverage {coverage:g} is not between 0 and {most:.3g}, the most these rows can promise")
        said = self.predict(X)
        return said - errors[rank - 1], said + errors[rank - 1]

    def _best(self, y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
        return held_out(y, without, taught, rows).xi


class SelfDistilledClassifier(ClassifierMixin, SelfDistilled):  # type: ignore[misc]
    """Self-distillation of any classifier with ``predict_proba`` and ``sample_weight``, by soft targets.

    Equation::

        t_k = xi_k p_(k-1)(. | x) + (1 - xi_k) onehot(y)  on labelled rows,  t_k = p_(k-1)(. | u)  on unlabelled ones

    Soft targets are learnt exactly (`chain.fit_soft`): as they are where the learner takes them, else by weighted rows.

    Args:
        estimator: the learner; gradient boosting by default.
        generations: trainings, the first one included.
        xi: how far the teacher is trusted on labelled rows, from 0 to 1; ``"auto"`` minimises the log loss on rows left
            out, and is 0 where the gain cannot be told from noise.
        peers: None; a number of copies, or a list of estimators: each is taught by the mean of the others.
        selection: the least confidence of a teacher's prediction for an unlabelled row to be learnt, or a function of
            the predictions (rows, classes) that gives each row a weight in [0, 1].
        audit, audit_folds, n_jobs, random_state: as of `SelfDistilledRegressor`; audited by accuracy, since labels that
            are wrong at random still rank models by it.

    Attributes:
        estimator_, generation_, xi_, history_: as of `SelfDistilledRegressor`. classes_: the labels, sorted.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, equation 5, for any learner.

    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> X, y = load_iris(return_X_y=True)
    >>> model = SelfDistilledClassifier(LogisticRegression(max_iter=1000), xi=0.5).fit(X, y)
    >>> model.predict_proba(X[:1]).shape, len(model.history_)
    ((1, 3), 2)
    """

    _measure = "accuracy"
    _classes = True

    def _base(self) -> Any:
        return self._usual() if self.estimator is None else self.estimator

    def _targets(self, y: Any, X: Any) -> NDArray[Any]:
        self.classes_, found = class_targets(y, self)
        return found

    def fit(self, X: Any, y: Any, sample_weight: Any = None, X_unlabeled: Any = None) -> SelfDistilledClassifier:
        """Train; ``X_unlabeled`` are rows (rows, columns) that the teacher labels.

        Raises:
            ValueError: what was given does not fit together.
        """
        table = self._table(X, y, sample_weight, X_unlabeled)
        self._fit(Classes(self.classes_), table)
        return self

    def _check(self) -> None:
        super()._check()
        if self.xi != "auto" and not 0.0 <= float(self.xi) <= 1.0:
            raise ValueError(
                f"xi = {self.xi} gives some class a negative weight, and the cross-entropy of a negative weight has no "
                "lower bound: the learner would gain without end by ruling that class out; give xi from 0 to 1"
            )
        if self.generations > 1:
            able(self._base(), self._soft())

    def _soft(self) -> bool:
        return True

    def _best(self, y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
        return mixture(y, without, taught, rows)

    @available_if(delegates("predict_proba"))  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes), in the order of ``classes_``."""
        check_is_fitted(self, "estimator_")
        return Classes(self.classes_).says(self.estimator_, self._rows(X, reset=False))

    @available_if(delegates("decision_function"))  # type: ignore[untyped-decorator]
    def decision_function(self, X: Any) -> Floats:
        """The product's own decision function."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.estimator_.decision_function(self._rows(X, reset=False)))
