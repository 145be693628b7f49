"""Examples for language models, and the JSON Lines files that hold them; an error names the line and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ..errors import DataError
from ..io.expressions import one_line

FIELDS = ("demonstration", "answer", "checker", "feedback", "wrong")  # text that a row may have beside its prompt


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the user's turn, and its optional fields.

    >>> Example((("system", "Be brief."), ("user", "1 + 1 = ?")), answer="2", checker="numeric").prompt
    '1 + 1 = ?'
    """

    messages: tuple[tuple[str, str], ...]  # (role, content)
    demonstration: str | None = None  # how it can be answered
    answer: str | None = None  # what the checker compares with
    checker: str | None = None  # see `checkers.Checker`
    feedback: str | None = None  # what was said about an attempt
    wrong: str | None = None  # a wrong solution, for contrastive contexts
    entry: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # reasoning-gym's own record
    line: int = 0  # in its file, from 1

    @property
    def prompt(self) -> str:
        """The last turn."""
        return self.messages[-1][1]

    @property
    def user_text(self) -> str:
        """The user's text in all turns, without repeated spaces: examples that share it are the same prompt."""
        return "\n".join(" ".join(content.split()) for role, content in self.messages if role == "user")


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


class PromptRow(NamedTuple):
    """An example, the split that its file puts it in, and the fields that have no meaning here."""

    example: Example
    split: str | None
    extra: tuple[str, ...]


def read_rows(path: Path) -> list[PromptRow]:
    """The rows of a file.

    Raises:
        DataError: no such file, not UTF-8, not JSON lines, or a row that is none; file, line and remedy are named.
    """
    if path.suffix.lower() != SUFFIX or path.is_dir():
        raise DataError(f"{path}: prompts are read from a {SUFFIX} file, one JSON object a line; write one")
    return [_row(path, number, line) for number, line in _lines(path)]


def write_rows(rows: Sequence[Example], path: Path, splits: Sequence[str | None] | None = None) -> None:
    """Write examples so that `read_rows` gives them back; ``splits`` names the split of each."""
    lines = []
    for example, split in zip(rows, splits or [None] * len(rows), strict=True):
        fields = {name: getattr(example, name) for name in FIELDS if getattr(example, name) is not None}
        if len(example.messages) == 1:
            prompt: dict[str, Any] = {"prompt": example.prompt}
        else:
            prompt = {"messages": [{"role": role, "content": content} for role, content in example.messages]}
        entry = {} if example.entry is None else {"entry": example.entry}
        lines.append(
            json.dumps({**prompt, **fields, **entry, **({"split": split} if split else {})}, ensure_ascii=False)
        )
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, numbered from 1; only a line feed ends one, whatever else JSON text may hold."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        candidates = [str(entry) for entry in path.parent.glob(f"*{SUFFIX}")]
        matches = difflib.get_close_matches(str(path), candidates, n=1)
        hint = f" (did you mean '{matches[0]}'?)" if matches else ""
        raise DataError(f"no prompts called '{path}'{hint}; give the path of a {SUFFIX} file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            fault = f"byte {error.object[error.start]:#04x} is not UTF-8"
            raise DataError(f"{path}:{number}: {fault}; save the file as UTF-8") from None
        if line:
            yield number, line


class _Place(NamedTuple):
    path: Path
    line: int

    def refuse(self, fault: str) -> NoReturn:
        raise DataError(f"{self.path}:{self.line}: {fault}")


def _row(path: Path, number: int, line: str) -> PromptRow:
    place = _Place(path, number)
    try:
        record = json.loads(line)
    except ValueError as error:
        reason = one_line(error.msg if isinstance(error, json.JSONDecodeError) else error, 80)
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        place.refuse(f'not JSON ({reason}{column}); write one object a line, such as {{"prompt": "..."}}')
    except RecursionError:
        place.refuse("nested too deeply; write one flat object a line")
    if not isinstance(record, dict):
        place.refuse(f'{_json_kind(record)} instead of an object; write one a line, such as {{"prompt": "..."}}')
    fields = {name: _text(record[name], f'"{name}"', place) for name in FIELDS if record.get(name) is not None}
    for name, text in fields.items():
        if not text.strip():
            subject = "empty completion: the demonstration" if name == "demonstration" else f'the field "{name}"'
            place.refuse(f"{subject} has no text; write it, or leave the field out")
    entry, split = record.get("entry"), record.get("split")
    if entry is not None and not isinstance(entry, dict):
        place.refuse(f'the field "entry" is {_json_kind(entry)}; give the object that reasoning-gym made')
    if split is not None and split not in SPLITS:
        place.refuse(f'the split is {one_line(json.dumps(split), 40)}; use "train", "audit" or "test"')
    extra = tuple(name for name in record if name not in _READ)
    return PromptRow(Example(_messages(record, place), entry=entry, line=number, **fields), split, extra)


def _messages(record: dict[str, Any], place: _Place) -> tuple[tuple[str, str], ...]:
    """The conversation of a row: text, or turns of which the last is the user's."""
    names = [name for name in ("prompt", "messages") if record.get(name) is not None]
    if not names:
        matches = difflib.get_close_matches("prompt", list(record), n=1)
        hint = f' (it has "{matches[0]}")' if matches else ""
        place.refuse(f'no prompt{hint}; add the field "prompt", text or a list of messages')
    if len(names) == 2:
        place.refuse('both "prompt" and "messages" are given; keep one of them')
    name, content = names[0], record[names[0]]
    if not isinstance(content, list):
        messages = [("user", _text(content, f'"{name}"', place))]
    else:
        messages = [_message(message, name, number, place) for number, message in enumerate(content, 1)]
    if not messages or messages[-1][0] != "user":
        fault = f"the last turn is the {messages[-1][0]}'s" if messages else "there is no turn"
        place.refuse(
            f'a prompt ends with the user\'s turn, and {fault}; move what comes after it to the field "demonstration"'
        )
    if not messages[-1][1].strip():
        place.refuse("the prompt is empty; write it, or remove the line")
    return tuple(messages)


def _message(message: Any, name: str, number: int, place: _Place) -> tuple[str, str]:
    if not (isinstance(message, dict) and "role" in message and "content" in message):
        place.refuse(
            f'message {number} of "{name}" is not of the form {{"role": "user", "content": "..."}}; write it so'
        )
    role = message["role"]
    if role not in ROLES:
        place.refuse(
            f'message {number} of "{name}" has the role {one_line(json.dumps(role), 40)}; use {", ".join(ROLES)}'
        )
    return role, _text(message["content"], f'the content of message {number} of "{name}"', place)


def _text(value: Any, subject: str, place: _Place) -> str:
    subject = subject if subject.startswith("the ") else f"the field {subject}"
    if not isinstance(value, str):
        remedy = f'; write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        place.refuse(f"{subject} is {_json_kind(value)} and not text{remedy or '; write it as text'}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        place.refuse(f"{subject} has half a character, {value[error.start]!a}; remove it")
    return value


def _json_kind(value: Any) -> str:
    return _KINDS.get(type(value), "null")
