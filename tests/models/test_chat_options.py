"""Options of chat templates: read, put into the template, and what Jinja makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from selfdistill.errors import DataError
from selfdistill.models.causal_lm import Pretrained
from selfdistill.models.chat_options import read_options, set_options, with_options
from tests.language.tiny import tokenizer

#: The idioms of public templates: a value that may be undefined, and one that is read in a macro and in a loop.
ASKED = (
    "{% macro head() %}{% if loud %}!{% endif %}{% endmacro %}{% for m in messages %}<u>{{ m['content'] }}{{ head() }}"
    "{% if words %}{{ words }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<a>{% if thinking is defined and thinking is false %}-{% endif %}{% endif %}"
)


def text(reads: Any, /, **more: Any) -> str:
    return str(reads.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, **more))


@pytest.mark.parametrize(
    ("options", "written", "expected"),
    [
        ("thinking=false", "", "<u>a<a>-"),
        ("thinking=False,loud=true", "", "<u>a!<a>-"),
        ("thinking=true", "", "<u>a<a>"),
        ("words=3", "", "<u>a3<a>"),
        ('words="b, {c}"', "", "<u>ab, {c}<a>"),
        ("words=bcd,thinking=none", "", "<u>abcd<a>"),
    ],
)
def test_options_are_those_of_a_call_with_them(options: str, written: str, expected: str) -> None:
    """The oracle is transformers: the same options given to `apply_chat_template`."""
    own, changed = tokenizer(template=ASKED), tokenizer(template=ASKED)
    set_options(changed, options, "--student-template")
    assert text(changed, add_generation_prompt=True) == expected
    assert text(own, add_generation_prompt=True, **dict(read_options(options))) == expected


def test_what_is_given_in_a_call_comes_before_a_saved_option(tmp_path: Any) -> None:
    words = tokenizer(template=ASKED)
    set_options(words, "loud=true", "--student-template")
    words.save_pretrained(tmp_path)
    again = type(words).from_pretrained(tmp_path)
    assert (text(again), text(again, loud=False)) == ("<u>a!", "<u>a")


def test_of_several_templates_the_default_one_has_the_options() -> None:
    words = tokenizer(template=None)
    words.chat_template = {"default": ASKED, "tool_use": "t"}
    set_options(words, "loud=true", "--student-template")
    assert text(words) == "<u>a!"
    assert words.chat_template["tool_use"] == "t"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("loud", "'loud' are no options of a chat template; write NAME=VALUE, such as enable_thinking=false"),
        ("", "are no options of a chat template"),
        ("loud=true,loud=false", "the option 'loud' of the chat template is given twice"),
        (
            "thinkng=true",
            r"^--student-template: the model's chat template has no option 'thinkng' \(nearest: thinking",
        ),
    ],
)
def test_options_that_are_none_are_refused(options: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        with_options(ASKED, options, "--student-template")


def test_a_model_without_a_template_has_no_options() -> None:
    with pytest.raises(DataError, match="--teacher-template: the model has no chat template that could have options"):
        Pretrained("x", teacher_template="a=1").templates(tokenizer(template=None))
