"""An example: one prompt with its answer, demonstration and feedback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIELDS = ("demonstration", "answer", "checker", "feedback", "wrong")  # text that a row may have beside its prompt


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the user's turn, and what may be known beside it; None is unknown.

    >>> Example((("system", "Be brief."), ("user", "1 + 1 = ?")), answer="2", checker="numeric").prompt
    '1 + 1 = ?'
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    demonstration: str | None = None  # how it can be answered
    answer: str | None = None  # what the checker compares with
    checker: str | None = None  # see `checkers.Checker`
    feedback: str | None = None  # what was said about an attempt
    wrong: str | None = None  # a wrong solution, for contrastive contexts
    entry: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # reasoning-gym's own record
    line: int = 0  # in its file, from 1

    @property
    def prompt(self) -> str:
        """The last turn."""
        return self.messages[-1][1]

    @property
    def asked(self) -> str:
        """What the user says in all turns, spaces aside: examples that share it are the same prompt."""
        return "\n".join(" ".join(content.split()) for role, content in self.messages if role == "user")
