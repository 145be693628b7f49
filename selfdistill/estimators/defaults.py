"""The learners of this package's defaults: boosting, and peers that err in other ways; for tables of any size."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from .bounded import Bounded, Indicators

PENALTIES = tuple(10.0**power for power in range(-3, 4))


BOOSTED_ROWS = 200_000


PEER_ROWS = 50_000


LEAF = 5e-4  # of the rows: a tree has at most 2,000 leaves, and none is bounded on tables of 2,000 rows


def usual_learner(classify: bool, frame: Any) -> Any:
    """Histogram gradient boosting of at most 200,000 rows, for classes or for values.

    Args:
        classify: is the target a class?
        frame: the rows, or whether they are a pandas or polars frame: then it copes with categories, text, booleans,
            times and gaps as they are. The 254 most frequent kinds of a column are told apart.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"size": [1.0, None] * 50, "kind": ["a", "a", "b", "b"] * 25})
    >>> usual_learner(True, rows).fit(rows, rows["kind"] == "a").score(rows, rows["kind"] == "a")
    1.0
    """
    boosting = HistGradientBoostingClassifier() if classify else HistGradientBoostingRegressor()
    return Bounded(boosting, most_rows=BOOSTED_ROWS, codes=_framed(frame))


def usual_peers(frame: Any, classify: bool = False) -> list[Any]:
    """Extremely randomised trees, and ridge or logistic regression: they err in other ways than boosting and forests.

    Args:
        frame: as of `usual_learner`. For the linear model a frame's other columns become indicators of their 63 most
            frequent kinds, and its missing numbers medians.
        classify: is the target a class?

    Each learns at most 50,000 rows; a leaf of a tree holds at least one in 2,000 of them.
    """
    linear = LogisticRegression(max_iter=1000) if classify else RidgeCV(alphas=PENALTIES)
    trees = (ExtraTreesClassifier if classify else ExtraTreesRegressor)(200, min_samples_leaf=LEAF)
    if _framed(frame):
        gaps = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return [
            Bounded(make_pipeline(gaps, trees), most_rows=PEER_ROWS, codes=True),
            Bounded(make_pipeline(Indicators(), linear), most_rows=PEER_ROWS),
        ]

    def numbers() -> Any:
        return make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())

    return [Bounded(make_pipeline(numbers(), learner), most_rows=PEER_ROWS) for learner in (trees, linear)]


def _framed(frame: Any) -> bool:
    return frame if isinstance(frame, bool) else hasattr(frame, "columns")
