"""Conformance checks for parts of your own: each raises ``AssertionError`` with one line that names the fault.

`specimens` has small models and batches, `toys` a small language task.
"""

from .conformance import check_gate, check_loss, check_method, check_teacher, check_value, names

__all__ = ["check_gate", "check_loss", "check_method", "check_teacher", "check_value", "names"]
