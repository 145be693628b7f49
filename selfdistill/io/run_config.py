"""``run.toml``: the options of a run by their long names, in the form that ``selfdistill run --config`` reads."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import DataError
from .expressions import one_line
from .files import write
from .run_record import Request
from .schema import read_regular

FILE = "run.toml"
OTHER = {"fields": "columns", "columns": "column"}  # fields of a request whose option has another name
APART = {
    "labels",
    "decisions",
    "budget",
    "deployment",
    "training",
    "columns",
    "fields",
}  # written in a form of their own

Value = str | int | float | bool | Sequence[str]


def request_options(request: Request) -> dict[str, Value]:
    """The options that make a request, by their long names without dashes; those that are left out have defaults.

    Args:
        request: of a run.

    >>> request_options(Request("t.csv", target="y", labels=60, budget="10min|4GiB", training=(("save_steps", 3),)))
    {'data': 't.csv', 'target': 'y', 'labels': ['60'], 'budget': ['10min', '4GiB'], 'save-steps': 3}
    """
    usual, found = Request(), dict[str, Value]()
    for field in fields(request):
        value, default = vars(request)[field.name], vars(usual)[field.name]
        if field.name == "data" or (field.name not in APART and value != default):
            found[field.name.replace("_", "-")] = value
    if labels := [str(one) for one in (request.labels, request.decisions) if one is not None]:
        found["labels"] = labels
    if request.columns:
        found["column"] = [f"{name}={kind}" for name, kind in request.columns]
    if request.fields:
        found["columns"] = ",".join(f"{name}={column}" for name, column in request.fields)
    if request.budget is not None:
        found["budget"] = request.budget.split("|")
    if request.deployment is not None:
        found[request.deployment] = True  # --sampled
    return found | {name.replace("_", "-"): value for name, value in request.training}


def toml_text(options: Mapping[str, Value]) -> str:
    """Options as TOML, a line each: texts, numbers, truths and lists of texts.

    A text that is no Unicode, such as the name of a file may be, cannot stand in TOML: its line is a comment.

    >>> toml_text({"data": 'a "b".csv', "lr": 1e-05, "control": False, "labels": ["60", "d.csv"]}).splitlines()
    ['data = "a \\\\"b\\\\".csv"', 'lr = 1e-05', 'control = false', 'labels = ["60", "d.csv"]']
    """
    lines = []
    for name, value in options.items():
        line = f"{name} = {_toml(value)}"
        lines.append(line if line.isprintable() or _is_unicode(line) else f"# {ascii(line)[1:-1]}  (no Unicode)")
    return "".join(f"{line}\n" for line in lines)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _toml(value: Value) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case str():  # JSON escapes as TOML does, but for the one control character above 31
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case _:
            return f"[{', '.join(map(_toml, value))}]"


def write_run_config(folder: Path, command: str, options: Mapping[str, Value], resolved: Mapping[str, object]) -> None:
    """Write ``run.toml`` of a folder; one that is there stays.

    Args:
        folder: of a run or a comparison.
        command: that reads it, such as ``run``.
        options: by their long names.
        resolved: what was chosen where an option was left out, for people: comments.
    """
    path = folder / FILE
    if path.exists():
        return
    head = f"# Repeat it in a new folder: selfdistill {command} --config {FILE} --out DIR\n"
    chosen = "".join(f"#   {name} = {one_line(str(value), 200)}\n" for name, value in resolved.items())
    write(path, head + toml_text(options) + (f"# chosen:\n{chosen}" if chosen else ""))


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a file of options.

    Raises:
        DataError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(read_regular(path).decode())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error}); give another --config") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} cannot be read (it is not UTF-8); give another --config") from error
    except ValueError as error:
        raise DataError(f"{path} is no TOML ({one_line(error, 100)}); write lines such as steps = 100") from error
