"""The methods: each a function that returns a `Method`, one file per paper or family.

A new file here is found by itself: every public function annotated ``-> Method`` is a recipe, for the library, the
command line and the generated lists alike. Its docstring has a summary line, ``Equation::``, ``Needs:`` and
``Source:``; `selfdistill explain` prints them. No file may have the name of a recipe, which it would hide.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.objective import Method

Recipe = Callable[..., Method]


def recipes() -> dict[str, Recipe]:
    """All recipes by name, sorted."""
    found: dict[str, Recipe] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        for name, thing in vars(module).items():
            mine = inspect.isfunction(thing) and thing.__module__ == module.__name__ and not name.startswith("_")
            recipe = mine and thing.__annotations__.get("return") == "Method"
            if recipe and len(thing.__defaults__ or ()) == thing.__code__.co_argcount:  # each has all its defaults
                found[name] = thing
    return dict(sorted(found.items()))


globals().update(recipes())

if TYPE_CHECKING:

    def __getattr__(name: str) -> Recipe: ...
