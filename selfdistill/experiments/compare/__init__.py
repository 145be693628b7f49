"""Comparisons: methods beside controls at matched compute, paired over seeds, with a verdict for each.

`compare` runs one; `judge` makes the verdicts from the records of its trainings. The command is
``selfdistill compare``.
"""

from __future__ import annotations

from .runner import Comparison, compare
from .verdicts import judge

__all__ = ["Comparison", "compare", "judge"]
