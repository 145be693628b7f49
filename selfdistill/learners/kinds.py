"""The learners that have a name: what scikit-learn has, made ready for raw tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..errors import RecipeError
from ..expressions import one_line, read

Maker = Callable[[bool, Any], Any]  # (classify, frame) -> an estimator that takes such frames


def boosting(iterations: int = 100, rate: float = 0.1) -> Maker:
    """Gradient boosting over histograms; takes categories and missing values as they are."""

    def make(classify: bool, frame: Any) -> Any:
        from ..estimators.usual import usual_learner

        return usual_learner(classify, frame, max_iter=iterations, learning_rate=rate)

    return make


def _prepared(make: Callable[[bool], Any]) -> Maker:
    def made(classify: bool, frame: Any) -> Any:
        from sklearn.pipeline import make_pipeline

        from ..estimators.usual import usual_columns

        return make_pipeline(usual_columns(frame), make(classify))

    return made


def forest(trees: int = 200) -> Maker:
    """A random forest."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

        return (RandomForestClassifier if classify else RandomForestRegressor)(trees)

    return _prepared(make)


def extra_trees(trees: int = 200) -> Maker:
    """Extremely randomised trees."""

    def make(classify: bool) -> Any:
        from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

        return (ExtraTreesClassifier if classify else ExtraTreesRegressor)(trees)

    return _prepared(make)


def linear(penalty: float = 1.0) -> Maker:
    """Ridge regression, or logistic regression for classes, on standardised columns."""

    def make(classify: bool) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        return LogisticRegression(C=1.0 / penalty, max_iter=1000) if classify else Ridge(penalty)

    return _prepared(make)


def neighbours(number: int = 5) -> Maker:
    """The nearest rows."""

    def make(classify: bool) -> Any:
        from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

        return (KNeighborsClassifier if classify else KNeighborsRegressor)(number)

    return _prepared(make)


#: What is known by name.
LEARNERS: dict[str, Callable[..., Maker]] = {
    "boosting": boosting, "extra_trees": extra_trees, "forest": forest, "linear": linear, "neighbours": neighbours,
}  # fmt: skip


def named(spec: str) -> bool:
    """Is this the name of a learner, with or without options?

    >>> named("boosting(iterations=50)"), named("mlp")
    (True, False)
    """
    return spec.split("(", maxsplit=1)[0].strip() in LEARNERS


def learner(spec: str, classify: bool, frame: Any) -> Any:
    """The estimator that ``spec`` names: "boosting", "forest(trees=500)", or "module:function" that returns one.

    Raises:
        RecipeError: no such learner or option, or something that is no estimator of this task.
    """
    if named(spec):
        return read(spec, LEARNERS, kind="model")(classify, frame)
    made = foreign(spec)
    if made is None:
        raise RecipeError(f"unknown learner {spec!r}; known: {', '.join(LEARNERS)}, or module:function")
    from sklearn.base import is_classifier, is_regressor

    fits = is_classifier(made) if classify else is_regressor(made)
    if not fits:
        wanted = "classifier" if classify else "regressor"
        raise RecipeError(f"{spec} returned {type(made).__name__}, which is no {wanted}; the target asks for one")
    return made


def foreign(spec: str) -> Any:
    """What a function of the user's returns if it is an estimator of scikit-learn, else None."""
    from ..models import parse

    build = parse(spec, (1,), 1)
    if ":" not in build.spec:
        return None
    from ..models import _function

    function = _function(build.spec)
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
