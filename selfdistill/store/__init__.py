"""Targets on disk: what a frozen teacher said, computed once, bound to what made it, checked when it is read.

`Store` is a folder of memory-mapped shards keyed by whole numbers; a layout says how a target is written: `Dense`, or
the `Top` outputs with their true probabilities and that of all others. `teachers.Cached` puts one behind a teacher.
"""

from .disk import CARD, Store
from .layouts import Dense, Layout, Sparse, Top
from .marks import marks

__all__ = ["CARD", "Dense", "Layout", "Sparse", "Store", "Top", "marks"]
