"""Targets on disk: the outputs of a frozen teacher, computed once, bound to what made them, checked when read.

`Store` is a folder of memory-mapped shards keyed by whole numbers; a layout says how a target is written: `Dense`, or
the `Top` outputs with their true probabilities and that of all others. A
`teachers.CachedTeacher` has one.
"""

from __future__ import annotations

from .layouts import Dense, Layout, Sparse, Top
from .store import CARD, Store, marks

__all__ = ["CARD", "Dense", "Layout", "Sparse", "Store", "Top", "marks"]
