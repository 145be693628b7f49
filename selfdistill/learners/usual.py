"""Stand-in until the estimators have it."""

from __future__ import annotations

from typing import Any


def usual_learner(classify: bool, frame: Any, **options: Any) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kind = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
    return kind(categorical_features="from_dtype", **options)


def usual_columns(frame: Any) -> Any:
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    from ..estimators.peers import Columns

    numbers = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    kinds = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return make_column_transformer((numbers, Columns(numbers=True)), (kinds, Columns(numbers=False)))


def usual_peers(frame: Any, classify: bool) -> list[Any]:
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    from ..estimators import peers

    if not classify:
        return peers.usual_peers(True)
    return [
        make_pipeline(usual_columns(frame), ExtraTreesClassifier(200)),
        make_pipeline(usual_columns(frame), LogisticRegression(max_iter=1000)),
    ]
