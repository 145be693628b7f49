"""Self-training: a classifier labels the unlabelled rows for its next generation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from .labelling import Labelling, Selection, Share, best_temperature
from .self_distilled import SelfDistilledClassifier
from .tables import Floats, Rows


class SelfTrainedClassifier(SelfDistilledClassifier):
    """Self-training with labels that can be taken back, a curriculum, class balance, calibration and an audit.

    Stage s of S starts afresh and learns the labels and the most confident s / S of the unlabelled rows, labelled
    anew by the stage before: no pseudo-label is for ever, unlike in scikit-learn's SelfTrainingClassifier.

    Args:
        estimator: the learner, with ``predict_proba``; logistic regression by default. With ``hard`` labels it needs no
            ``sample_weight``.
        generations: trainings, the first (labels alone) included.
        hard: learn the best class; False learns the whole distribution.
        balanced: as many rows of every predicted class.
        calibrate: temper the teacher by the log loss on rows it has not learnt from, before it labels; this matters for
            soft labels, for peers, and for a ``selection`` by confidence.
        selection: instead of the curriculum, the least confidence of a label, or a function of the predictions
            (rows, classes) that gives each row a weight in [0, 1].
        peers: None, a number of copies, or a list of estimators, which label for each other and never for themselves.
        audit, audit_folds, n_jobs, random_state: as of `SelfDistilledClassifier`.

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

    def __init__(
        self,
        estimator: Any = None,
        *,
        generations: int = 6,
        hard: bool = True,
        balanced: bool = True,
        calibrate: bool = True,
        selection: Selection = None,
        peers: Any = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator, generations=generations, xi=0.0, peers=peers, selection=selection, audit=audit,
            audit_folds=audit_folds, n_jobs=n_jobs, random_state=random_state,
        )  # fmt: skip
        self.hard = hard
        self.balanced = balanced
        self.calibrate = calibrate

    def _base(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator

    def _rounds(self, unlabelled: bool) -> int:
        return self.generations if unlabelled else 1

    def _soft(self) -> bool:
        return not self.hard

    def _labelling(self, number: int, of: int, said: Floats | None, y: NDArray[Any], rows: Rows) -> Labelling:
        tempering = self.calibrate and said is not None
        temperature = best_temperature(np.asarray(said), y, rows) if tempering else 1.0
        selection = Share(number / of, self.balanced) if self.selection is None else self.selection
        return Labelling(selection, self.hard, temperature)
