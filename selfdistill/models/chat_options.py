"""Options of a chat template, put into the template itself, so that all who read by it and what is saved agree."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from ..errors import DataError
from ..io.expressions import nearest, one_line

#: One option: a name, and a value up to the next comma outside of quotes.
_OPTION = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)')
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None, "none": None}

Option = tuple[str, Any]  # name, and a text, number, truth value or None


def read_options(text: str) -> tuple[Option, ...]:
    """The options of ``enable_thinking=false,reasoning_effort=low``.

    Args:
        text: Names and values with = between them, separated by commas. A value is true, false, null, a number, a text
            in double quotes, or a word.

    Returns:
        The options in their order.

    Raises:
        DataError: The text is no list of options, or a name is there twice.

    >>> read_options('enable_thinking=false, effort="low", words=5')
    (('enable_thinking', False), ('effort', 'low'), ('words', 5))
    """
    found, at = dict[str, Any](), 0
    while at < len(text) or not found:
        match = _OPTION.match(text, at)
        if match is None:
            raise DataError(
                f"{one_line(text, 60)!r} are no options of a chat template; write NAME=VALUE, such as "
                "enable_thinking=false"
            )
        name, value = match[1], match[2]
        if name in found:
            raise DataError(f"the option {name!r} of the chat template is given twice; keep one of the two")
        found[name], at = _value(value), match.end()
    return tuple(found.items())


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)) else text


def with_options(template: str, options: str, source: str) -> str:
    """A chat template in which some options have a value where none is given.

    Args:
        template: The template, in the language of Jinja.
        options: The options, as `read_options` reads them.
        source: What the options were given by, for the message.

    Returns:
        The template, after lines that set the options.

    Raises:
        DataError: The template never reads an option, or the options cannot be read.

    >>> with_options("{{ 'a' if loud else 'b' }}", "loud=true", "--student-template")
    "{%- if loud is not defined %}{% set loud = true %}{% endif -%}{{ 'a' if loud else 'b' }}"
    """
    words, set_first = sorted(set(re.findall(r"[A-Za-z_]\w*", template))), ""
    for name, value in read_options(options):
        if name not in words:
            close = nearest(name, words)
            hint = f" (nearest: {close})" if close else ""
            raise DataError(f"{source}: the model's chat template has no option {name!r}{hint}; look at the template")
        literal = "none" if value is None else json.dumps(value)
        set_first += f"{{%- if {name} is not defined %}}{{% set {name} = {literal} %}}{{% endif -%}}"
    return set_first + template


def set_options(tokenizer: Any, options: str, source: str) -> None:
    """Put options into the chat template of a tokenizer, with which they are saved.

    Args:
        tokenizer: A tokenizer of transformers.
        options: The options, as `read_options` reads them.
        source: What the options were given by, for the message.

    Raises:
        DataError: The tokenizer has no template, or its template never reads an option.
    """
    changed, named = with_options(own_template(tokenizer, source), options, source), tokenizer.chat_template
    tokenizer.chat_template = {**named, "default": changed} if isinstance(named, dict) else changed


def own_template(tokenizer: Any, source: str) -> str:
    """The chat template of a tokenizer, of several the default one.

    Args:
        tokenizer: A tokenizer of transformers.
        source: What needs it, for the message.

    Raises:
        DataError: It has none.
    """
    named = tokenizer.chat_template
    template = named.get("default") if isinstance(named, dict) else named
    if not template:
        raise DataError(f"{source}: the model has no chat template that could have options; leave it out")
    return str(template)
