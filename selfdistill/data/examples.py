"""Examples for language models, and the fields of files that hold them; an error names the line and the remedy."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..io.expressions import one_line
from .prompt_files import SPLITS, Place, Record, kind_of, read_records

#: Text that a row may have beside its prompt.
FIELDS = ("demonstration", "answer", "checker", "feedback", "wrong", "privileged_context")


#: field -> the names that other tools have for it, which stand in where the field is not there
ALIASES = {
    "prompt": ("question", "instruction", "problem", "query"),
    "messages": ("conversations",),
    "demonstration": ("completion", "response", "output", "chosen"),
    "answer": ("ground_truth",),
    "wrong": ("rejected",),
}


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
    privileged_context: str | None = None  # what the teacher alone reads, where it is no demonstration
    entry: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)  # reasoning-gym's own record
    line: int = 0  # in its file, from 1

    @property
    def prompt(self) -> str:
        """The last turn."""
        return self.messages[-1][1]

    @property
    def shown(self) -> str | None:
        """The text that the teacher alone reads: the privileged context or else the demonstration."""
        return self.demonstration if self.privileged_context is None else self.privileged_context

    @property
    def user_text(self) -> str:
        """The user's text in all turns, without repeated spaces: examples that share it are the same prompt."""
        return "\n".join(" ".join(content.split()) for role, content in self.messages if role == "user")


ROLES = ("system", "user", "assistant", "tool")


_READ = ("prompt", "messages", "split", "entry", *FIELDS)


_SHARED_GPT = {"human": "user", "gpt": "assistant", "system": "system"}  # roles of {"from": ..., "value": ...}


class PromptRow(NamedTuple):
    """An example, the split that its file puts it in, the fields without a use here, and those read as others; its
    group and its time, where fields of them were named."""

    example: Example
    split: str | None
    extra: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()  # (name in the file, field)
    group: str | None = None
    time: Any = None
    own: bool = False  # of a file that is a split itself: no other row follows it


def read_rows(path: Path, groups: str | None = None, time: str | None = None) -> list[PromptRow]:
    """The rows of a file, or of a folder that `save_to_disk` of the library datasets wrote.

    Raises:
        DataError: no such file, not UTF-8, damaged, or a row that is none; file, line and remedy are named.
    """
    return [_placed(_row(record), record, groups, time) for record in read_records(path)]


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


def _placed(row: PromptRow, record: Record, groups: str | None, time: str | None) -> PromptRow:
    """The row with the fields of its group and its time, which are then used.

    Raises:
        DataError: one is not there.
    """
    for name, option in ((groups, "groups"), (time, "time")):
        if name is not None and record.fields.get(name) is None:
            record.place.refuse(f'no field "{one_line(name, 40)}", which --{option} names; add it')
    return row._replace(
        extra=tuple(name for name in row.extra if name not in (groups, time)),
        group=None if groups is None else str(record.fields[groups]),
        time=None if time is None else record.fields[time],
    )


def _row(record: Record) -> PromptRow:
    place, (fields, renamed) = record.place, _named(record.fields)
    messages, demonstration, extra = _messages(fields, place)
    if demonstration is not None:
        fields["demonstration"] = demonstration
        renamed += [("the last turn of messages", "demonstration")]
    texts = {name: _spoken(fields[name], name, place) for name in FIELDS if fields.get(name) is not None}
    for name, text in texts.items():
        if not text.strip():
            subject = "empty completion: the demonstration" if name == "demonstration" else f'the field "{name}"'
            place.refuse(f"{subject} has no text; write it, or leave the field out")
    entry, split = fields.get("entry"), record.split or fields.get("split")
    if entry is not None and not isinstance(entry, dict):
        place.refuse(f'the field "entry" is {kind_of(entry)}; give the object that reasoning-gym made')
    if split is not None and (not isinstance(split, str) or split not in SPLITS):
        place.refuse(f'the split is {one_line(json.dumps(split), 40)}; use "train", "validation" or "test"')
    extra += [name for name in fields if name not in _READ]
    example = Example(messages, entry=entry, line=place.line, **texts)
    return PromptRow(example, None if split is None else SPLITS[split], tuple(extra), tuple(renamed))


def _named(record: Mapping[str, Any]) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The fields by the names that they have here, and which were renamed. An instruction's input follows it."""
    fields, renamed = dict(record), list[tuple[str, str]]()
    has_prompt = fields.get("prompt") is not None or fields.get("messages") is not None
    for field_name, others in ALIASES.items():
        other = next((name for name in others if fields.get(name) is not None), None)
        if other is None or fields.get(field_name) is not None or (has_prompt and field_name in ("prompt", "messages")):
            continue
        fields[field_name] = fields.pop(other)
        renamed.append((other, field_name))
        if other == "instruction" and isinstance(fields.get("input"), str) and isinstance(fields["prompt"], str):
            following = fields.pop("input").strip()
            fields["prompt"] += f"\n\n{following}" if following else ""
            renamed.append(("input", "prompt"))
    return fields, renamed


def _messages(record: dict[str, Any], place: Place) -> tuple[tuple[tuple[str, str], ...], str | None, list[str]]:
    """The conversation of a row, its demonstration where the assistant's turn ends it, and keys that are not read."""
    names = [name for name in ("prompt", "messages") if record.get(name) is not None]
    if not names:
        others = ", ".join(f'"{one_line(name, 30)}"' for name in list(record)[:6])
        place.refuse(f'no prompt{f" (it has {others})" if others else ""}; add the field "prompt", text or a list of '
                     "messages")  # fmt: skip
    if len(names) == 2:
        place.refuse('both "prompt" and "messages" are given; keep one of them')
    name, content, extra = names[0], record[names[0]], list[str]()
    if name == "messages" and isinstance(content, str) and content.lstrip().startswith("["):  # a cell of a CSV file
        content = _parsed(content, place)
    if not isinstance(content, list):
        messages = [("user", _text(content, f'"{name}"', place))]
    else:
        messages = [_message(message, name, number, place) for number, message in enumerate(content, 1)]
        keys = {key for message in content for key, value in message.items() if value is not None}
        extra = [f"{name}[].{key}" for key in sorted(keys - {"role", "content", "from", "value"})]
    demonstration = None
    ended = name == "messages" and len(messages) > 1 and messages[-1][0] == "assistant"
    if ended and record.get("demonstration") is None:
        demonstration = messages.pop()[1]
    if not messages or messages[-1][0] != "user":
        fault = f"the last turn is the {messages[-1][0]}'s" if messages else "there is no turn"
        place.refuse(
            f'a prompt ends with the user\'s turn, and {fault}; move what comes after it to the field "demonstration"'
        )
    if not messages[-1][1].strip():
        place.refuse("the prompt is empty; write it, or remove the line")
    return tuple(messages), demonstration, extra


def _parsed(content: str, place: Place) -> Any:
    """Messages that stand as JSON in a text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        place.refuse('the field "messages" is a text that is not JSON; write a list of {"role": ..., "content": ...}')


def _message(message: Any, name: str, number: int, place: Place) -> tuple[str, str]:
    if isinstance(message, dict) and {"from", "value"} <= set(message) and isinstance(message["from"], str):
        message = {"role": _SHARED_GPT.get(message["from"], message["from"]), "content": message["value"]}
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


def _spoken(value: Any, name: str, place: Place) -> str:
    """A text, also where it is given as the assistant's only message."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        role, text = _message(value[0], name, 1, place)
        if role == "assistant" or name == "privileged_context":
            return text
    return _text(value, f'"{name}"', place)


def _text(value: Any, subject: str, place: Place) -> str:
    subject = subject if subject.startswith("the ") else f"the field {subject}"
    if not isinstance(value, str):
        remedy = f'; write "{value}"' if isinstance(value, int | float) and not isinstance(value, bool) else ""
        place.refuse(f"{subject} is {kind_of(value)} and not text{remedy or '; write it as text'}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        place.refuse(f"{subject} has half a character, {value[error.start]!a}; remove it")
    if "\0" in value:
        place.refuse(f"{subject} has the character NUL in it; remove it")
    return value
