"""Verifiers: each gives a completion a reward in [0, 1]; one that raises is counted and shown, and never fatal."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError, RecipeError
from ..io.expressions import expression_name, nearest, one_line, parse_expression
from . import reasoning
from .examples import Example

PATTERN = "regex:"


_SHOWN = 100  # characters of a completion in feedback


_LONGEST = 400  # digits, or powers of ten, of a number that is still compared

_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.])[-+\N{MINUS SIGN}])?[$€£]?"  # after a word or a bracket it is an operator
    r"(?:\\[dt]?frac\{\s*(?P<over>[-+]?\d+)\s*\}\{\s*(?P<under>\d+)\s*\}"
    r"|(?:(?P<whole>\d{1,3}(?:,\d{3})+(?!,?\d)|\d+)(?P<decimals>\.\d+)?|(?P<bare>\.\d+))(?:[eE](?P<power>[-+]?\d+))?"
    r"(?:\s?/\s?(?P<divisor>\d+)(?!\.?\d))?)"
)


@dataclass(frozen=True)
class Checked:
    """The result of a check of one completion."""

    reward: float  # in [0, 1]
    feedback: str | None = None
    failed: bool = False  # the checker raised, or returned something else


Judge = Callable[[str, Example], Checked]


class Checker:
    """A checker of completions, which counts its calls and its failures.

    ============================  ===============================================================================
    spec                          a completion is right if
    ============================  ===============================================================================
    exact                         it is the answer, whitespace aside
    numeric(tolerance=1e-6)       \\|its last number - the answer's last number\\| <= tolerance
    regex                         the answer, a regular expression, is found in it
    regex:PATTERN                 PATTERN is found in it
    module:function               function(completion, answer) says so: a bool, a number in [0, 1], or
                                  (number, feedback); found in the current folder, or installed
    reasoning-gym:TASK, TASK      reasoning-gym's own scoring says so, a number in [0, 1]
    ============================  ===============================================================================

    Raises:
        DataError: there is no such checker; the nearest names are in the message.

    >>> checker = Checker("numeric")
    >>> example = Example((("user", "How many?"),), answer="1,250.5")
    >>> checker("That makes 2501/2.", example)
    Checked(reward=1.0, feedback=None, failed=False)
    >>> checker("Perhaps 7", example).feedback
    'Your answer was 7; that is not correct.'
    >>> checker.calls, checker.failures, checker.first_error
    (2, 0, None)
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.judge = resolve(spec)
        self.calls, self.failures = 0, 0
        self.first_error: str | None = None

    def __call__(self, completion: str, example: Example) -> Checked:
        """Check one completion; never raises."""
        self.calls += 1
        try:
            return self.judge(completion, example)
        except (Exception, SystemExit) as error:  # it is other people's code
            self.failures += 1
            location = f" (line {example.line})" if example.line else ""
            self.first_error = self.first_error or one_line(f"{type(error).__name__}: {error}") + location
            return Checked(0.0, failed=True)


def check(spec: str, completion: str, example: Example) -> Checked:
    """The result of the checker ``spec`` on a completion; see `Checker`.

    Raises:
        DataError: there is no such checker.

    >>> check("exact", " to  be ", Example((("user", "?"),), answer="to be")).reward
    1.0
    """
    return Checker(spec)(completion, example)


def resolve(spec: str) -> Judge:
    """The judge that a spec names; it may raise anything when it is called.

    Raises:
        DataError: as `Checker`.
    """
    text = spec.strip()
    if text.startswith(PATTERN):
        return regex(text.removeprefix(PATTERN))
    if reasoning.is_task(text):
        return _of_task(text)
    name = expression_name(text)
    if names_function(text):
        return _of_function(text)
    if name not in _KINDS and name in reasoning.tasks():
        return _of_task(reasoning.PREFIX + text)
    if name not in _KINDS:
        raise _unknown(name)
    try:
        judge: Judge = parse_expression(text, _KINDS, "checker")
    except RecipeError as error:
        raise DataError(str(error)) from None
    return judge


def names_function(spec: str) -> bool:
    """Whether a checker is a ``module:function``, which runs code that is not of this package.

    >>> names_function("grading:score"), names_function("regex:a:b"), names_function("numeric")
    (True, False, False)
    """
    text = spec.strip()
    return not text.startswith(PATTERN) and not reasoning.is_task(text) and ":" in expression_name(text)


def unusable_reason(spec: str, answer: str | None, *, entry: bool = False) -> str | None:
    """Why this checker cannot judge by this answer, with the remedy; None if it can.

    >>> unusable_reason("numeric", "many"), unusable_reason("regex", "x+")
    ("the checker numeric finds no number in the answer 'many'; write one", None)
    """
    kind = "regex:" if spec.strip().startswith(PATTERN) else expression_name(spec)
    free = ":" in kind and not reasoning.is_task(spec)  # a pattern of its own, or a function that knows what to do
    if answer is None and not free and not entry:
        return f'the checker {one_line(spec, 60)} has no answer to compare with; add the field "answer"'
    if kind == "numeric" and last_number(answer or "") is None:
        return f"the checker numeric finds no number in the answer {one_line(answer, 60)!r}; write one"
    if kind == "regex":
        try:
            regex(answer)
        except DataError as error:
            return str(error)
    return None


# ---- the kinds -------------------------------------------------------------------------------------


def exact() -> Judge:
    """Equal, whitespace aside."""

    def judge(completion: str, example: Example) -> Checked:
        text = _collapsed(completion)
        if text == _collapsed(_answer_of(example)):
            return Checked(1.0)
        return _incorrect(text) if text else Checked(0.0, "Your answer was empty.")

    return judge


def numeric(tolerance: float = 1e-6) -> Judge:
    """|last number said - last number of the answer| <= tolerance, in exact arithmetic."""
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not 0 <= tolerance < math.inf:
        raise RecipeError(f"tolerance is a number from 0 up, not {tolerance!r}")
    margin = Fraction(tolerance)

    def judge(completion: str, example: Example) -> Checked:
        expected = last_number(_answer_of(example))
        if expected is None:
            raise ValueError(f"no number in the answer {example.answer!r}")
        number = last_number(completion)
        if number is None:
            return Checked(0.0, "Your answer had no readable number.")
        return Checked(1.0) if abs(number[0] - expected[0]) <= margin else _incorrect(number[1])

    return judge


def regex(pattern: str | None = None) -> Judge:
    """A regular expression is found; it is the answer where it is not given.

    Raises:
        DataError: the pattern given is none.
    """
    fixed = None if pattern is None else _compiled(pattern)

    def judge(completion: str, example: Example) -> Checked:
        return Checked(float((fixed or _compiled(_answer_of(example))).search(completion) is not None))

    return judge


_KINDS: dict[str, Callable[..., Judge]] = {"exact": exact, "numeric": numeric, "regex": regex}


def last_number(text: str) -> tuple[Fraction, str] | None:
    r"""The last number of a text, exactly, and how it was written; None without one, or if it has 400 digits.

    Thousands may be set off by commas; fractions (also ``\frac{1}{2}``), decimals and powers of ten are numbers.

    >>> [str(last_number(text)[0]) for text in ("-1,000 or so", "3/4", "x=-.5", "5-3", "1, 2,", "2e3.")]
    ['-1000', '3/4', '-1/2', '3', '2', '2000']
    """
    last = None
    for last in _NUMBER.finditer(text):  # noqa: B007
        pass
    return None if last is None else _value(last)


def _value(match: re.Match[str]) -> tuple[Fraction, str] | None:
    part = match.groupdict()
    if any(len(value) > _LONGEST for value in part.values() if value) or abs(int(part["power"] or 0)) > _LONGEST:
        return None
    if part["over"] is not None:
        numerator, denominator = Fraction(int(part["over"])), int(part["under"])
    else:
        numerator = Fraction((part["whole"] or "0").replace(",", "") + (part["decimals"] or part["bare"] or ""))
        numerator, denominator = numerator * Fraction(10) ** int(part["power"] or 0), int(part["divisor"] or 1)
    if denominator == 0:
        return None
    return (numerator if part["sign"] in {None, "+"} else -numerator) / denominator, match.group().strip()


def _answer_of(example: Example) -> str:
    if example.answer is None:
        raise ValueError("no answer to compare with")
    return example.answer


def _collapsed(text: str) -> str:
    return " ".join(text.split())


def _incorrect(text: str) -> Checked:
    return Checked(0.0, f"Your answer was {one_line(text, _SHOWN)}; that is not correct.")


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise DataError(
            f"{one_line(pattern, 60)!r} is no regular expression ({one_line(error, 80)}); mend it"
        ) from None


# ---- other people's checkers -----------------------------------------------------------------------


def _of_task(spec: str) -> Judge:
    score = reasoning.scorer(spec)
    return lambda completion, example: _as_checked(score(completion, reasoning.entry_of(example)))


def _of_function(spec: str) -> Judge:
    """A function of the current folder, or of an installed package."""
    module_name, _, name = spec.partition(":")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        raise DataError(
            f"checker {one_line(spec, 60)!r}: {module_name} is Python's own, and none of its functions checks answers; "
            "write module:function of your own"
        )
    try:
        with _from_here():
            module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            reason = f"no module {error.name!r} here or installed"
        raise DataError(
            f"checker {one_line(spec, 60)!r} cannot be imported ({one_line(reason, 120)}); mend it"
        ) from None
    function = getattr(module, name, None)
    if not callable(function):
        matches = nearest(name, [key for key, value in vars(module).items() if callable(value)])
        raise DataError(
            f"checker {one_line(spec, 60)!r}: {module_name} has no function {name!r}"
            + (f"; nearest: {matches}" if matches else "; define it, as function(completion, answer)")
        )
    return lambda completion, example: _as_checked(function(completion, example.answer))


@contextmanager
def _from_here() -> Iterator[None]:
    """The current folder comes first, as it does for `python -m`; an installed command does not look there."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)


def _as_checked(value: Any) -> Checked:
    """The returned value as a result, if it is a bool, a number in [0, 1], or (number, feedback).

    Raises:
        ValueError, TypeError: it is something else.
    """
    feedback = None
    if isinstance(value, tuple) and len(value) == 2:
        value, feedback = value
        if not (feedback is None or isinstance(feedback, str)):
            raise TypeError(f"the feedback is a {type(feedback).__name__}; return text")
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.item()
    if not isinstance(value, bool | int | float):
        raise TypeError(f"the checker returned a {type(value).__name__}; return a bool, a number, or (number, text)")
    if not 0 <= value <= 1:
        raise ValueError(f"the checker returned {value}; return a number from 0 to 1")
    return Checked(float(value), feedback)


def _unknown(name: str) -> DataError:
    names = [*_KINDS, *reasoning.tasks()]
    matches = nearest(name, names)
    hint = "" if len(names) > len(_KINDS) else " (pip install reasoning-gym)"
    return DataError(
        f"unknown checker {one_line(name, 60)!r}; "
        + (f"nearest: {matches}; " if matches else "")
        + f"known: exact, numeric, regex, regex:PATTERN, module:function, and the tasks of reasoning-gym{hint}"
    )
