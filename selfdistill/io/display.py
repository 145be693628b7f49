"""Text that others wrote (names of classes, columns, files), made safe for a terminal, a page and Markdown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from html import escape as escape_markup

# what turns the direction of the text after it, and so shows another text than the one that is there
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CATEGORIES = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of a pair, separators of lines and paragraphs
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)")  # characters that Markdown reads as its own


def _hidden(character: str) -> bool:
    return unicodedata.category(character) in _CATEGORIES or character in _DIRECTIONS


def printable(text: str, kept: str = "\n\t") -> str:
    """A text with its control characters and marks of direction escaped: it cannot steer a terminal or a page.

    Args:
        text: the text.
        kept: control characters that stay as they are.

    >>> printable("x\\x1b[31mred"), printable("two\\nlines", kept="")
    ('x\\\\x1b[31mred', 'two\\\\nlines')
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c.encode("unicode_escape").decode() if c not in kept and _hidden(c) else c for c in text)


def markdown(text: object, kept: str = "") -> str:
    """A text on one line of Markdown, where it is read as it is: no tag, link, emphasis or cell of a table begins.

    Args:
        text: the text.
        kept: characters of Markdown that keep their meaning.

    >>> markdown("<b>*a*|b</b>"), markdown("self_distilled()")
    ('&lt;b&gt;\\\\*a\\\\*\\\\|b&lt;/b&gt;', 'self_distilled()')
    """
    line = escape_markup(printable(str(text), kept=""), quote=False)
    return _SPECIAL.sub(lambda found: found[0] if found[0] in kept else f"\\{found[0]}", line)


def plural(count: int, noun: str) -> str:
    """A number of things.

    >>> plural(1, "cell"), plural(2, "cell")
    ('1 cell', '2 cells')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as lines of text with aligned columns.

    >>> print(text_table(["run", "score"], [["a", "9"], ["bcde", "10"]]))
    run   score
    a     9
    bcde  10
    """
    lines = [[printable(cell, kept="") for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def change(difference: float, unit: str = "", digits: str = ".1f", *, falls: bool = False) -> str:
    """A difference in words: a sign is easily overlooked, and whether less is better is not said by it.

    Args:
        difference: ours minus the other.
        unit: what follows the number.
        digits: the format of the number.
        falls: whether less is better.

    >>> change(1.23, " points"), change(4.7, " %", falls=True), change(-0.01, " points")
    ('1.2 points better', '4.7 % worse', 'equal')
    """
    size = format(abs(difference), digits)
    if not float(size):
        return f"equal{unit}" if "±" in unit else "equal"
    return f"{size}{unit} {'better' if (difference > 0) != falls else 'worse'}"
