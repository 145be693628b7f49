"""Regression with unlabelled rows: learners of different kinds label them for each other."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from .defaults import usual_peers
from .labelling import Labelling, Selection
from .self_distilled import SelfDistilledRegressor
from .tables import Floats, Rows


class PeerTaughtRegressor(SelfDistilledRegressor):
    """Learners of different kinds label the unlabelled rows for each other, never for themselves.

    Equation::

        f_m learns (x, y) on labelled rows and (u, mean of f_j(u) over j != m) on unlabelled ones;  over all j with
        ``itself``

    No confidence gate: keeping the rows that peers agree on was measured to be worse than keeping all of them, because
    agreement is largest where there is least to learn. Few rows cannot carry what the peers know, so synthetic rows
    are added. Without unlabelled rows it is the learner alone.

    Args:
        estimator: the learner that becomes the product; `usual_learner`, gradient boosting, by default.
        peers: a list of estimators, the more different the better, or a number of copies; by default extremely
            randomised trees and ridge regression.
        generations: rounds of labelling, the first training included.
        itself: a learner's own prediction is one of those in the mean that it learns. That saves where the learner is
            the best of them, and costs where it is the worst.
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

    def __init__(
        self,
        estimator: Any = None,
        *,
        peers: Any = None,
        generations: int = 2,
        itself: bool = False,
        synthetic: int | str = "auto",
        selection: Selection = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator, generations=generations, xi=0.0, peers=peers, synthetic=synthetic, selection=selection,
            audit=audit, audit_folds=audit_folds, n_jobs=n_jobs, random_state=random_state,
        )  # fmt: skip
        self.itself = itself

    def _labelling(self, number: int, of: int, said: Floats | None, y: NDArray[Any], rows: Rows) -> Labelling:
        return Labelling(self.selection, itself=bool(self.itself))

    def _rounds(self, unlabelled: bool) -> int:
        return self.generations if unlabelled else 1

    def _peers(self) -> Any:
        return usual_peers(hasattr(self, "feature_names_in_")) if self.peers is None else self.peers
