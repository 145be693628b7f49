"""The registry of recipes: it finds them by their annotation and reads them from expressions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from ..core.objective import Method
from ..errors import RecipeError
from ..io import expressions
from ..io.expressions import checked, expression_name

Recipe = Callable[..., Method]

AUTO = "auto"  # the recipe that chooses among others, of every task type

#: modules of this folder that hold no recipe
SUPPORT = frozenset({"ablation", "cards", "prior", "registry", "validate"})


_checked = cache(checked)  # a recipe is one function, however often it is looked up


def recipes() -> dict[str, Recipe]:
    """Find every recipe of this folder: each public function annotated ``-> Method``.

    Returns:
        The recipes by name, sorted; each refuses arguments outside the range that it declares.

    >>> "elr" in recipes()
    True
    """
    by_name: dict[str, Recipe] = {}
    package = __name__.rpartition(".")[0]
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in SUPPORT:
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for name, value in vars(module).items():
            if name.startswith("_") or not inspect.isfunction(value) or value.__module__ != module.__name__:
                continue
            if value.__annotations__.get("return") == "Method":
                by_name[name] = _checked(value)
    return dict(sorted(by_name.items()))


def is_auto(expression: str | None) -> bool:
    """Whether an expression is a call of ``auto``.

    >>> is_auto("auto(most=3)"), is_auto("elr()"), is_auto(None)
    (True, False, False)
    """
    return expression is not None and expression_name(expression) == AUTO


def read_method(expression: str, available: Mapping[str, Callable[..., object]] | None = None) -> Method:
    """Read a recipe's expression, such as ``ps_kd(alpha=0.8)``, without evaluating code.

    Args:
        expression: The call of a recipe with literals as arguments.
        known: The recipes that may be called, by name; all of them if it is None.

    Returns:
        The method that the recipe makes.

    Raises:
        RecipeError: The expression is malformed, or names an unknown recipe or argument.

    >>> read_method("ps_kd(alpha=0.5)") == recipes()["ps_kd"](alpha=0.5)
    True
    """
    available = recipes() if available is None else available
    if is_auto(expression) and AUTO not in available:
        raise RecipeError(f"{AUTO}() trains several recipes and chooses one of them; name one recipe here")
    method = expressions.parse_expression(expression, available)
    assert isinstance(method, Method)
    return method
