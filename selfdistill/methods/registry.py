"""registry"""

from __future__ import annotations

from collections.abc import Mapping

from ..core.objective import Method
from ..io import expressions
from ..io.expressions import checked
from . import Recipe, recipes


def read_method(expression: str, known: Mapping[str, Recipe] | None = None) -> Method:
    """A recipe's own expression, such as ``ps_kd(alpha=0.8)``, read without evaluating code.

    >>> read_method("ps_kd(alpha=0.5)") == recipes()["ps_kd"](alpha=0.5)
    True
    """
    known = recipes() if known is None else known
    method = expressions.read(expression, {name: checked(recipe) for name, recipe in known.items()})
    assert isinstance(method, Method)
    return method
