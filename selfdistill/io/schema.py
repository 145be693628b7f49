"""Schemas of records: what a JSON file must hold before anything else looks at it.

A schema is a type, a `Range`, None, a set of texts, a value's alternatives in a tuple, a list with the schema of its
items, or a dict. A dict has a schema a key, where ``"key?"`` may be absent and further keys are allowed;
``{str: schema}`` is a mapping.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from ..errors import CheckpointError
from .expressions import Range, one_line

Schema = Any


DEEPEST = 100  # brackets within brackets in a record; ours have about ten


_WORDS = {int: "a whole number", float: "a finite number", str: "text", bool: "true or false", dict: "a record"}


LARGEST = 2**63 - 1  # of whole numbers


def find_fault(value: Any, schema: Schema, place: str = "it") -> str | None:
    """The first fault of a value in words; None where it fits the schema.

    >>> find_fault({"steps": "many"}, {"steps": int, "seconds?": float})
    "steps is a whole number, not 'many'"
    >>> find_fault({"steps": 3}, {"steps": int, "seconds?": float}) is None
    True
    """
    match schema:
        case Range():  # itself a tuple
            wrong = isinstance(value, bool) or not isinstance(value, (int, float)) or value not in schema
            if not wrong:
                return None
            allowed = schema.fault(value) if isinstance(value, (int, float)) else schema
            return f"{place} is a number, {allowed}, not {_short(value)}"
        case tuple():
            faults = [find_fault(value, one, place) for one in schema]
            nested = [fault for fault in faults if fault and not fault.startswith(f"{place} is")]
            return None if None in faults else (nested or faults)[-1]
        case list():
            if not isinstance(value, list):
                return f"{place} is a list, not {_short(value)}"
            return _first(find_fault(item, schema[0], f"{place}[{i}]") for i, item in enumerate(value))
        case dict():
            return _dict_fault(value, schema, place)
        case frozenset():
            fits = isinstance(value, str) and value in schema
            return None if fits else f"{place} is one of {', '.join(sorted(schema))}, not {_short(value)}"
        case None:
            return None if value is None else f"{place} is nothing, not {_short(value)}"
    if schema is Any or _is(value, schema):
        return None
    return f"{place} is {_WORDS[schema]}, not {_short(value)}"


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if isinstance(value, int):
        return kind in (int, float) and abs(value) <= LARGEST
    if isinstance(value, float):
        return kind is float and math.isfinite(value)
    return isinstance(value, kind)


def _dict_fault(value: Any, schema: dict[Any, Schema], place: str) -> str | None:
    if not isinstance(value, dict):
        return f"{place} is a record, not {_short(value)}"
    start = "" if place == "it" else f"{place}."
    if str in schema:
        return _first(find_fault(item, schema[str], f"{start}{one_line(key, 40)}") for key, item in value.items())
    for key, kind in schema.items():
        name = key.removesuffix("?")
        if name not in value:
            if key == name:
                return f"{start}{name} is missing"
        elif fault := find_fault(value[name], kind, f"{start}{name}"):
            return fault
    return None


@contextmanager
def refuse_misfits(path: Path | str, remedy: str) -> Iterator[None]:
    """Whatever goes wrong with the content of a file that was read, such as a name that it lacks, is the file's fault.

    Raises:
        CheckpointError: something did.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        why = f"{type(error).__name__}: {one_line(error, 120)}"
        raise CheckpointError(f"{path} does not hold what it should ({why}); {remedy}") from error


def _first(faults: Any) -> str | None:
    return next((fault for fault in faults if fault), None)


def _short(value: Any) -> str:
    return one_line(repr(value), 40) if isinstance(value, (str, int, float, bool, type(None))) else type(value).__name__


def parse_json(text: str | bytes, schema: Schema = Any, nan: bool = False) -> Any:
    """The value of a JSON text that fits a schema.

    Args:
        text: the text; bytes are UTF-8.
        schema: see the module.
        nan: whether NaN and infinity are numbers here.

    Raises:
        ValueError: it is not JSON, nested too deeply, or does not fit; the message is the reason.

    >>> parse_json('{"a": [1, 2]}', {"a": [int]})
    {'a': [1, 2]}
    """
    try:
        content = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(content, parse_constant=float if nan else _refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST}") from None
    _check_depth(value)
    if fault := find_fault(value, schema):
        raise ValueError(fault)
    return value


def read_json(path: Path, schema: Schema = Any) -> Any:
    """The value of a JSON file that fits a schema.

    Raises:
        ValueError: see `parse_json`.
        OSError: the file cannot be read, or is a pipe or a device.
    """
    return parse_json(read_regular(path), schema)


def read_regular(path: Path, most: int = -1) -> bytes:
    """The (first ``most``) bytes of a regular file; a pipe or a device, which may never end, is an `OSError`."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        return file.read(most)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [item for node in level if isinstance(node, (list, dict)) for item in _items(node)]
        if not level:
            return
    raise ValueError(f"it is nested deeper than {DEEPEST}")


def _items(node: list[Any] | dict[str, Any]) -> list[Any]:
    return list(node.values()) if isinstance(node, dict) else node
