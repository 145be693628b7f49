"""Errors that a person can act on: each names the thing, the place and the remedy in one line.

The command line prints them without a traceback and exits with code 2.
"""

from __future__ import annotations


class SelfdistillError(Exception):
    """Something outside the code is wrong; the message says what, where, and what to do."""


class DataError(SelfdistillError):
    """The data cannot be used as they are (missing, unreadable, not finite, wrong labels)."""


class RecipeError(SelfdistillError):
    """A recipe does not exist, cannot be read, or does not fit the model or the data."""


class SpaceError(RecipeError):
    """Two parts of a term speak of different things (logits against features, say)."""


class CheckpointError(SelfdistillError):
    """No intact checkpoint, or one with foreign content or other settings."""


class NotFiniteError(SelfdistillError):
    """The loss stopped being a number; the last checkpoint was kept."""


class VitalsError(SelfdistillError):
    """A term's signal is certainly dead or inverted; ``vital`` names which check found it."""

    def __init__(self, vital: str, message: str) -> None:
        super().__init__(message)
        self.vital = vital

    def __reduce__(self) -> tuple[type[VitalsError], tuple[str, str]]:
        return type(self), (self.vital, str(self))  # else no process could hand it to another
