"""selfdistill: a model teaches itself, and the run shows whether that helped.

The names below are loaded when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import gates, losses, methods, schedules, teachers, views
    from .core.objective import Method, Objective
    from .core.parts import Gate, Tally, Teacher, Term
    from .core.step import Batch, Forward, Rows, TrainingClock
    from .core.targets import Target
    from .errors import SelfdistillError
    from .evaluation.label_noise import find_label_errors
    from .experiments.run import Run, load
    from .models.store import load_model
    from .training.fit import Result, fit
    from .training.settings import Settings

__all__ = [
    "Batch",
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
    "TrainingClock",
    "find_label_errors",
    "fit",
    "gates",
    "load",
    "load_model",
    "losses",
    "methods",
    "schedules",
    "teachers",
    "views",
]

#: the module that defines each public name; a name that is not here is a module itself
_HOMES = {
    "Batch": "core.step",
    "TrainingClock": "core.step",
    "Gate": "core.parts",
    "Method": "core.objective",
    "Objective": "core.objective",
    "Result": "training.fit",
    "Rows": "core.step",
    "Run": "experiments.run",
    "SelfdistillError": "errors",
    "Settings": "training.settings",
    "Forward": "core.step",
    "Tally": "core.parts",
    "Target": "core.targets",
    "Teacher": "core.parts",
    "Term": "core.parts",
    "find_label_errors": "evaluation.label_noise",
    "fit": "training.fit",
    "load": "experiments.run",
    "load_model": "models.store",
}

if not TYPE_CHECKING:  # a type checker reads the imports above, and knows a name that does not exist

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
        if name not in _HOMES:
            return importlib.import_module(f".{name}", __name__)
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
