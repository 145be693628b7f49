"""Checkers: what counts as right, what they say of a wrong answer, and that none of them can stop a run."""

import itertools
import json
import math
import random
import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.data import reasoning, rewards
from selfdistill.data.examples import Example
from selfdistill.data.rewards import Checked, Checker, check, last_number
from selfdistill.errors import DataError


def example(answer=None, line=0, **more):
    return Example((("user", "?"),), answer=answer, line=line, **more)


def reward(spec, completion, answer=None):
    said = check(spec, completion, example(answer))
    assert not said.failed
    return said.reward


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of checkers into the current folder; its name differs each time, as imports are kept."""

    def write(text):
        name = f"checks_{random.getrandbits(60):x}"
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    return write


# ---- exact -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [("to be", "to be", 1), ("\n to\t be ", "to be", 1), ("tobe", "to be", 0), ("To be", "to be", 0), ("", "a", 0)],
)
def test_exact_ignores_whitespace_and_nothing_else(said, answer, right):
    assert reward("exact", said, answer) == right


# ---- numbers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is 1,000, I think.", 1000),
        ("-$1,000.50", Fraction(-2001, 2)),
        ("$-5", -5),
        ("\N{MINUS SIGN}7", -7),
        ("+3", 3),
        ("9-5", 5),  # a difference, not a negative number
        ("f(3)-2", 2),
        ("x = -.5", Fraction(-1, 2)),
        (r"\boxed{42}", 42),
        (r"-\frac{3}{4}", Fraction(-3, 4)),
        ("#### 42", 42),
        ("**12.50**.", Fraction(25, 2)),
        ("half: 3 / 6", Fraction(1, 2)),
        ("2501/2.", Fraction(2501, 2)),
        ("1.5e-3", Fraction(3, 2000)),
        ("12,34", 34),  # a list
        ("first 3, then 4", 4),
        ("10%", 10),
        ("1/0", None),
        ("", None),
        ("none", None),
        ("1e999999999", None),
        ("9" * 100_000, None),
    ],
)
def test_the_last_number(text, value):
    found = last_number(text)
    assert (found if found is None else found[0]) == value


words = st.text(st.characters(categories=["Ll", "Lu", "Zs"]), max_size=8).map(lambda text: f"{text} ")


@given(words, st.decimals(-(10**9), 10**9, places=3), st.sampled_from(["{:f}", "{:,f}", "{:+f}"]), words)
def test_a_decimal_is_read_as_decimal_reads_it(before, number, form, after):
    """Against Python's own parser, in whatever form Python itself writes it."""
    found = last_number(before + form.format(number) + " " + after)
    assert found is not None
    assert found[0] == Fraction(Decimal(number))


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**6))
def test_a_fraction_is_read_exactly(over, under):
    found = last_number(f"so {over}/{under}")
    assert found is not None
    assert found[0] == Fraction(over, under)


@given(st.text(max_size=60))
def test_any_text_is_read_without_trouble(text):
    said = Checker("numeric")(text, example("3"))
    assert not said.failed


def test_neighbouring_whole_numbers_differ_however_large():
    assert reward("numeric", "12345678901234567890", "12345678901234567891") == 0
    assert reward("numeric", "12345678901234567891", "12345678901234567891") == 1


def test_the_tolerance_is_a_distance():
    assert reward("numeric", "3.14", "3.14159") == 0
    assert reward("numeric(tolerance=0.01)", "3.14", "3.14159") == 1
    assert reward("numeric(0)", "2", "2.0") == 1


# ---- patterns --------------------------------------------------------------------------------------


def test_a_pattern_is_searched():
    assert reward("regex", "it is blue", "blu[e3]$") == 1
    assert reward("regex", "blue it is", "blu[e3]$") == 0
    assert reward("regex:^[A-Z].*[.]$", "A sentence.") == 1
    assert reward("regex:^[A-Z].*[.]$", "no sentence") == 0


# ---- functions -------------------------------------------------------------------------------------


def test_a_function_of_the_current_folder_judges(module):
    name = module(
        "def length(completion, answer):\n    return len(completion) == len(answer)\n"
        "def share(completion, answer):\n    return 0.25, f'a quarter of {answer}'\n"
    )
    assert reward(f"{name}:length", "abc", "xyz") == 1
    assert check(f"{name}:share", "", example("x")) == Checked(0.25, "a quarter of x")


@pytest.mark.parametrize(
    ("returned", "said"),
    [(True, 1), (0, 0), (0.5, 0.5), (np.float32(0.5), 0.5), (np.bool_(True), 1), (torch.tensor(0.25), 0.25)],
)
def test_whatever_is_a_number_in_the_unit_interval_is_a_reward(returned, said):
    assert rewards._as_checked(returned) == Checked(said)
    assert rewards._as_checked((returned, "why")) == Checked(said, "why")
    assert rewards._as_checked((returned, None)) == Checked(said)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise KeyError('no')", "KeyError: 'no'"),
        ("return float('nan')", "ValueError: the checker returned nan; return a number from 0 to 1"),
        ("return 1.5", "ValueError: the checker returned 1.5; return a number from 0 to 1"),
        ("return -1", "ValueError: the checker returned -1; return a number from 0 to 1"),
        ("return None", "TypeError: the checker returned a NoneType; return a bool, a number, or (number, text)"),
        ("return 'yes'", "TypeError: the checker returned a str; return a bool, a number, or (number, text)"),
        ("return 1, 2", "TypeError: the feedback is a int; return text"),
        ("return 1, 'a', 'b'", "TypeError: the checker returned a tuple; return a bool, a number, or (number, text)"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("return __import__('torch').ones(2)", "RuntimeError: a Tensor with 2 elements cannot be converted to Scalar"),
    ],
)
def test_a_checker_that_fails_is_counted_and_shown(module, body, error):
    checker = Checker(f"{module(f'def judge(completion, answer): {body}')}:judge")
    assert [checker("a", example(line=7)), checker("b", example(line=8))] == [Checked(0.0, None, failed=True)] * 2
    assert (checker.calls, checker.failures) == (2, 2)
    assert checker.first_error == f"{error} (line 7)"


def test_an_interrupt_is_not_a_failure(module):
    checker = Checker(f"{module('def judge(completion, answer): raise KeyboardInterrupt')}:judge")
    with pytest.raises(KeyboardInterrupt):
        checker("a", example())


@pytest.mark.parametrize("spec", ["exact", "numeric", "regex"])
def test_a_row_without_an_answer_is_a_failure_and_not_a_wrong_answer(spec):
    checker = Checker(spec)
    assert checker("1", example()) == Checked(0.0, None, failed=True)
    assert checker.first_error == "ValueError: no answer to compare with"


# ---- reasoning-gym ---------------------------------------------------------------------------------


def test_a_task_scores_its_own_entries():
    rows = reasoning.make_examples("reasoning-gym:chain_sum(size=5)")
    for row in rows:
        assert row.answer is not None
        assert check("reasoning-gym:chain_sum", row.answer, row).reward == 1
        assert check("chain_sum", f"I think <answer> {row.answer} </answer>", row).reward == 1
        assert check("chain_sum", "0.5", row).reward < 0.5


def test_rows_are_the_same_at_every_call_and_settings_reach_the_task():
    spec = "reasoning-gym:chain_sum(size=4, min_terms=2, max_terms=2)"
    assert reasoning.make_examples(spec) == reasoning.make_examples(spec)
    assert all(len(re.findall(r"[-+] \d", row.prompt)) == 1 for row in reasoning.make_examples(spec))
    assert {row.checker for row in reasoning.make_examples(spec)} == {spec}
    assert reasoning.make_examples(spec) != reasoning.make_examples(spec.replace("size=4", "size=4, seed=1"))
    assert len(reasoning.make_examples("reasoning-gym:chain_sum")) == reasoning.ROWS


def test_a_row_of_a_file_is_scored_by_its_answer():
    assert reward("chain_sum", "12", "12") == 1


def test_a_task_that_only_its_record_can_score():
    """Graph colouring has no answer of its own: any right colouring is one."""
    row = reasoning.make_examples("reasoning-gym:graph_color(size=1)")[0]
    assert row.answer is None
    assert row.entry is not None
    puzzle = row.entry["metadata"]["puzzle"]
    edges, nodes = puzzle["edges"], puzzle["vertices"]
    every = (dict(zip(nodes, shades, strict=True)) for shades in itertools.product(puzzle["color_options"], repeat=10))
    right = next(colours for colours in every if all(colours[a] != colours[b] for a, b in edges))
    wrong = {**right, edges[0][0]: right[edges[0][1]]}
    assert check("graph_color", json.dumps(right), row).reward == 1
    assert check("graph_color", json.dumps(wrong), row).reward < 0.1


# ---- feedback --------------------------------------------------------------------------------------


@given(st.text(st.sampled_from("ab \n"), max_size=5), st.text(st.sampled_from("cd"), min_size=1, max_size=5))
def test_feedback_of_exact_tells_the_attempt_and_never_the_answer(said, answer):
    feedback = check("exact", said, example(answer)).feedback
    shown = " ".join(said.split())
    assert feedback == (f"Your answer was {shown}; that is not correct." if shown else "Your answer was empty.")


def test_feedback_of_numeric():
    assert check("numeric", "3 or 4", example("5")).feedback == "Your answer was 4; that is not correct."
    assert check("numeric", "who knows", example("5")).feedback == "Your answer had no readable number."
    assert check("numeric", "5", example("5")).feedback is None


def test_feedback_is_one_short_line():
    feedback = check("exact", "long\n" * 1000, example("5")).feedback
    assert feedback is not None
    assert len(feedback) < 150


# ---- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("exat", r"unknown checker 'exat'; nearest: exact; known: exact, numeric, regex, regex:PATTERN, module:fu"),
        ("chain_sm", r"unknown checker 'chain_sm'; nearest: chain_sum"),
        ("", r"unknown checker ''"),
        ("reasoning-gym:chain_sm", r"reasoning-gym has no task 'chain_sm'; nearest: chain_sum"),
        ("reasoning-gym:chain_sum(min_term=2)", r"no argument 'min_term'; nearest: min_terms, "),
        ("reasoning-gym:chain_sum(min_terms=9)", r"the task refuses its settings \(max_terms must be >= min_terms\)"),
        ("numeric(tol=2)", r"numeric has no argument 'tol'; nearest: tolerance"),
        ("numeric(-1)", r"tolerance is a number from 0 up, not -1"),
        ("numeric(True)", r"tolerance is a number from 0 up, not True"),
        ("regex:(", r"'\(' is no regular expression \(missing \)"),
        ("os:rename", r"os is Python's own, and none of its functions checks answers"),
        ("os.path:join", r"os.path is Python's own"),
        ("no.such:check", r"cannot be imported \(no module 'no' here or installed\)"),
        (":check", r"cannot be imported"),
        ("numpy:arry", r"numpy has no function 'arry'; nearest: array"),
        ("numpy:pi", r"numpy has no function 'pi'"),
    ],
)
def test_an_unknown_checker_is_refused_in_one_line(spec, message):
    with pytest.raises(DataError, match=message) as caught:
        Checker(spec)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported_is_refused(module):
    with pytest.raises(DataError, match=r"cannot be imported \(ZeroDivisionError: division by zero\); mend it"):
        Checker(f"{module('1 / 0')}:check")
    with pytest.raises(DataError, match=r"no module 'missing_below' here or installed|named 'missing_below'"):
        Checker(f"{module('import missing_below')}:check")


def test_without_reasoning_gym_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr(reasoning, "tasks", dict)
    with pytest.raises(DataError, match=r"reasoning-gym is missing; pip install reasoning-gym"):
        Checker("reasoning-gym:maze")
    with pytest.raises(DataError, match=r"unknown checker 'chain_sum'.*\(pip install reasoning-gym\)"):
        Checker("chain_sum")


@pytest.mark.parametrize(
    ("spec", "answer", "why"),
    [
        ("exact", "x", None),
        ("exact", None, "has no answer to compare with"),
        ("numeric", "many", "finds no number in the answer 'many'"),
        ("numeric(0)", "many", "finds no number in the answer 'many'"),
        ("numeric", "1/2", None),
        ("regex", "(", "no regular expression"),
        ("regex:x", None, None),
        ("here:check", None, None),
        ("reasoning-gym:maze", None, "has no answer to compare with"),
        ("maze", None, "has no answer to compare with"),
    ],
)
def test_what_a_checker_needs_of_an_answer(spec, answer, why):
    said = rewards.unusable_reason(spec, answer)
    assert said is None if why is None else why in str(said)
    assert why is None or answer is not None or rewards.unusable_reason(spec, None, entry=True) is None


def test_a_spec_is_looked_up_once(module, monkeypatch):
    checker = Checker(f"{module('def judge(completion, answer): return 1')}:judge")
    monkeypatch.setattr(rewards, "resolve", lambda spec: pytest.fail("looked up again"))
    assert math.fsum(checker(text, example()).reward for text in "abc") == 3
