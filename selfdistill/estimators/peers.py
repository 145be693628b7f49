"""Regression with unlabelled rows: learners of different kinds label for each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sklearn.compose import make_column_transformer
from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from .distilled import SelfDistilledRegressor
from .labelling import Selection


@dataclass(frozen=True)
class Columns:
    """The names of a pandas or polars frame's columns that are numbers, or of those that are none."""

    numbers: bool

    def __call__(self, frame: Any) -> list[str]:
        def number(name: str) -> bool:
            kind = frame[name].dtype
            return bool(kind.is_numeric() if hasattr(kind, "is_numeric") else getattr(kind, "kind", "O") in "iufb")

        return [name for name in frame.columns if number(name) == self.numbers]


PENALTIES = tuple(10.0**power for power in range(-3, 4))


def usual_peers(frame: bool) -> list[Any]:
    """Extremely randomised trees and ridge regression: they err in other ways than boosting and forests do.

    Missing numbers become medians; in a frame, columns that are no numbers become indicators.
    """

    def numbers() -> Any:
        return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())

    def columns() -> Any:
        if not frame:
            return numbers()
        kinds = OneHotEncoder(handle_unknown="ignore", sparse_output=False)  # what is missing is a kind of its own
        return make_column_transformer((numbers(), Columns(numbers=True)), (kinds, Columns(numbers=False)))

    return [
        make_pipeline(columns(), ExtraTreesRegressor(200)),
        make_pipeline(columns(), RidgeCV(alphas=PENALTIES)),
    ]


class PeerTaughtRegressor(SelfDistilledRegressor):
    """Learners of different kinds label the unlabelled rows for each other, never for themselves.

    Equation::

        f_m learns (x, y) on labelled rows and (u, mean of f_j(u) over j != m) on unlabelled ones

    No confidence gate: keeping the rows that peers agree on was measured to be worse than keeping all of them, because
    agreement is largest where there is least to learn. Without ``X_unlabeled`` it is the learner alone.

    Args:
        estimator: the learner that becomes the product; gradient boosting by default.
        peers: a list of estimators, the more different the better, or a number of copies; by default extremely
            randomised trees and ridge regression.
        generations: rounds of labelling, the first training included.
        selection: a function of the peers' mean (rows,) that gives each unlabelled row a weight in [0, 1].
        audit, audit_folds, n_jobs, random_state: as of `SelfDistilledRegressor`.

    Attributes:
        estimator_, generation_, history_: as of `SelfDistilledRegressor`.

    Source: Krogh and Vedelsby, NIPS 1994, equation 6: what a mean of peers gains over them is how much they differ.

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
        selection: Selection = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator, generations=generations, xi=0.0, peers=peers, selection=selection, audit=audit,
            audit_folds=audit_folds, n_jobs=n_jobs, random_state=random_state,
        )  # fmt: skip

    def _base(self) -> Any:
        return HistGradientBoostingRegressor() if self.estimator is None else self.estimator

    def _rounds(self, unlabelled: bool) -> int:
        return self.generations if unlabelled else 1

    def _peers(self) -> Any:
        return usual_peers(hasattr(self, "feature_names_in_")) if self.peers is None else self.peers
