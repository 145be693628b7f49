"""Names that others chose: shown as they are, and never obeyed by a terminal, a page or Markdown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.io.display import markdown, printable


@pytest.mark.parametrize(
    "name", ["\x1b[31mred", "a\rb", "x\x07", "\x9b2J", "a\u202egnp.exe", "\u2066x\u2069", "\ud800"]
)
def test_what_steers_a_terminal_is_escaped(name: str) -> None:
    text = printable(name)
    assert text.isascii()
    assert text.isprintable()


def test_letters_of_every_script_stay() -> None:
    name = "naïve Größe 大 שלום \U0001f469\u200d\U0001f52c"
    assert printable(name) == name
    assert printable("two\n\tlines") == "two\n\tlines"
    assert printable("two\nlines", kept="") == "two\\nlines"


@given(st.text())
def test_no_control_character_is_left_and_markdown_stays_on_one_line(name: str) -> None:
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in printable(name, kept=""))
    line = markdown(name)
    assert "\n" not in line
    assert not {"<", ">"} & set(line)


@pytest.mark.parametrize("name", ["<b>", "![x](http://a)", "a|b", "`code`", "**bold**", "_it_", "~~no~~", "&lt;"])
def test_markup_of_a_name_is_read_as_it_is(name: str) -> None:
    assert markdown(name) != name
