"""What the arguments of a recipe may be, asked where a person writes them: by annotation, and by what a name means.

A parameter that many recipes share means the same in all of them, so its range is said once.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, get_args, get_type_hints

from .errors import RecipeError


class Range(NamedTuple):
    """Numbers from ``least`` to ``most``, without ``least`` itself where ``above``."""

    least: float
    most: float = math.inf
    above: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, (int, float)):
            return False
        return (self.least < value if self.above else self.least <= value) and value <= self.most

    def __str__(self) -> str:
        start = f"{'above' if self.above else 'at least'} {self.least:g}"
        return start if math.isinf(self.most) else f"{start} and at most {self.most:g}"


RANGES = {
    **dict.fromkeys(("decay", "smoothing", "confidence", "min_confidence", "wait", "ramp"), Range(0, 1)),
    "alpha": Range(0, 1),  # a share of a mixture
    **dict.fromkeys(("weight", "feature"), Range(0)),
    "temperature": Range(0, above=True),
    "ratio": Range(0, 100, above=True),  # beyond, one batch is more than most memories hold
    "stages": Range(1),
    "fresh": Range(1),
    "generations": Range(1),
    "members": Range(1),
}
_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("True or False", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a number", (int, float)),
    str: ("a text in quotes", (str,)),
}


def checked(recipe: Callable[..., Any]) -> Callable[..., Any]:
    """The same recipe, refusing arguments that it could only fail on later.

    >>> def soften(temperature: float = 4.0) -> float:
    ...     return temperature
    >>> checked(soften)(2)
    2
    >>> checked(soften)("warm")
    Traceback (most recent call last):
    selfdistill.errors.RecipeError: temperature is a number, not 'warm'

    Raises:
        RecipeError: an argument is of another kind, not finite, or out of its range.
    """

    @wraps(recipe)
    def careful(*args: Any, **options: Any) -> Any:
        hints, signature = get_type_hints(recipe), inspect.signature(recipe)  # of the one recipe that is called
        for name, value in signature.bind(*args, **options).arguments.items():
            fault = _fault(value, hints.get(name)) or _outside(name, value)
            if fault:
                raise RecipeError(f"{name} is {fault}, not {value!r}")
        return recipe(*args, **options)

    return careful


def _fault(value: Any, kind: Any) -> str | None:
    allowed = get_args(kind)
    if type(None) in allowed and len(allowed) == 2:
        if value is None:
            return None
        kind = next(one for one in allowed if one is not type(None))
    if kind not in _KINDS:
        return None
    words, types = _KINDS[kind]
    right = isinstance(value, types) and (kind is bool or not isinstance(value, bool))
    return None if right and not (isinstance(value, float) and not math.isfinite(value)) else words


def _outside(name: str, value: Any) -> str | None:
    return str(RANGES[name]) if name in RANGES and value not in RANGES[name] else None
