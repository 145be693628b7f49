"""Expressions such as ``ps_kd(alpha=0.8)``: they are parsed and checked, and never compiled or evaluated.

Only calls of the names handed in, and literals, have a meaning, so a name that was not handed in cannot be reached.
Arguments are checked by the annotations of the recipe, in which their range stands.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import wraps
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import RecipeError

P = ParamSpec("P")
R = TypeVar("R")


class Range(NamedTuple):
    """Numbers from ``least`` to ``most``, without ``least`` itself where ``above``.

    ``limit`` is a technical end: what is larger has a meaning, but no machine has room or time for it.
    """

    least: float
    most: float = math.inf
    above: bool = False
    limit: float = math.inf

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, Real):
            return False
        number = value if isinstance(value, int) else float(value)
        low = self.least < number if self.above else self.least <= number
        return low and number <= self.most and number <= self.limit

    def __str__(self) -> str:
        start = f"{'above' if self.above else 'at least'} {self.least:.15g}"
        return start if math.isinf(self.most) else f"{start} and at most {self.most:.15g}"

    def fault(self, value: float) -> str:
        """The allowed numbers in words, for a value that is not among them.

        >>> Range(1, limit=1000).fault(0), Range(1, limit=1000).fault(5000)
        ('at least 1', 'at most 1000')
        """
        return f"at most {self.limit:.15g}" if value > self.limit else str(self)


# What the parameters of recipes are annotated with: an editor sees the number, `checked` sees the range too.
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Ratio = Annotated[float, Range(0, 100, above=True)]  # beyond, one batch is more than most memories hold
# Whole numbers, and how large they can be.
Count = Annotated[int, Range(1, limit=1000)]  # of trainings, models and passes
Extras = Annotated[int, Range(0, limit=1000)]  # of rows and crops beside others
Size = Annotated[int, Range(1, limit=2**20)]  # of layers, windows and texts
Epochs = Annotated[int, Range(1, limit=10**6)]
Steps = Annotated[int, Range(1, limit=10**9)]
BatchSize = Annotated[int, Range(1, limit=10**7)]
Seed = Annotated[int, Range(-(2**63), limit=2**63 - 1)]


WHOLE = Range(-(2**20), limit=2**20)  # of a whole number that declares no range


_KINDS: dict[Any, tuple[str, tuple[type, ...]]] = {
    bool: ("True or False", (bool,)),
    int: ("a whole number", (Integral,)),
    float: ("a number", (Real,)),
    str: ("a text in quotes", (str,)),
}


def checked(recipe: Callable[P, R]) -> Callable[P, R]:
    """The same recipe, which refuses arguments that its annotations do not allow.

    >>> def soften(temperature: Positive = 4.0) -> float:
    ...     return temperature
    >>> checked(soften)(2)
    2
    >>> checked(soften)("warm")
    Traceback (most recent call last):
    selfdistill.errors.RecipeError: temperature is a number, not 'warm'
    >>> checked(soften)(0)
    Traceback (most recent call last):
    selfdistill.errors.RecipeError: temperature is above 0, not 0

    Raises:
        RecipeError: an argument is of another kind, not finite, or out of its range.
    """

    @wraps(recipe)
    def careful(*args: P.args, **options: P.kwargs) -> R:
        hints, signature = get_type_hints(recipe, include_extras=True), inspect.signature(recipe)
        for name, value in signature.bind(*args, **options).arguments.items():
            fault = _fault(value, hints.get(name))
            if fault:
                raise RecipeError(f"{name} is {fault}, not {one_line(repr(value), 60)}")
        return recipe(*args, **options)

    return careful


def _fault(value: Any, kind: Any) -> str | None:
    """The allowed values of an annotation in words; None where the value is allowed, or where it is not a kind of
    literal.
    """
    if get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind):
        if value is None:
            return None
        members = [member for member in get_args(kind) if member is not NoneType]
        if len(members) > 1:
            faults = [_fault(value, member) for member in members]
            return None if None in faults else " or ".join(filter(None, faults))
        kind = members[0]
    kind, *ranges = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if kind not in _KINDS:
        return None
    form, types = _KINDS[kind]
    if kind is int and not ranges:
        ranges = [WHOLE]
    if not isinstance(value, types) or (isinstance(value, bool) and kind is not bool):
        return form
    if isinstance(value, Real) and not isinstance(value, Integral) and not math.isfinite(value):
        return form
    return next((limits.fault(value) for limits in ranges if value not in limits), None)


def field_fault(instance: Any) -> str | None:
    """The first field of a dataclass whose value its annotation does not allow, in words.

    >>> @dataclass
    ... class Plan:
    ...     epochs: Count = 1
    >>> field_fault(Plan(epochs=0)), field_fault(Plan())
    ('epochs is at least 1, not 0', None)
    """
    hints = get_type_hints(type(instance), include_extras=True)
    for name in (field.name for field in fields(instance)):
        value = vars(instance)[name]
        if fault := _fault(value, hints[name]):
            return f"{name.replace('_', ' ')} is {fault}, not {one_line(repr(value), 60)}"
    return None


MAX_LENGTH = 10_000


MAX_DEPTH = 50


_LISTED = 12  # so many names still fit a line

# What a callee may raise because of the values it was given, rather than because of a fault of its own.
_CALLEE_ERRORS = (RecipeError, ValueError, TypeError, ArithmeticError, AttributeError, LookupError)

_SYNTAX: dict[type[ast.AST], str] = {
    ast.Attribute: "a dotted name",
    ast.Subscript: "an index",
    ast.Lambda: "a lambda",
    ast.BinOp: "an operator",
    ast.BoolOp: "an operator",
    ast.Compare: "a comparison",
    ast.UnaryOp: "an operator on something that is not a number",
    ast.IfExp: "a condition",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "an f-string",
    ast.FormattedValue: "an f-string",
    ast.Set: "a set",
    ast.Starred: "a starred value",
    ast.NamedExpr: "an assignment",
}


def parse_expression(text: str, names: Mapping[str, Callable[..., Any]], kind: str = "method") -> Any:
    """Evaluate a call with literals (and further calls) as arguments; a bare name is a call too.

    ``kind`` says in messages what the names are ("method", "model").

    >>> parse_expression("add(1, b=-2.5)", {"add": lambda a, b=0: a + b})
    -1.5
    >>> parse_expression("pair", {"pair": tuple})
    ()

    Raises:
        RecipeError: the text is not of this form, names something unknown, or its arguments are refused.
    """
    if len(text) > MAX_LENGTH:
        raise RecipeError(f"a {kind} expression has at most {MAX_LENGTH} characters; this one has {len(text)}")
    text = text.strip()
    if not text:
        raise RecipeError(f"the {kind} expression is empty; {_remedy(names, kind)}")
    reader = _Reader(text, names, kind)
    tree = reader.parse()
    if isinstance(tree, ast.Name):
        return reader.call(ast.Call(func=tree, args=[], keywords=[]), depth=1)
    if not isinstance(tree, ast.Call):
        raise reader.refusal(tree, _SYNTAX.get(type(tree), f"not the call of a {kind}"))
    return reader.call(tree, depth=1)


def expression_name(text: str) -> str:
    """The name that an expression calls.

    >>> expression_name(" ps_kd(alpha=0.8)"), expression_name("plain")
    ('ps_kd', 'plain')
    """
    return text.split("(", maxsplit=1)[0].strip()


def argument_names(text: str) -> list[str]:
    """The names that a call gives its arguments; none where the text is no call.

    >>> argument_names("auto(most=3)"), argument_names("auto"), argument_names("auto(")
    (['most'], [], [])
    """
    try:
        tree = ast.parse(text[:MAX_LENGTH].strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    return [word.arg for word in tree.keywords if word.arg] if isinstance(tree, ast.Call) else []


def foreign_arguments(text: str, function: Callable[..., Any]) -> list[str]:
    """The named arguments of a call that a function does not have.

    >>> foreign_arguments("sum([1], begin=2)", sum)
    ['begin']
    """
    return [name for name in argument_names(text) if name not in inspect.signature(function).parameters]


def nearest(name: str, names: Mapping[str, object] | list[str]) -> str:
    """The known names closest to a misspelt one, comma separated; empty if none is close.

    >>> nearest("ps_dk", ["ps_kd", "born_again"])
    'ps_kd'
    """
    matches = difflib.get_close_matches(name.lower(), {k.lower() for k in names}, n=3, cutoff=0.5)
    return ", ".join(k for lower in matches for k in names if k.lower() == lower)  # Cnn is close to cnn


def one_line(text: object, width: int = 200) -> str:
    """Any text on a single line of at most ``width`` characters, with what cannot be printed escaped."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if len(line) <= width else line[: width - 3] + "..."


def _remedy(names: Mapping[str, object], kind: str) -> str:
    if kind == "method":
        return "`selfdistill methods` lists them"
    listed = sorted(names)
    return "known: " + ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")


def _signature(name: str, signature: inspect.Signature) -> str:
    """The signature of a call as text, without the types."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    untyped = signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty)
    return one_line(f"{name}{untyped}", 160)


@dataclass(frozen=True)
class _Reader:
    """One expression being read; its methods share the text for their messages."""

    text: str
    names: Mapping[str, Callable[..., Any]]
    kind: str

    def parse(self) -> ast.expr:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # remarks on style, such as an unknown escape in a string
                return ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            position = f" at column {error.offset}" if error.offset else ""
            raise self.error(f"not readable{position} ({one_line(error.msg, 80)})") from None
        except (RecursionError, MemoryError):
            raise self.error(f"nested deeper than {MAX_DEPTH}") from None
        except ValueError as error:
            raise self.error(f"not readable ({one_line(error, 80)})") from None

    def error(self, fault: str) -> RecipeError:
        return RecipeError(f"{self.kind} expression '{one_line(self.text, 80)}': {fault}")

    def refusal(self, node: ast.expr | ast.keyword, fault: str) -> RecipeError:
        """Something that has no meaning here, with its place counted from 1 as a reader would."""
        lines = self.text.splitlines() or [""]
        row, offset = node.lineno, node.col_offset
        prefix = lines[min(row, len(lines)) - 1].encode(errors="replace")[:offset]  # offsets count UTF-8 bytes
        position = f"column {len(prefix.decode(errors='ignore')) + 1}" + (f" of line {row}" if row > 1 else "")
        return self.error(f"{fault} at {position}; only calls of known names with literals as arguments are read")

    def value(self, node: ast.expr, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH}")
        match node:
            case ast.Call():
                return self.call(node, depth)
            case ast.Constant(value=int() as number) if number > 1e308:  # which no float can be compared with
                raise self.refusal(node, "a whole number beyond 1e308")
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=ast.Constant(value=int() | float() as number)) if (
                not isinstance(number, bool)
            ):
                return -number if isinstance(node.op, ast.USub) else number
            case ast.Tuple():
                return tuple(self.value(item, depth + 1) for item in node.elts)
            case ast.List():
                return [self.value(item, depth + 1) for item in node.elts]
            case ast.Dict():
                return self.mapping(node, depth)
            case ast.Name():
                raise self.refusal(node, f"the name {node.id!r} is used as a value (write {node.id}() for a call)")
        raise self.refusal(node, _SYNTAX.get(type(node), "a value of another kind"))

    def mapping(self, node: ast.Dict, depth: int) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            if not (isinstance(key, ast.Constant) and isinstance(key.value, str)):
                raise self.refusal(key or item, "a dictionary key that is not a string")
            if key.value in items:
                raise self.refusal(key, f"the key {key.value!r} given twice")
            items[key.value] = self.value(item, depth + 1)
        return items

    def call(self, node: ast.Call, depth: int) -> Any:
        if not isinstance(node.func, ast.Name):
            raise self.refusal(node.func, _SYNTAX.get(type(node.func), "a call of something without a name"))
        name = node.func.id
        if name not in self.names:
            hint = nearest(name, self.names)
            hint = f"nearest: {hint}. " if hint else ""
            raise RecipeError(f"unknown {self.kind} {one_line(name, 60)!r}; {hint}{_remedy(self.names, self.kind)}")
        args = [self.value(item, depth + 1) for item in node.args]
        options: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self.refusal(keyword, "arguments unpacked with **")
            if keyword.arg in options:
                raise self.refusal(keyword, f"the argument {keyword.arg!r} given twice")
            options[keyword.arg] = self.value(keyword.value, depth + 1)
        function = self.names[name]
        check_arguments(name, function, args, options)
        try:
            return function(*args, **options)
        except _CALLEE_ERRORS as error:
            reason = one_line(error, 400) or type(error).__name__
            raise self.error(reason) from error


def check_arguments(name: str, function: Callable[..., Any], args: list[Any], options: Mapping[str, Any]) -> None:
    """Check arguments against a signature; the error names the nearest names and the signature.

    Raises:
        RecipeError: an argument is unknown, missing, given twice, or one too many.
    """
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # some built-ins do not say; the call itself will
    kinds = inspect.Parameter
    parameters = signature.parameters.values()
    by_name = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    by_place = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    form = _signature(name, signature)
    unknown = [option for option in options if option not in by_name]
    if unknown and not any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        hint = nearest(unknown[0], by_name)
        hint = f"nearest: {hint}; " if hint else ""
        raise RecipeError(f"{name} has no argument {one_line(unknown[0], 60)!r}; {hint}it is written {form}")
    if len(args) > len(by_place) and not any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        raise RecipeError(f"{name} takes {len(by_place)} arguments by position, not {len(args)}; it is written {form}")
    repeated = [p.name for p in by_place[: len(args)] if p.name in options and p.kind is kinds.POSITIONAL_OR_KEYWORD]
    if repeated:
        raise RecipeError(f"{name} is given {repeated[0]!r} twice, by position and by name; it is written {form}")
    required = [p for p in by_place[len(args) :] if p.default is kinds.empty]
    required += [p for p in parameters if p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty]
    missing = [p.name for p in required if p.name not in options or p.kind is kinds.POSITIONAL_ONLY]
    if missing:
        raise RecipeError(f"{name} needs {', '.join(missing)}; it is written {form}")
