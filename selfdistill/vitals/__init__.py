"""Vitals: is the signal of each term alive? A few steps are looked at; what is certainly dead stops the run.

`Objective.vitals()` gives per term means over the looks, and warnings. What `Watch` is certain of it raises as
`VitalsError` at once. Only the terms' own outputs are differentiated, never the model.
"""

from .look import Seen, figures
from .prompts import check_prompts
from .pulse import Pulse, Vitals, interval, summarise
from .states import Vigil
from .watch import Watch, looked_at

__all__ = [
    "Pulse", "Seen", "Vigil", "Vitals", "Watch", "check_prompts", "figures", "interval", "looked_at", "summarise",
]  # fmt: skip
