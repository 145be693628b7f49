"""selfdistill: a model teaches itself, and the run shows whether that helped.

The names below are loaded when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import gates, heads, losses, methods, schedules, teachers, views
    from .core import Batch, Clock, Gate, Method, Objective, Rows, Step, Tally, Target, Teacher, Term
    from .errors import SelfdistillError
    from .loop import Result, Settings, fit
    from .run import Run, load_model

#: module that defines each public name
_HOME = {
    "core": ("Batch", "Clock", "Gate", "Method", "Objective", "Rows", "Step", "Tally", "Target", "Teacher", "Term"),
    "errors": ("SelfdistillError",),
    "loop": ("Result", "Settings", "fit"),
    "run": ("Run", "load_model"),
}
_MODULES = ("gates", "heads", "losses", "methods", "schedules", "teachers", "views")

__all__ = [
    "Batch", "Clock", "Gate", "Method", "Objective", "Result", "Rows", "Run", "SelfdistillError", "Settings", "Step",
    "Tally", "Target", "Teacher", "Term", "fit", "gates", "heads", "load_model", "losses", "methods", "schedules",
    "teachers", "views",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
