"""The learners that have a name: what scikit-learn has, made ready for raw tables.

The mean of several learners, as one estimator: an undistilled ensemble to compare with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone

from ..errors import RecipeError
from ..io.expressions import expression_name, one_line, parse_expression
from .tables import take

ROWS_A_LEAF = 15  # labelled rows for each one in a leaf of boosting, as far as scikit-learn's default goes


Bare = Callable[[bool], Any]  # classify -> an estimator for columns of numbers


@dataclass(frozen=True)
class Kind:
    """A learner: how it is made, which of its settings are worth tuning, and what it is given of a table.

    ``given`` is ``"all"`` (codes and gaps as they are), ``"codes"`` (without gaps), or ``"indicators"``.
    """

    bare: Bare
    settings: dict[str, Sequence[Any]]
    given: str = "indicators"


def boosting(iterations: int = 100, rate: float = 0.1) -> Kind:
    """Gradient boosting over histograms; takes categories and missing values as they are."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

        kind = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
        return kind(max_iter=iterations, learning_rate=rate)

    settings: dict[str, Sequence[Any]] = {
        "learning_rate": (0.02, 0.05, 0.1, 0.2), "max_iter": (50, 100, 200), "max_leaf_nodes": (4, 8, 15, 31),
        "min_samples_leaf": (3, 5, 10, 20), "l2_regularization": (0.0, 0.1, 1.0, 10.0),
    }  # fmt: skip
    return Kind(make, settings, "all")


def forest(trees: int = 200) -> Kind:
    """A random forest."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        return (RandomForestClassifier if classify else RandomForestRegressor)(trees)

    return Kind(make, _OF_TREES, "codes")


def extra_trees(trees: int = 200) -> Kind:
    """Extremely randomised trees."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        return (ExtraTreesClassifier if classify else ExtraTreesRegressor)(trees)

    return Kind(make, _OF_TREES, "codes")


_OF_TREES: dict[str, Sequence[Any]] = {
    "min_samples_leaf": (1, 2, 3, 5, 10), "max_features": (0.2, 0.33, 0.5, 0.75, 1.0), "max_depth": (None, 5, 10),
}  # fmt: skip


def linear(penalty: float = 1.0) -> Kind:
    """Ridge regression, or logistic regression for classes, on standardised columns."""

    def make(classify: bool) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        return LogisticRegression(C=1.0 / penalty, max_iter=1000) if classify else Ridge(penalty)

    powers = [10.0 ** (k / 2) for k in range(-6, 7)]
    return Kind(make, {"C": powers, "alpha": powers})


def neighbours(number: int = 5) -> Kind:
    """The nearest rows."""

    def make(classify: bool) -> Any:
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        return (KNeighborsClassifier if classify else KNeighborsRegressor)(number)

    return Kind(make, {"n_neighbors": (1, 3, 5, 7, 10, 15, 25), "weights": ("uniform", "distance"), "p": (1, 2)})


#: What is known by name.
LEARNERS: dict[str, Callable[..., Kind]] = {
    "boosting": boosting, "extra_trees": extra_trees, "forest": forest, "linear": linear, "neighbours": neighbours,
}  # fmt: skip


def named(spec: str) -> bool:
    """Is this the name of a learner, with or without options?

    >>> named("boosting(iterations=50)"), named("mlp")
    (True, False)
    """
    return expression_name(spec) in LEARNERS


def kind(spec: str) -> Kind:
    """The learner of this name.

    Raises:
        RecipeError: no such learner, or an option that it has not.
    """
    found = parse_expression(spec, LEARNERS, kind="model")
    assert isinstance(found, Kind)
    return found


def learner(spec: str, classify: bool, frame: Any, rows: int | None = None) -> Any:
    """The estimator that ``spec`` names, for such tables: "boosting", "forest(trees=500)", or "module:function" that
    returns one. ``rows`` is how many have labels: with few, boosting makes smaller leaves, as scikit-learn's 20 rows a
    leaf are a constant for 30 of them.

    Raises:
        RecipeError: no such learner or option, or something that is no estimator of this task.

    >>> import pandas as pd
    >>> table = pd.DataFrame({"size": [1.0, 2.0, None], "kind": ["a", None, "b"]})
    >>> learner("forest(trees=5)", False, table).fit(table, [1.0, 2.0, 3.0]).predict(table).shape
    (3,)
    """
    if named(spec):
        return _ready(kind(spec), classify, frame, rows)
    made = foreign(spec)
    if made is None:
        raise RecipeError(f"unknown learner {spec!r}; known: {', '.join(LEARNERS)}, or module:function")
    from sklearn.base import is_classifier, is_regressor

    fits = is_classifier(made) if classify else is_regressor(made)
    if not fits:
        wanted = "classifier" if classify else "regressor"
        raise RecipeError(f"{spec} returned {type(made).__name__}, which is no {wanted}; the target asks for one")
    return made


def _ready(found: Kind, classify: bool, frame: Any, rows: int | None) -> Any:
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline

    from .bounded import Codes, Indicators
    from .defaults import usual_learner

    bare = found.bare(classify)
    if found.given == "indicators":
        return make_pipeline(Indicators(), bare)
    if found.given == "codes":
        return make_pipeline(Codes(), SimpleImputer(strategy="median", add_indicator=True), bare)
    made = usual_learner(classify, frame)
    options = {name: getattr(bare, name) for name in ("max_iter", "learning_rate")}
    if rows is not None:
        options["min_samples_leaf"] = max(2, min(bare.min_samples_leaf, rows // ROWS_A_LEAF))
    return made.set_params(**{own(made, name): value for name, value in options.items()})


def own(made: Any, name: str) -> str:
    """A setting's whole name, wherever in a pipeline it is.

    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.pipeline import make_pipeline
    >>> own(make_pipeline(Ridge()), "alpha")
    'ridge__alpha'
    """
    found = [key for key in made.get_params() if key == name or key.endswith(f"__{name}")]
    return min(found, key=len, default="")


def grid(spec: str, made: Any) -> dict[str, Sequence[Any]]:
    """Settings of a named learner that are worth tuning, by their whole names in ``made``."""
    return {own(made, name): list(values) for name, values in kind(spec).settings.items() if own(made, name)}


def foreign(spec: str) -> Any:
    """What a function of the user's returns if it is an estimator of scikit-learn, else None."""
    from ..models.registry import function_of, parse

    if ":" not in spec:
        return None
    build = parse(spec, (1,), 1)
    function = function_of(build.spec)
    if any(p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD for p in _parameters(function)):
        return None  # it asks for a shape: a network
    try:
        made = function(**dict(build.options))
    except Exception as error:  # another's code may raise anything
        what = f"{type(error).__name__}: {one_line(error)}"
        raise RecipeError(f"model {spec} cannot be built ({what})") from error
    return made if hasattr(made, "fit") and hasattr(made, "get_params") else None


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())


class Mean(BaseEstimator):  # type: ignore[misc]
    """Members fitted on all rows or, with a ``seed``, each on a bootstrap sample of its own; predictions averaged.

    Source: Breiman, Bagging Predictors, Machine Learning 24, 1996.

    >>> from sklearn.linear_model import Ridge
    >>> X, y = np.arange(6.0)[:, None], np.arange(6.0)
    >>> Mean([Ridge(0.0), Ridge(0.0)]).fit(X, y).predict(X).round(6).tolist()
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(self, members: list[Any], seed: int | None = None) -> None:
        self.members = members
        self.seed = seed

    def fit(self, X: Any, y: NDArray[Any]) -> Mean:
        random = None if self.seed is None else np.random.RandomState(self.seed)
        self.fitted_ = [self._one(member, X, y, random) for member in self.members]
        if hasattr(self.fitted_[0], "classes_"):
            self.classes_ = np.unique(y)
        return self

    def _one(self, member: Any, X: Any, y: NDArray[Any], random: np.random.RandomState | None) -> Any:
        if random is None:
            return clone(member).fit(X, y)
        while len(np.unique(y[(places := random.randint(len(y), size=len(y)))])) < 2:
            pass  # a sample of one class or value teaches nothing
        return clone(member).fit(take(X, places), y[places])

    def predict(self, X: Any) -> NDArray[np.float64]:
        """The mean of the values predicted, (rows,)."""
        return np.asarray(np.mean([model.predict(X) for model in self.fitted_], axis=0))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """The mean of the probabilities, (rows, classes); 0 for a class that a member has not seen."""
        found = np.zeros((len(X), len(self.classes_)))
        for model in self.fitted_:
            found[:, np.searchsorted(self.classes_, model.classes_)] += model.predict_proba(X)
        return found / len(self.fitted_)
