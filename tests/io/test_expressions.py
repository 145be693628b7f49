"""Reading expressions: what is written is called, and nothing else can be reached."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.errors import RecipeError, SpaceError
from selfdistill.io.expressions import MAX_LENGTH, check_arguments, nearest, one_line, parse_expression

CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = []


def ps_kd(alpha: float = 0.8, *, weight: float = 1.0) -> tuple[str, float, float]:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1],\nnot {alpha}")
    return "ps_kd", alpha, weight


def distil(teacher: Any, temperature: float = 4.0) -> tuple[str, Any, float]:
    return "distil", teacher, temperature


def record(*args: Any, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    CALLS.append((args, options))
    return args, options


def clash() -> None:
    raise SpaceError("labels into KL")


NAMES: dict[str, Callable[..., Any]] = {"ps_kd": ps_kd, "distil": distil, "record": record, "clash": clash}


def refusal(text: str, names: Any = NAMES, kind: str = "method") -> str:
    """The one line that this text is refused with."""
    with pytest.raises(RecipeError) as caught:
        parse_expression(text, names, kind)
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    return message


@pytest.mark.parametrize("text", ["ps_kd", "ps_kd()", " ps_kd ( ) \n", "(ps_kd)", "ps_kd(0.8)", "ps_kd(alpha=.8)"])
def test_a_bare_name_is_a_call_without_arguments(text):
    assert parse_expression(text, NAMES) == ("ps_kd", 0.8, 1.0)


def test_calls_nest_as_arguments():
    assert parse_expression("distil(ps_kd(0.5), temperature=2)", NAMES) == ("distil", ("ps_kd", 0.5, 1.0), 2)
    assert parse_expression("distil(teacher=[ps_kd(), (distil(1),)])", NAMES)[1] == [
        ("ps_kd", 0.8, 1.0),
        (("distil", 1, 4.0),),
    ]


LITERALS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(LITERALS)
def test_every_literal_arrives_as_it_was_written(value):
    (arrived,), options = parse_expression(f"record({value!r}, x=+1)", NAMES)
    assert (arrived, options) == (value, {"x": 1})
    assert repr(arrived) == repr(value) == repr(ast.literal_eval(repr(value)))  # types and signs of zero too


def test_an_unknown_name_is_answered_with_the_nearest_and_where_the_list_is():
    assert refusal("ps_dk") == "unknown method 'ps_dk'; nearest: ps_kd. `selfdistill methods` lists them"
    assert "nearest: ps_kd" in refusal("distil(PS_KD())")
    far = refusal("zzzzzz(1)")
    assert "nearest" not in far
    assert far.endswith("`selfdistill methods` lists them")


def test_other_kinds_are_listed_on_the_spot():
    message = refusal("cnm", {"mlp": dict, "cnn": dict}, kind="model")
    assert message == "unknown model 'cnm'; nearest: cnn. known: cnn, mlp"
    many = {f"net{i:02}": dict for i in range(20)}
    assert refusal("zzz", many, kind="model").endswith("net11, ...")


def test_an_unknown_argument_is_answered_with_the_nearest_and_the_signature():
    message = refusal("ps_kd(alhpa=1)")
    assert message == "ps_kd has no argument 'alhpa'; nearest: alpha; it is written ps_kd(alpha=0.8, *, weight=1.0)"
    assert "nearest" not in refusal("ps_kd(zzz=1)")


def test_too_many_missing_and_doubled_arguments_are_named():
    assert refusal("ps_kd(0.1, 2)").startswith("ps_kd takes 1 arguments by position, not 2")
    assert refusal("distil").startswith("distil needs teacher; it is written distil(teacher, temperature=4.0)")
    assert refusal("distil(1, teacher=2)").startswith("distil is given 'teacher' twice")
    assert "'alpha' given twice" in refusal("ps_kd(alpha=1, alpha=1)")
    assert "'k' given twice" in refusal("distil({'k': 1, 'k': 2})")


def test_keyword_only_and_positional_only_arguments_are_checked():
    def strict(first: int, /, *, last: int) -> int:
        return first + last

    assert parse_expression("strict(1, last=2)", {"strict": strict}) == 3
    assert "needs first" in refusal("strict(last=2)", {"strict": strict})
    assert "needs last" in refusal("strict(1)", {"strict": strict})
    assert "has no argument 'first'" in refusal("strict(first=1, last=2)", {"strict": strict})


def test_what_the_callee_refuses_is_one_line_with_the_expression():
    message = refusal("ps_kd(alpha=3)")
    assert message == "method expression 'ps_kd(alpha=3)': alpha must lie in [0, 1], not 3"
    assert "labels into KL" in refusal("clash")
    assert "ps_kd('x')" in refusal("ps_kd('x')")  # a TypeError of the comparison


def test_a_fault_of_the_callee_itself_is_not_hidden():
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        parse_expression("broken", {"broken": broken})


@pytest.mark.parametrize(
    ("text", "what", "column"),
    [
        ("().__class__", "a dotted name", 1),
        ("().__class__.__bases__[0].__subclasses__()", "a dotted name", 1),
        ("__import__('os').system('x')", "a dotted name", 1),
        ("record(1 + 1)", "an operator", 8),
        ("record(not 1)", "an operator on something that is not a number", 8),
        ("record(-True)", "an operator on something that is not a number", 8),
        ("record(--1)", "an operator on something that is not a number", 8),
        ("record(1 < 2)", "a comparison", 8),
        ("record(lambda: 0)", "a lambda", 8),
        ("record([x for x in y])", "a comprehension", 8),
        ("record(f'{1}')", "an f-string", 8),
        ("record({1})", "a set", 8),
        ("record(*[1])", "a starred value", 8),
        ("record(**{})", "arguments unpacked with **", 8),
        ("record({**{}})", "not a string", 11),
        ("record({1: 2})", "not a string", 9),
        ("record(b'x')", "a value of another kind", 8),
        ("record(1j)", "a value of another kind", 8),
        ("record(...)", "a value of another kind", 8),
        ("record(x := 1)", "an assignment", 8),
        ("record(1 if 2 else 3)", "a condition", 8),
        ("record(record)", "the name 'record' is used as a value (write record() for a call)", 8),
        ("record('é', x.y)", "a dotted name", 13),
        ("record()()", "a call of something without a name", 1),
        ("(lambda: 0)()", "a lambda", 2),
        ("1", "not the call of a method", 1),
        ("[record()]", "not the call of a method", 1),
    ],
)
def test_other_syntax_is_named_with_its_column_and_nothing_runs(text, what, column):
    CALLS.clear()
    message = refusal(text)
    assert what in message
    assert f"column {column}" in message
    assert CALLS == []


def test_unknown_names_of_python_cannot_be_reached():
    for text in ("__import__('os')", "open('/etc/passwd')", "eval('1')", "exec", "print()"):
        assert refusal(text).startswith("unknown method")


@pytest.mark.parametrize(
    "text", ["", "  ", "ps_kd(", "ps_kd)", "ps kd", "import os", "a\0b", "ps_kd(,)", "'", "\ud800"]
)
def test_text_that_is_no_python_is_refused(text):
    assert "empty" in refusal(text) or "not readable" in refusal(text)


def test_a_second_line_is_counted():
    assert "column 3 of line 2" in refusal("record(1,\n  x.y)")


@pytest.mark.parametrize(
    "text",
    [
        "record(" * 60 + ")" * 60,
        "record(" + "[" * 60 + "]" * 60 + ")",
        "record(" + "-" * 9000 + "1)",
        "record(" + "(" * 4000 + ")" * 4000 + ")",
        "record(" + "{'':" * 1500 + "1" + "}" * 1500 + ")",
        "record(" + "1+" * 4000 + "1)",
        "record(a" + ".a" * 4000 + ")",
        "record(" + "9" * 9000 + ")",
    ],
)
def test_deep_and_huge_input_is_refused(text):
    CALLS.clear()
    assert len(refusal(text)) < 400
    assert CALLS == []


def test_depth_up_to_the_limit_is_read_and_length_is_bounded():
    assert parse_expression("record(" * 50 + ")" * 50, NAMES) is not None
    assert "deeper than 50" in refusal("record(" * 51 + ")" * 51)
    assert parse_expression("ps_kd" + " " * (MAX_LENGTH - 5), NAMES)[0] == "ps_kd"
    assert f"at most {MAX_LENGTH}" in refusal("ps_kd" + " " * (MAX_LENGTH - 4))


WORDS = "record ps_kd ( ) [ ] { } , = : . - + * ** lambda ' \" x 1 0.5 None f'{1}' __class__ \\ é # if for"
PIECES = st.sampled_from([*WORDS.split(), "__import__('os').system('x')", " ", "\n"])


@given(st.text() | st.lists(PIECES, max_size=12).map("".join))
def test_random_text_raises_nothing_else_and_calls_only_what_was_handed_in(text):
    refused = ""
    try:
        result = parse_expression(text, {"record": lambda *args, **options: "called", "ps_kd": lambda: "called"})
    except RecipeError as error:
        refused = str(error)
    assert refused or result == "called"
    assert "\n" not in refused
    assert len(refused) < 1000


def test_a_callable_without_a_signature_is_still_called():
    assert parse_expression("dict(a=1)", {"dict": dict}) == {"a": 1}
    assert "method expression" in refusal("dict(1)", {"dict": dict})
    check_arguments("dict", dict, [1, 2, 3], {})  # says nothing: the call itself will


def test_helpers():
    assert nearest("CNM", ["cnn", "mlp"]) == "cnn"
    assert nearest("zzz", ["cnn"]) == ""
    assert one_line("a\n b\x07" + "c" * 300, 10) == "a b\\x07..."
