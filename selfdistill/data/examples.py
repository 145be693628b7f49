"""Examples for language models, and the fields of files that hold them; an error names the line and the remedy."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import DataError
from ..io.expressions import nearest, one_line
from .prompt_files import SPLITS, Place, Record, kind_of, read_records

#: Text that a row may have beside its prompt.
FIELDS = ("demonstration", "answer", "checker", "feedback", "wrong", "privileged_context")


#: field -> the names that other tools have for it, which stand in where the field is not there
ALIASES = {
    "prompt": ("question", "instruction", "problem", "query"),
    "messages": ("conversations", "conversation"),
    "demonstration": ("completion", "response", "output", "chosen"),
    "answer": ("ground_truth",),
    "wrong": ("rejected",),
}


#: Names that other tools have for a text before the conversation.
_SYSTEM = ("system", "system_prompt")


def tell_prompts(names: Iterable[str]) -> bool:
    """Whether the columns of a table are those of prompts: a prompt or messages, or a question and what answers it.

    Args:
        names: The names of the columns.

    >>> tell_prompts(["instruction", "input", "output"]), tell_prompts(["question", "age"])
    (True, False)
    """
    found = set(names)
    if found & {"prompt", "messages", *ALIASES["messages"]}:
        return True
    answers = {*FIELDS, *(name for one in ("demonstration", "answer") for name in ALIASES[one])}
    return bool(found & set(ALIASES["prompt"])) and bool(found & answers)


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


#: Roles of {"from": ..., "value": ...}.
_SHARED_GPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "observation": "tool"}


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


class FieldNames(NamedTuple):
    """Which names of a file are used for what: its groups, its time, and (field, name in the file) of others."""

    groups: str | None = None
    time: str | None = None
    fields: tuple[tuple[str, str], ...] = ()


#: The names that the fields have here.
OWN_NAMES = FieldNames()


def field_names(pairs: str) -> tuple[tuple[str, str], ...]:
    """The fields and their names in a file, of ``prompt=question,answer=solution``.

    Args:
        pairs: Field and name with = between them, separated by commas.

    Returns:
        (field, name in the file), sorted.

    Raises:
        DataError: A pair is none, a field does not exist or is given twice, or one name is given to two fields.

    >>> field_names("prompt=question, answer=solution")
    (('answer', 'solution'), ('prompt', 'question'))
    """
    found: dict[str, str] = {}
    for pair in filter(None, map(str.strip, pairs.split(","))):
        name, equals, given = (part.strip() for part in pair.partition("="))
        if not (name and equals and given):
            raise DataError(f"{one_line(pair, 40)!r} is no FIELD=COLUMN; write columns as in prompt=question")
        if name not in _READ or name == "entry":
            known = ", ".join(one for one in _READ if one != "entry")
            hint = f"; nearest: {close}" if (close := nearest(name, list(_READ))) else ""
            raise DataError(f"{one_line(name, 40)!r} is no field of prompts{hint}; the fields are {known}")
        if name in found or given in found.values():
            twice = name if name in found else given
            raise DataError(f"{one_line(twice, 40)!r} is given twice as a field or column of prompts; keep one of them")
        found[name] = given
    return tuple(sorted(found.items()))


def read_rows(path: Path, names: FieldNames = OWN_NAMES) -> list[PromptRow]:
    """The rows of a file, or of a folder that `save_to_disk` of the library datasets wrote.

    Args:
        path: The file or the folder.
        names: Which names of it are used for what.

    Raises:
        DataError: no such file, not UTF-8, damaged, or a row that is none; a named column is in no row. File, line and
            remedy are named.
    """
    records = list(read_records(path))
    columns = {name for record in records for name in record.fields}
    for field_name, name in names.fields:
        if records and name not in columns:
            has = ", ".join(one_line(column, 30) for column in sorted(columns)[:8])
            close = f' (nearest: "{near}")' if (near := nearest(name, sorted(columns))) else ""
            raise DataError(
                f'{path}: no row has the column "{one_line(name, 40)}"{close}, which is to be the {field_name}; it has '
                f"{has}"
            )
    return [_placed(_row(record, names.fields), record, names) for record in records]


def rows_in_memory(records: Iterable[Mapping[str, Any]], name: str) -> list[PromptRow]:
    """The rows of a table in memory, as `read_rows` reads those of a file.

    Args:
        records: The fields of each row.
        name: Of the table, for messages.

    Raises:
        DataError: A row is none; the name, the number of the row (from 1) and the remedy are named.

    >>> rows_in_memory([{"prompt": "1 + 1?", "completion": "2"}], "sums")[0].example.demonstration
    '2'
    """
    return [_row(Record(Place(Path(name), number), dict(fields))) for number, fields in enumerate(records, 1)]


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


def _placed(row: PromptRow, record: Record, names: FieldNames) -> PromptRow:
    """The row with the fields of its group and its time, which are then used.

    Raises:
        DataError: one is not there.
    """
    groups, time, _ = names
    for name, option in ((groups, "groups"), (time, "time")):
        if name is not None and record.fields.get(name) is None:
            record.place.refuse(f'no field "{one_line(name, 40)}", which --{option} names; add it')
    return row._replace(
        extra=tuple(name for name in row.extra if name not in (groups, time)),
        group=None if groups is None else str(record.fields[groups]),
        time=None if time is None else record.fields[time],
    )


def _row(record: Record, named: Sequence[tuple[str, str]] = ()) -> PromptRow:
    place, (fields, renamed, extra) = record.place, _named(record.fields, named)
    messages, demonstration, unread = _messages(fields, place)
    if demonstration is not None:
        fields["demonstration"] = demonstration
        renamed.append(("the last turn of messages", "demonstration"))
    messages = _with_system(fields, messages, renamed, place)
    texts = {name: _known(fields[name], name, messages, place) for name in FIELDS if fields.get(name) is not None}
    for name, text in texts.items():
        if not text.strip():
            subject = "empty completion: the demonstration" if name == "demonstration" else f'the field "{name}"'
            place.refuse(f"{subject} has no text; write it, or leave the field out")
    entry, split = fields.get("entry"), record.split or fields.get("split")
    if entry is not None and not isinstance(entry, dict):
        place.refuse(f'the field "entry" is {kind_of(entry)}; give the object that reasoning-gym made')
    if split is not None and (not isinstance(split, str) or split not in SPLITS):
        place.refuse(f'the split is {one_line(json.dumps(split), 40)}; use "train", "validation" or "test"')
    extra += [*unread, *(name for name in fields if name not in _READ)]
    example = Example(messages, entry=entry, line=place.line, **texts)
    return PromptRow(example, None if split is None else SPLITS[split], tuple(extra), tuple(renamed))


Renamed = list[tuple[str, str]]  # name in the file, field


def _named(
    record: Mapping[str, Any], named: Sequence[tuple[str, str]] = ()
) -> tuple[dict[str, Any], Renamed, list[str]]:
    """The fields by the names that they have here, which were renamed, and which gave way to a named column.

    An instruction's input follows it; a completion that is labelled false is a wrong one.
    """
    fields, renamed, extra = dict(record), Renamed(), list[str]()
    chosen = {name: fields.pop(name) for _, name in named if name in fields}
    for field_name, name in named:
        if name not in chosen:
            continue
        if field_name in fields:
            extra.append(field_name)
        fields[field_name] = chosen[name]
        renamed += [(name, field_name)] if name != field_name else []
    _read_pair(fields, renamed)
    has_prompt = fields.get("prompt") is not None or fields.get("messages") is not None
    for field_name, others in ALIASES.items():
        other = next((name for name in others if fields.get(name) is not None), None)
        if other is None or fields.get(field_name) is not None or (has_prompt and field_name in ("prompt", "messages")):
            continue
        fields[field_name] = fields.pop(other)
        renamed.append((other, field_name))
        has_prompt = has_prompt or field_name == "prompt"
        if other == "instruction" and isinstance(fields.get("input"), str) and isinstance(fields["prompt"], str):
            following = fields.pop("input").strip()
            fields["prompt"] += f"\n\n{following}" if following else ""
            renamed.append(("input", "prompt"))
    return fields, renamed, extra


def _read_pair(fields: dict[str, Any], renamed: Renamed) -> None:
    """Completions that are told apart: by a label that is true or false, or as whole conversations that begin alike."""
    if isinstance(fields.get("label"), bool) and fields.get("completion") is not None:
        meaning = "demonstration" if fields["label"] else "wrong"
        if fields.get(meaning) is None:
            fields[meaning] = fields.pop("completion")
            del fields["label"]
            renamed.append((f"completion with label {json.dumps(meaning != 'wrong')}", meaning))
    asked = any(fields.get(name) is not None for name in ("prompt", "messages", *ALIASES["prompt"]))
    better, worse = fields.get("chosen"), fields.get("rejected")
    if asked or not (isinstance(better, list) and isinstance(worse, list) and len(better) > 1):
        return
    if better[:-1] == worse[:-1]:
        fields["messages"], fields["chosen"], fields["rejected"] = better[:-1], better[-1:], worse[-1:]
        renamed.append(("the first turns of chosen", "messages"))


def _with_system(
    fields: dict[str, Any], messages: tuple[tuple[str, str], ...], renamed: Renamed, place: Place
) -> tuple[tuple[str, str], ...]:
    """The conversation after the text that a field of its own puts before it; without one, as it is."""
    name = next((name for name in _SYSTEM if fields.get(name) is not None), None)
    if name is None or messages[0][0] == "system":
        return messages
    text = _text(fields.pop(name), f'"{name}"', place)
    renamed.append((name, "messages"))
    return (("system", text), *messages) if text.strip() else messages


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


def _known(value: Any, name: str, messages: Sequence[tuple[str, str]], place: Place) -> str:
    """A text; where it is given as messages, that of the assistant, which follows nothing or the prompt itself. An
    answer may be a number.
    """
    if name == "answer" and isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return _number(value, place)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return _text(value, f'"{name}"', place)
    said = [_message(one, name, number, place) for number, one in enumerate(value, 1)]
    if len(said) == 1 and name == "privileged_context":
        return said[0][1]
    if said[-1][0] != "assistant":
        place.refuse(
            f'the field "{name}" ends with a turn of the {said[-1][0]}; give text, or the assistant\'s turn alone'
        )
    before = tuple(one for one in said[:-1] if one[0] != "system")
    if before and before != tuple(one for one in messages if one[0] != "system"):
        place.refuse(f'the field "{name}" has {len(said)} messages that do not repeat the prompt; give the last alone')
    return said[-1][1]


def _number(value: int | float | Decimal, place: Place) -> str:
    """A number as text, a whole one without a point."""
    if not math.isfinite(value):
        place.refuse(f'the field "answer" is {value}, which is no number; write it, or leave the field out')
    whole = int(value)
    return str(whole) if isinstance(value, int) or (value == whole and -(2**53) < whole < 2**53) else str(value)


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
