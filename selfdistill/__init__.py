"""selfdistill: a model teaches itself, and the run shows whether that helped.

The names below are loaded when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import gates, losses, methods, schedules, teachers, views
    from .core.objective import Method, Objective
    from .core.parts import Gate, Tally, Teacher, Term
    from .core.step import Batch, Clock, Forward, Rows
    from .core.targets import Target
    from .errors import SelfdistillError
    from .experiments.run import Run
    from .models.store import load_model
    from .training.fit import Result, fit
    from .training.settings import Settings

#: module that defines each public name
_HOME = {
    "core.objective": ("Method", "Objective"),
    "core.parts": ("Gate", "Tally", "Teacher", "Term"),
    "core.step": ("Batch", "Clock", "Rows", "Forward"),
    "core.targets": ("Target",),
    "errors": ("SelfdistillError",),
    "experiments.run": ("Run",),
    "models.store": ("load_model",),
    "training.fit": ("Result", "fit"),
    "training.settings": ("Settings",),
}
_MODULES = ("gates", "losses", "methods", "schedules", "teachers", "views")

__all__ = [
    "Batch",
    "Clock",
    "Forward",
    "Gate",
    "Method",
    "Objective",
    "Result",
    "Rows",
    "Run",
    "SelfdistillError",
    "Settings",
    "Tally",
    "Target",
    "Teacher",
    "Term",
    "fit",
    "gates",
    "load_model",
    "losses",
    "methods",
    "schedules",
    "teachers",
    "views",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    home = next((module for module, names in _HOME.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{home}", __name__), name)
