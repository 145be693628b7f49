"""Self-distillation of any scikit-learn estimator: each generation learns from the last one and from the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted

from ..evaluation.predict import halfwidth
from .base import available_if, delegates
from .generational import SelfDistilled
from .generations import Classes, Values, able
from .labelling import Selection
from .mixing_weight import held_out, mixture
from .tables import Floats, Rows, Table, class_targets, real_targets

ENOUGH = 3500  # rows, with which a student takes over what its teachers know


class SelfDistilledRegressor(RegressorMixin, SelfDistilled):  # type: ignore[misc]
    """Self-distillation of any regressor: each generation learns from the last one and from the labels.

    Equation::

        t_k = xi_k f_(k-1)(x) + (1 - xi_k) y  on labelled rows,  t_k = f_(k-1)(u)  on unlabelled ones

    Args:
        estimator: the learner; `usual_learner`, gradient boosting, by default.
        generations: trainings, the first one included.
        xi: how far the teacher is trusted on labelled rows. ``"auto"`` chooses it from the data for every generation:
            for learners that are linear in their targets in closed form (negative and above 1 allowed), for others on
            rows left out; what cannot be told from noise is 0.
        peers: None, and a generation is taught by the one before it; a number of copies (on bootstrap samples) or a
            list of estimators, and each is taught by the mean of the others, never by itself. The product is
            ``estimator``'s.
        synthetic: number of synthetic rows, each of half the columns of one row and half of another; the teacher labels
            them like ``X_unlabeled``. ``"auto"``: where there are unlabelled rows, as many as make 3,500 of all.
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

    def __init__(
        self,
        estimator: Any = None,
        *,
        generations: int = 2,
        xi: float | str = "auto",
        peers: Any = None,
        synthetic: int | str = 0,
        selection: Selection = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator, generations=generations, xi=xi, peers=peers, selection=selection, audit=audit,
            audit_folds=audit_folds, n_jobs=n_jobs, random_state=random_state,
        )  # fmt: skip
        self.synthetic = synthetic

    def _check(self) -> None:
        super()._check()
        whole = isinstance(self.synthetic, (int, np.integer)) and self.synthetic >= 0
        if not whole and self.synthetic != "auto":
            raise ValueError(f"synthetic is a number of rows from 0 on, or 'auto', not {self.synthetic!r}")

    def _made(self, table: Table) -> int:
        if self.synthetic != "auto":
            return int(self.synthetic)
        given = len(table.y) + table.unknown()
        return max(0, ENOUGH - given) if table.unknown() and not sparse.issparse(table.whole) else 0

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
        half = halfwidth(torch.from_numpy(self.residuals_), coverage) if 0 < coverage < 1 else np.inf
        if half == np.inf:
            most = len(self.residuals_) / (len(self.residuals_) + 1)
            raise ValueError(f"coverage {coverage:g} is not between 0 and {most:.3g}, the most these rows can promise")
        said = self.predict(X)
        return said - half, said + half

    def _best(self, y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
        return held_out(y, without, taught, rows).xi


class SelfDistilledClassifier(ClassifierMixin, SelfDistilled):  # type: ignore[misc]
    """Self-distillation of any classifier with ``predict_proba`` and ``sample_weight``, by soft targets.

    Equation::

        t_k = xi_k p_(k-1)(. | x) + (1 - xi_k) onehot(y)  on labelled rows,  t_k = p_(k-1)(. | u)  on unlabelled ones

    Soft targets are learnt exactly (`chain.fit_soft`): as they are where the learner takes them, else by weighted rows.

    Args:
        estimator: the learner; `usual_learner`, gradient boosting, by default.
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
