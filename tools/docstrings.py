"""Docstrings as the site's API pages need them: examples and equations as blocks of code; an extension of griffe."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
LITERAL = re.compile(r"^( *)(.*?)::\n\n((?:\1 +.*\n?|\n)+)", re.MULTILINE)


def fenced(text: str) -> str:
    r"""A docstring whose examples are blocks of code, and so are the blocks that reStructuredText marks by two colons.

    >>> fenced("One.\n\n>>> 1 + 1\n2\n")
    'One.\n\n```pycon\n>>> 1 + 1\n2\n```\n'
    >>> fenced("Equation::\n\n    L = CE(y, p)\n\nMore.")
    'Equation:\n\n```text\nL = CE(y, p)\n```\n\nMore.'
    """

    def literal(match: re.Match[str]) -> str:
        indent, lead, body = match.groups()
        lines = body.strip("\n").split("\n")
        depth = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
        block = "\n".join(f"{indent}{line[depth:]}".rstrip() for line in lines)
        return f"{indent}{lead}:\n\n{indent}```text\n{block}\n{indent}```\n\n"

    def example(match: re.Match[str]) -> str:
        return f"{match[1]}```pycon\n{match[0]}\n{match[1]}```"

    return EXAMPLE.sub(example, LITERAL.sub(literal, text))


class Docstrings(Extension):
    """Changes each docstring after griffe has read it."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
