"""The public estimators: self-distillation of any learner, peers that teach each other, and self-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from ..data.copies import Floats
from ..evaluation.predict import halfwidth
from .base import BaseSelfDistillation
from .base_learners import usual_peers
from .generations import ClassTargets, RealTargets, check_teachable
from .mixing_weight import held_out_weight, log_loss_weight
from .pseudo_labels import MostConfident, PseudoLabels, fit_temperature
from .tables import RowWeights, TrainingTable, class_targets, has_label, real_targets
from .wrappers import delegated

ENOUGH_ROWS = 3500  # with which a student takes over what its teachers know


@dataclass(eq=False, repr=False, kw_only=True)
class SelfDistilledRegressor(RegressorMixin, BaseSelfDistillation):  # type: ignore[misc]
    """Self-distillation of any regressor: each generation learns from the last one and from the labels.

    Equation::

        t_k = xi_k f_(k-1)(x) + (1 - xi_k) y  on labelled rows,  t_k = f_(k-1)(u)  on unlabelled ones

    Args:
        estimator: the learner; `usual_learner`, gradient boosting, by default.
        generations: trainings, the first one included.
        xi: the weight of the teacher on labelled rows. ``"auto"`` estimates it for every generation: in closed form for
            learners that are linear in their targets (negative and above 1 allowed), for others on held-out rows. It is
            0 where the gain is within its own noise.
        peers: None, and a generation is taught by the one before it; a number of copies (on bootstrap samples) or a
            list of estimators, and each is taught by the mean of the others, never by itself. The final
            model is ``estimator``'s.
        include_self: with peers, include a learner's own prediction in the mean that it learns.
        synthetic: number of synthetic rows, each of half the columns of one row and half of another; the teacher labels
            them like ``X_unlabeled``. ``"auto"``: where there are unlabelled rows, as many as make 3,500 of all.
        selection: a function of the teacher's predictions (rows,) that gives each unlabelled row a weight in [0, 1].
        audit: ``"safe"``, ``"strict"`` or ``"off"``: which generations may teach and become the final model, by their
            errors on folds that they were not trained on.
        audit_folds: the number of folds, each of which costs one training more for each generation; or a share between
            0 and 1 of the distinct rows, which is held out once, for one training more. ``"auto"`` is 5 folds up to
            20,000 labelled rows, and beyond that a share of 5,000 rows.
        n_jobs: processes for the folds.
        random_state: seeds the learner and the folds.

    Attributes:
        estimator_: the final model. generation_: its number. xi_: the mixing weight of each later generation.
        residuals_: label minus prediction of the held-out labelled rows, in their order; None without an audit.
        history_: for each generation its loss, xi and decision; ``report()`` prints them.

    Source: Mobahi, Farajtabar and Bartlett, NeurIPS 2020; xi by Dang, Patil and Rinaldo, ICML 2026, equations 17-19.

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> X, y = load_diabetes(return_X_y=True)
    >>> model = SelfDistilledRegressor(Ridge(1.0)).fit(X, y)  # too strong a penalty: the best xi is negative
    >>> bool(model.xi_[0] < 0), bool(model.score(X, y) > Ridge(1.0).fit(X, y).score(X, y))
    (True, True)
    """

    _measure = "mse"

    synthetic: int | str = 0

    def _check(self) -> None:
        super()._check()
        number = isinstance(self.synthetic, (int, np.integer)) and self.synthetic >= 0
        if not number and self.synthetic != "auto":
            raise ValueError(f"synthetic is a number of rows from 0 on, or 'auto', not {self.synthetic!r}")

    def _n_synthetic(self, table: TrainingTable) -> int:
        if self.synthetic != "auto":
            return int(self.synthetic)
        if not table.n_unlabelled or sparse.issparse(table.X):
            return 0
        return max(0, ENOUGH_ROWS - len(table.y) - table.n_unlabelled)

    def _targets(self, y: Any) -> Floats:
        return real_targets(y, self)

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_unlabeled: Any = None, groups: Any = None, time: Any = None
    ) -> SelfDistilledRegressor:
        """Train; the teacher labels ``X_unlabeled`` (rows, columns), and the rows where y is None or nan.

        Equal rows share a fold of the audit, and so do rows of one of the ``groups`` (rows,), such as patients. With
        the ``time`` of each row (rows,) the latest rows are held out instead.

        Raises:
            ValueError: the arguments do not fit together.
        """
        self._fit(RealTargets(), self._table(X, y, sample_weight, X_unlabeled, groups, time))
        return self

    def predict_interval(self, X: Any, coverage: float = 0.9) -> tuple[Floats, Floats]:
        """Lower and upper bounds (rows,) that hold a new row's value with about this probability.

        The prediction, plus and minus the conformal quantile of the errors on held-out rows. New rows must come from
        the distribution of the labelled ones; the coverage is that over all rows, not for each kind of row.

        Source: Barber, Candès, Ramdas and Tibshirani, Predictive Inference with the Jackknife+, Annals of Statistics
        49, 2021 (the cross-validation of section 3, around the model of all rows).

        Raises:
            ValueError: no row was held out, or too few for this coverage.

        >>> from sklearn.datasets import load_diabetes
        >>> from sklearn.linear_model import Ridge
        >>> X, y = load_diabetes(return_X_y=True)
        >>> low, high = SelfDistilledRegressor(Ridge(0.1)).fit(X[:300], y[:300]).predict_interval(X[300:])
        >>> bool(0.8 < ((low <= y[300:]) & (y[300:] <= high)).mean() < 1.0)
        True
        """
        check_is_fitted(self, "estimator_")
        if self.residuals_ is None:
            raise ValueError("no row was held out to measure errors; fit with an audit and 2 generations or more")
        half = halfwidth(torch.from_numpy(self.residuals_), coverage) if 0 < coverage < 1 else np.inf
        if half == np.inf:
            most = len(self.residuals_) / (len(self.residuals_) + 1)
            raise ValueError(f"coverage {coverage:g} is not between 0 and {most:.3g}, the most these rows can promise")
        prediction = self.predict(X)
        return prediction - half, prediction + half

    def _best_xi(self, y: NDArray[Any], teacher: Floats, student: Floats, rows: RowWeights) -> float:
        return held_out_weight(y, teacher, student, rows).xi


@dataclass(eq=False, repr=False, kw_only=True)
class SelfDistilledClassifier(ClassifierMixin, BaseSelfDistillation):  # type: ignore[misc]
    """Self-distillation of any classifier with ``predict_proba`` and ``sample_weight``, by soft targets.

    Equation::

        t_k = xi_k p_(k-1)(. | x) + (1 - xi_k) onehot(y)  on labelled rows,  t_k = p_(k-1)(. | u)  on unlabelled ones

    Soft targets are learnt exactly (`generations.fit_soft`): as they are where the learner takes them, else by weighted
    rows.

    Args:
        estimator: the learner; `usual_learner`, gradient boosting, by default.
        generations: trainings, the first one included.
        xi: the weight of the teacher on labelled rows, from 0 to 1; ``"auto"`` minimises the log loss on held-out rows,
            and is 0 where the gain is within its own noise.
        peers: None; a number of copies, or a list of estimators: each is taught by the mean of the others.
        include_self: as of `SelfDistilledRegressor`.
        selection: the least confidence of the teacher at which an unlabelled row is learnt, or a function of the
            predictions (rows, classes) that gives each row a weight in [0, 1].
        audit, audit_folds, n_jobs, random_state: as of `SelfDistilledRegressor`; audited by accuracy, since labels that
            are wrong at random still rank models by it.
        unlabelled: the value of y that marks a row without a label, as in scikit-learn's SelfTrainingClassifier; among
            strings its text. None: no value does, and -1 is a class. Beside 1 alone -1 is always a class.

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

    unlabelled: Any = -1

    def _has_label(self, y: NDArray[Any]) -> NDArray[np.bool_]:
        return has_label(y, self.unlabelled, self)

    def _targets(self, y: Any) -> NDArray[Any]:
        self.classes_, codes = class_targets(y, self)
        return codes

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, X_unlabeled: Any = None, groups: Any = None, time: Any = None
    ) -> SelfDistilledClassifier:
        """Train; the teacher labels ``X_unlabeled`` (rows, columns) and rows where y is None, nan or ``unlabelled``.

        ``groups`` and ``time`` are as of `SelfDistilledRegressor.fit`.

        Raises:
            ValueError: the arguments do not fit together.
        """
        table = self._table(X, y, sample_weight, X_unlabeled, groups, time)  # first, as it sets the classes
        self._fit(ClassTargets(self.classes_), table)
        return self

    def _check(self) -> None:
        super()._check()
        if self.xi != "auto" and not 0.0 <= float(self.xi) <= 1.0:
            raise ValueError(
                f"xi = {self.xi} gives some class a negative weight, and the cross-entropy of a negative weight has no "
                "lower bound: the loss would fall without end as that class is ruled out; give xi from 0 to 1"
            )
        if self.generations > 1:
            name = type(self._base()).__name__
            if not hasattr(self._base(), "predict_proba"):
                raise ValueError(f"{name} has no predict_proba to teach with; wrap it in CalibratedClassifierCV")
            if self._soft():
                check_teachable(self._base())

    def _soft(self) -> bool:
        """Whether targets are soft."""
        return True

    def _best_xi(self, y: NDArray[Any], teacher: Floats, student: Floats, rows: RowWeights) -> float:
        return log_loss_weight(y, teacher, student, rows)

    @delegated("predict_proba")  # type: ignore[untyped-decorator]
    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes), in the order of ``classes_``."""
        check_is_fitted(self, "estimator_")
        return ClassTargets(self.classes_).predict(self.estimator_, self._inputs(X))


@dataclass(eq=False, repr=False, kw_only=True)
class PeerTaughtRegressor(SelfDistilledRegressor):
    """Learners of different kinds label the unlabelled rows for each other, never for themselves.

    Equation::

        f_m learns (x, y) on labelled rows and (u, mean of f_j(u) over j != m) on unlabelled ones;  over all j with
        ``include_self``

    There is no confidence gate: in measurements, keeping only the rows that peers agree on was worse than keeping all,
    because agreement is largest where there is least to learn. Few rows cannot carry what the peers know, so synthetic
    rows are added. Without unlabelled rows it is the learner alone.

    Args:
        estimator: the learner that becomes the final model; `usual_learner`, gradient boosting, by default.
        peers: a list of estimators, the more different the better, or a number of copies; by default extremely
            randomised trees and ridge regression.
        generations: rounds of labelling, the first training included.
        include_self: as of `SelfDistilledRegressor`. That helps where the learner is the best of them, and hurts where
            it is the worst.
        synthetic: number of synthetic rows, as of `SelfDistilledRegressor`; by default as many as make 3,500 of all.
        selection: a function of the mean (rows,) that gives each unlabelled row a weight in [0, 1].
        audit, audit_folds, n_jobs, random_state: as of `SelfDistilledRegressor`.

    Attributes:
        estimator_, generation_, history_: as of `SelfDistilledRegressor`.

    Source: Krogh and Vedelsby, NIPS 1994, equation 6: what a mean of peers gains over them is how much they differ;
    Bucila, Caruana and Niculescu-Mizil, Model Compression, KDD 2006, for synthetic rows (theirs are made of neighbours,
    these of any two rows).

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.tree import DecisionTreeRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> alone = DecisionTreeRegressor(random_state=0).fit(X[:60], y[:60])
    >>> taught = PeerTaughtRegressor(DecisionTreeRegressor(), random_state=0).fit(X[:60], y[:60], X_unlabeled=X[60:300])
    >>> bool(taught.score(X[300:], y[300:]) > alone.score(X[300:], y[300:]))
    True
    """

    _needs_unlabelled = True

    xi: float | str = field(default=0.0, init=False)  # labels are trusted: peers teach on unlabelled rows alone
    synthetic: int | str = "auto"

    def _peers(self) -> Any:
        return usual_peers(hasattr(self, "feature_names_in_")) if self.peers is None else self.peers


@dataclass(eq=False, repr=False, kw_only=True)
class SelfTrainedClassifier(SelfDistilledClassifier):
    """Self-training with revocable pseudo-labels, a curriculum, class balance, calibration and an audit.

    Stage s of S trains a new model on the labels and the most confident s / S of the unlabelled rows, which the stage
    before labels anew. So no pseudo-label is final, unlike in scikit-learn's SelfTrainingClassifier.

    Args:
        estimator: the learner, with ``predict_proba``; logistic regression by default. With ``hard`` labels it needs no
            ``sample_weight``.
        generations: trainings, the first (labels alone) included.
        hard: learn the best class; False learns the whole distribution.
        balanced: as many rows of every predicted class.
        calibrate: fit the teacher's temperature on held-out rows before it labels; this matters for soft labels, for
            peers, and for a ``selection`` by confidence.
        selection: replaces the curriculum: the least confidence of a label, or a function of the predictions
            (rows, classes) that gives each row a weight in [0, 1].
        peers: None, a number of copies, or a list of estimators, which label for each other and not for themselves.
        include_self, audit, audit_folds, n_jobs, random_state, unlabelled: as of `SelfDistilledClassifier`.

    Attributes:
        estimator_, classes_, generation_, history_: as of `SelfDistilledClassifier`; ``history_`` has the temperature.

    Source: Cascante-Bonilla et al., Curriculum Labeling, AAAI 2021, algorithm 1; class balance as in Xie et al., Noisy
    Student, CVPR 2020.

    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> model = SelfTrainedClassifier(LogisticRegression(max_iter=500), random_state=0)
    >>> model = model.fit(X[:100] / 16, y[:100], X_unlabeled=X[100:900] / 16)
    >>> alone = LogisticRegression(max_iter=500).fit(X[:100] / 16, y[:100])
    >>> bool(model.score(X[900:] / 16, y[900:]) > alone.score(X[900:] / 16, y[900:]))
    True
    """

    _needs_unlabelled = True

    xi: float | str = field(default=0.0, init=False)  # labels are trusted: the teacher labels unlabelled rows alone
    generations: int = 6
    hard: bool = True
    balanced: bool = True
    calibrate: bool = True

    def _base(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator

    def _soft(self) -> bool:
        return not self.hard

    def _pseudo_labels(
        self, generation: int, last: int, prediction: Floats | None, y: NDArray[Any], rows: RowWeights
    ) -> PseudoLabels:
        temperature = 1.0
        if self.calibrate and prediction is not None:
            temperature = fit_temperature(prediction, y, rows)
        selection = MostConfident(generation / last, self.balanced) if self.selection is None else self.selection
        return PseudoLabels(selection, self.hard, temperature, bool(self.include_self))
