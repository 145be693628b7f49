"""Conformance checks for people who write their own parts: each raises ``AssertionError`` with one line that says why.

`specimens` has small models and batches, `toys` a small language task.
"""

from .conformance import check_gate, check_loss, check_method, check_teacher, check_value, names

__all__ = ["check_gate", "check_loss", "check_method", "check_teacher", "check_value", "names"]
