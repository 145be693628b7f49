"""selfdistill: a model teaches itself, and the run shows whether that helped.

The names below are loaded when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: public name -> module that defines it
_HOME = {
    "Batch": "core", "Clock": "core", "Method": "core", "Objective": "core", "Rows": "core", "Step": "core",
    "Target": "core", "Term": "core", "Teacher": "core", "Gate": "core", "Tally": "core",
    "fit": "fit", "Result": "fit", "Run": "run", "load_model": "run", "SelfdistillError": "errors",
    "methods": "", "losses": "", "teachers": "", "gates": "", "schedules": "", "views": "", "heads": "",
}  # fmt: skip
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from . import gates, heads, losses, methods, schedules, teachers, views
    from .core import Batch, Clock, Gate, Method, Objective, Rows, Step, Tally, Target, Teacher, Term
    from .errors import SelfdistillError
    from .fit import Result, fit
    from .run import Run, load_model


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'selfdistill' has no attribute {name!r}")
    if not _HOME[name]:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
