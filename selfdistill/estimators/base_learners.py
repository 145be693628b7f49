"""The learners that have a name: those of scikit-learn, ready for tables of any size, and their means.

The defaults are boosting, and peers whose errors differ from its own. scikit-learn is imported when a learner is made:
whether a name is that of a learner is asked of every request.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import RecipeError
from ..io.expressions import Count, Positive, Range, Size, checked, expression_name, one_line, parse_expression
from ..models.registry import function_of, parse

NETWORKS = "mlp"  # what --model names where a network is asked for in place of a learner


ROWS_PER_LEAF = 15  # labelled rows for each one that a leaf of boosting must hold, up to scikit-learn's default


PENALTIES = tuple(10.0**power for power in range(-3, 4))


BOOSTED_ROWS = 200_000


ALONE = "the learner alone"


STACK_TREES = 75  # of a forest in a stack: twice as many gained nothing and cost as much


STACK_NEIGHBOURS = 10


RARE = 3  # rows of a category below which a learner of a stack takes it for one of the rest


PEER_ROWS = 50_000


LEAF = 5e-4  # of the rows: a tree has at most 2,000 leaves, and on tables of 2,000 rows there is no limit


# the defaults ---------------------------------------------------------------------------------------------------------


def usual_learner(classify: bool, frame: Any) -> Any:
    """Histogram gradient boosting of at most 200,000 rows, for classes or for values.

    Args:
        classify: whether the target is a class.
        frame: the rows, or whether they are a pandas or polars frame. Of a frame it takes categories, text, booleans,
            times and missing values as they are, and tells the 254 most frequent categories of a column apart.

    Returns:
        The estimator, not fitted.

    >>> import pandas as pd
    >>> rows = pd.DataFrame({"size": [1.0, None] * 50, "kind": ["a", "a", "b", "b"] * 25})
    >>> usual_learner(True, rows).fit(rows, rows["kind"] == "a").score(rows, rows["kind"] == "a")
    1.0
    """
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    from .wrappers import RowLimit

    boosting = HistGradientBoostingClassifier() if classify else HistGradientBoostingRegressor()
    return RowLimit(boosting, most_rows=BOOSTED_ROWS, codes=_is_frame(frame))


def usual_peers(frame: Any, classify: bool = False) -> list[Any]:
    """Extremely randomised trees, and ridge or logistic regression: their errors differ from those of boosting.

    Args:
        frame: as for `usual_learner`. The linear model gets a frame's other columns as indicators of their 63 most
            frequent categories, and medians for missing numbers.
        classify: whether the target is a class.

    Returns:
        The estimators, not fitted. Each fits at most 50,000 rows; a leaf of a tree holds at least one in 2,000 of them.
    """
    return [_peer(_extra_trees(classify, 200), frame), _peer(_linear_model(classify), frame, indicators=True)]


def stack_learners(own: Any, frame: Any, classify: bool, rows: int) -> dict[str, Any]:
    """The learners of a stack by name: the learner itself, and of each other kind one.

    Args:
        own: the learner, not fitted; it comes first, as "the learner alone".
        frame: as for `usual_learner`.
        classify: whether the target is a class.
        rows: the number of labelled rows.

    Returns:
        The estimators, not fitted. Categories of fewer than 3 labelled rows are one for all learners but the first.

    >>> from sklearn.linear_model import Ridge
    >>> list(stack_learners(Ridge(), False, False, 100))
    ['the learner alone', 'boosting', 'extra trees', 'forest', 'neighbours']
    """
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
    from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    from .wrappers import innermost

    forest = (RandomForestClassifier if classify else RandomForestRegressor)(STACK_TREES, min_samples_leaf=LEAF)
    nearest = (KNeighborsClassifier if classify else KNeighborsRegressor)(STACK_NEIGHBOURS, weights="distance")
    learners = {
        "boosting": learner("boosting", classify, frame, rows),
        "extra trees": _peer(_extra_trees(classify, STACK_TREES), frame, least=RARE),
        "forest": _peer(forest, frame, least=RARE),
        "linear": _peer(_linear_model(classify), frame, indicators=True, least=RARE),
        "neighbours": _peer(nearest, frame, indicators=True, least=RARE),
    }
    linear = (LogisticRegression, Ridge, RidgeCV)
    same = type(innermost(own))
    kinds = {name: type(innermost(peer)) for name, peer in learners.items()}
    return {ALONE: own} | {
        name: peer
        for name, peer in learners.items()
        if kinds[name] is not same and not (name == "linear" and same in linear)
    }


def _extra_trees(classify: bool, trees: int) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    return (ExtraTreesClassifier if classify else ExtraTreesRegressor)(trees, min_samples_leaf=LEAF)


def _linear_model(classify: bool) -> Any:
    from sklearn.linear_model import LogisticRegression, RidgeCV

    return LogisticRegression(max_iter=1000) if classify else RidgeCV(alphas=PENALTIES)


def _peer(bare: Any, frame: Any, indicators: bool = False, least: int = 1) -> Any:
    """A learner of numbers for the columns of a frame, as codes or as indicators, or for an array."""
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from .wrappers import IndicatorEncoder, RowLimit

    impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
    if not _is_frame(frame):
        return RowLimit(make_pipeline(impute, StandardScaler(), bare), most_rows=PEER_ROWS)
    if indicators:
        return RowLimit(make_pipeline(IndicatorEncoder(least=least), bare), most_rows=PEER_ROWS)
    return RowLimit(make_pipeline(impute, bare), most_rows=PEER_ROWS, codes=True, least=least)


def _is_frame(frame: Any) -> bool:
    return frame if isinstance(frame, bool) else hasattr(frame, "columns")


# learners by name -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaseLearner:
    """A learner by name: how it is made, the settings that are worth tuning, and how it takes the columns of a table.

    ``bare`` makes the estimator of columns of numbers, for classes or for values. ``columns`` is ``"all"`` (codes and
    missing values as they are), ``"codes"`` (missing values replaced), or ``"indicators"``.
    """

    bare: Callable[[bool], Any]  # classify -> estimator
    settings: Mapping[str, Sequence[Any]]
    columns: str = "indicators"


def boosting(iterations: Count = 100, rate: Positive = 0.1) -> BaseLearner:
    """Gradient boosting over histograms; takes categories and missing values as they are."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
        return kind(max_iter=iterations, learning_rate=rate)

    settings = {
        "learning_rate": (0.02, 0.05, 0.1, 0.2),
        "max_iter": (50, 100, 200),
        "max_leaf_nodes": (4, 8, 15, 31),
        "min_samples_leaf": (3, 5, 10, 20),
        "l2_regularization": (0.0, 0.1, 1.0, 10.0),
    }
    return BaseLearner(make, settings, "all")


def forest(trees: Annotated[int, Range(1, 100_000)] = 200) -> BaseLearner:
    """A random forest."""
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    return _trees(RandomForestClassifier, RandomForestRegressor, trees)


def extra_trees(trees: Annotated[int, Range(1, 100_000)] = 200) -> BaseLearner:
    """Extremely randomised trees."""
    from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

    return _trees(ExtraTreesClassifier, ExtraTreesRegressor, trees)


def _trees(classifier: Any, regressor: Any, trees: Annotated[int, Range(1, 100_000)]) -> BaseLearner:
    settings = {
        "min_samples_leaf": (1, 2, 3, 5, 10),
        "max_features": (0.2, 0.33, 0.5, 0.75, 1.0),
        "max_depth": (None, 5, 10),
    }
    return BaseLearner(lambda classify: (classifier if classify else regressor)(trees), settings, "codes")


def linear(penalty: Positive = 1.0) -> BaseLearner:
    """Ridge regression, or logistic regression for classes, on standardised columns."""

    def make(classify: bool) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        return LogisticRegression(C=1.0 / penalty, max_iter=1000) if classify else Ridge(penalty)

    powers = [10.0 ** (k / 2) for k in range(-6, 7)]
    return BaseLearner(make, {"C": powers, "alpha": powers})


def neighbours(number: Size = 5) -> BaseLearner:
    """The nearest rows."""
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    settings = {"n_neighbors": (1, 3, 5, 7, 10, 15, 25), "weights": ("uniform", "distance"), "p": (1, 2)}
    return BaseLearner(lambda classify: (KNeighborsClassifier if classify else KNeighborsRegressor)(number), settings)


#: The learners by name.
LEARNERS: dict[str, Callable[..., BaseLearner]] = {
    learner.__name__: learner for learner in (boosting, extra_trees, forest, linear, neighbours)
}


def is_named(spec: str) -> bool:
    """Whether this is the name of a learner, with or without options.

    >>> is_named("boosting(iterations=50)"), is_named("mlp")
    (True, False)
    """
    return expression_name(spec) in LEARNERS


def base_learner(spec: str) -> BaseLearner:
    """The learner of this name.

    Raises:
        RecipeError: no such learner, or an option that it has not.
    """
    learner = parse_expression(spec, {name: checked(known) for name, known in LEARNERS.items()}, kind="model")
    assert isinstance(learner, BaseLearner)
    return learner


def learner(spec: str, classify: bool, frame: Any, rows: int | None = None) -> Any:
    """The estimator of a name such as "boosting" or "forest(trees=500)", or of a "module:function" that returns one.

    Args:
        spec: the name, with or without options.
        classify: whether the target is a class.
        frame: the rows, whose columns it must take.
        rows: the number of labelled rows. With few of them boosting makes smaller leaves, as scikit-learn's least leaf
            of 20 rows makes a tree of 30 rows a constant.

    Returns:
        The estimator, not fitted.

    Raises:
        RecipeError: no such learner or option, or the function returns no estimator for such targets.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"size": [1.0, 2.0, None], "kind": ["a", None, "b"]})
    >>> learner("forest(trees=5)", False, table).fit(table, [1.0, 2.0, 3.0]).predict(table).shape
    (3,)
    """
    from sklearn.base import is_classifier, is_regressor

    if is_named(spec):
        return _for_columns(base_learner(spec), classify, frame, rows)
    estimator = from_function(spec)
    if estimator is None:
        raise RecipeError(f"unknown learner {spec!r}; known: {', '.join(LEARNERS)}, or module:function")
    if not (is_classifier if classify else is_regressor)(estimator):
        kind = "classifier" if classify else "regressor"
        raise RecipeError(f"{spec} returned {type(estimator).__name__}, which is no {kind}; the target asks for one")
    return estimator


def _for_columns(learner: BaseLearner, classify: bool, frame: Any, rows: int | None) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    from .wrappers import FrameEncoder, IndicatorEncoder

    bare = learner.bare(classify)
    if learner.columns == "indicators":
        return make_pipeline(IndicatorEncoder(), bare)
    if learner.columns == "codes":
        impute = SimpleImputer(strategy="median", add_indicator=True, keep_empty_features=True)
        return make_pipeline(FrameEncoder(), impute, bare)
    estimator = usual_learner(classify, frame)
    options = {name: getattr(bare, name) for name in ("max_iter", "learning_rate")}
    if rows is not None:
        options["min_samples_leaf"] = max(2, min(bare.min_samples_leaf, rows // ROWS_PER_LEAF))
    return estimator.set_params(**{full_name(estimator, name): value for name, value in options.items()})


def full_name(estimator: Any, setting: str) -> str:
    """The full name of a setting, wherever in a pipeline it is; "" where there is none.

    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> full_name(make_pipeline(Ridge()), "alpha")
    'ridge__alpha'
    """
    names = [key for key in estimator.get_params() if key == setting or key.endswith(f"__{setting}")]
    return min(names, key=len, default="")


def grid(spec: str, estimator: Any) -> dict[str, Sequence[Any]]:
    """The settings of a named learner that are worth tuning, by their full names in ``estimator``."""
    names = {full_name(estimator, name): list(values) for name, values in base_learner(spec).settings.items()}
    return {name: values for name, values in names.items() if name}


def from_function(spec: str) -> Any:
    """The estimator that a "module:function" returns; None if it makes anything else."""
    if ":" not in spec:
        return None
    build = parse(spec, (1,), 1)
    function = function_of(build.spec)
    parameters = inspect.signature(function).parameters.values()
    if any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters):
        return None  # it asks for a shape: a network
    try:
        made = function(**dict(build.options))
    except Exception as error:  # another's code may raise anything
        what = f"{type(error).__name__}: {one_line(error)}"
        raise RecipeError(f"model {spec} cannot be built ({what})") from error
    return made if hasattr(made, "fit") and hasattr(made, "get_params") else None
