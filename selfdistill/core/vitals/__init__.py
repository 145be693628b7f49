"""Vitals: checks of the signal of each term in a few steps; a signal that is certainly dead stops the run.

`Objective.vitals()` gives per term means over the looks, and warnings. What `Watch` is certain of it raises as
`VitalsError` at once. Only the terms' own outputs are differentiated, never the model.
"""

from __future__ import annotations

from ..parts import TermTrace
from .states import StateWatch
from .summary import TermHealth, Vitals, interval, summarise
from .watch import Watch, figures

__all__ = ["StateWatch", "TermHealth", "TermTrace", "Vitals", "Watch", "figures", "interval", "summarise"]
