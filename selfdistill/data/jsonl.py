"""Prompts in a file, one JSON object a line; a fault is reported with its line and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import DataError
from ..io.expressions import one_line
from .examples import FIELDS, Example

SUFFIX = ".jsonl"


SPLITS = ("train", "audit", "test")


ROLES = ("system", "user", "assistant", "tool")


_READ = ("prompt", "messages", "split", "entry", *FIELDS)


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    str: "text",
}


class Row(NamedTuple):
    """An example, the split that its file puts it in, and the fields that have no meaning here."""

    example: Example
    split: str | None
    extra: tuple[str, ...]


def read(path: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        DataError: no such file, not UTF-8, not JSON lines, or a row that is none; file, line and remedy are named.
    """
    if path.suffix.lower() != SUFFIX or path.is_dir():
        raise DataError(f"{path}: prompts are read from a {SUFFIX} file, one JSON object a line; write one")
    return [_row(path, number, line) for number, line in _lines(path)]


def write(rows: Sequence[Example], path: Path, splits: Sequence[str | None] | None = None) -> None:
    """Write examples so that `read` gives them back; ``splits`` names the split of each."""
    lines = []
    for example, split in zip(rows, splits or [None] * len(rows), strict=True):
        known = {name: getattr(example, name) for name in FIELDS if getattr(example, name) is not None}
        if len(example.messages) == 1:
            shown: dict[str, Any] = {"prompt": example.prompt}
        else:
            shown = {"messages": [{"role": role, "content": content} for role, content in example.messages]}
        entry = {} if example.entry is None else {"entry": example.entry}
        lines.append(json.dumps({**shown, **known, **entry, **({"split": split} if split else {})}, ensure_ascii=False))
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1; only a line feed ends one, whatever else JSON text may hold."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        beside = [str(entry) for entry in path.parent.glob(f"*{SUFFIX}")]
        near = difflib.get_close_matches(str(path), beside, n=1)
        hint = f" (did you mean '{near[0]}'?)" if near else ""
        raise DataError(f"no prompts called '{path}'{hint}; give the path of a {SUFFIX} file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            what = f"byte {error.object[error.start]:#04x} is not UTF-8"
            raise DataError(f"{path}:{number}: {what}; save the file as UTF-8") from None
        if line:
            yield number, line


class _Place(NamedTuple):
    path: Path
    line: int

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.path}:{self.line}: {what}")


def _row(path: Path, number: int, line: str) -> Row:
    place = _Place(path, number)
    try:
        found = json.loads(line)
    except ValueError as error:
        why = one_line(error.msg if isinstance(error, json.JSONDecodeError) else error, 80)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        place.refuse(f'not JSON ({why}{column}); write one object a line, such as {{"prompt": "..."}}')
    except RecursionError:
        place.refuse("nested too deeply; write one flat object a line")
    if not isinstance(found, dict):
        place.refuse(f'{_kind(found)} instead of an object; write one a line, such as {{"prompt": "..."}}')
    known = {name: _text(found[name], f'"{name}"', place) for name in FIELDS if found.get(name) is not None}
    for name, text in known.items():
        if not text.strip():
            meant = "empty completion: the demonstration" if name == "demonstration" else f'the field "{name}"'
            place.refuse(f"{meant} has no text; write it, or leave the field out")
    entry, split = found.get("entry"), found.get("split")
    if entry is not None and not isinstance(entry, dict):
        place.refuse(f'the field "entry" is {_kind(entry)}; give the object that reasoning-gym made')
    if split is not None and split not in SPLITS:
        place.refuse(f'the split is {one_line(json.dumps(split), 40)}; use "train", "audit" or "test"')
    extra = tuple(name for name in found if name not in _READ)
    return Row(Example(_messages(found, place), entry=entry, line=number, **known), split, extra)


def _messages(found: dict[str, Any], place: _Place) -> tuple[tuple[str, str], ...]:
    """The conversation of a row: text, or turns of which the last is the user's."""
    given = [name for name in ("prompt", "messages") if found.get(name) is not None]
    if not given:
        near = difflib.get_close_matches("prompt", list(found), n=1)
        hint = f' (it has "{near[0]}")' if near else ""
        place.refuse(f'no prompt{hint}; add the field "prompt", text or a list of messages')
    if len(given) == 2:
        place.refuse('both "prompt" and "messages" are given; keep one of them')
    name, said = given[0], found[given[0]]
    if not isinstance(said, list):
        turns = [("user", _text(said, f'"{name}"', place))]
    else:
        turns = [_turn(turn, name, number, place) for number, turn in enumerate(said, 1)]
    if not turns or turns[-1][0] != "user":
        last = f"the last turn is the {turns[-1][0]}'s" if turns else "there is no turn"
        place.refuse(
            f'a prompt ends with the user\'s turn, and {last}; move what comes after it to the field "demonstration"'
        )
    if not turns[-1][1].strip():
        place.refuse("the prompt is empty; write it, or remove the line")
    return tuple(turns)


def _turn(turn: Any, name: str, number: int, place: _Place) -> tuple[str, str]:
    if not (isinstance(turn, dict) and "role" in turn and "content" in turn):
        place.refuse(
            f'message {number} of "{name}" is not of the form {{"role": "user", "content": "..."}}; write it so'
        )
    role = turn["role"]
    if role not in ROLES:
        place.refuse(
            f'message {number} of "{name}" has the role {one_line(json.dumps(role), 40)}; use {", ".join(ROLES)}'
        )
    return role, _text(turn["content"], f'the content of message {number} of "{name}"', place)


def _text(value: Any, what: str, place: _Place) -> str:
    what = what if what.startswith("the ") else f"the field {what}"
    if not isinstance(value, str):
        shown = f'; write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        place.refuse(f"{what} is {_kind(value)} and not text{shown or '; write it as text'}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        place.refuse(f"{what} has half a character, {value[error.start]!a}; remove it")
    return value


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")
