"""Whether all prompts render and fit the model's context, asked of its tokenizer before it is loaded or trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ..data.prompts import Prompts
from ..errors import DataError
from ..models.causal_lm import PromptLengthError, Reader, check_length
from .completions import Language
from .contexts import Context, NoContext, Rollout, completed, paired, place, rendered, turn_end


def check_prompts(reader: Reader, method: Language, data: Prompts, suite: Prompts | None, max_tokens: int) -> None:
    """Make all prompts and contexts, of all splits and of prior tasks.

    Args:
        reader: The tokenizer, and how many tokens the model reads.
        method: The recipe, whose contexts are made.
        data: The prompts.
        suite: Prior tasks.
        max_tokens: The longest answer that is judged.

    Raises:
        DataError: A prompt is longer than the model's context, its chat template refuses it, or a context is broken.
        VitalsError: Student and teacher would not read the same completion.
    """
    misfits = long_prompts(reader, method, data, max_tokens)
    if misfits:
        first, count = next(iter(misfits.values())), len(misfits)
        rows = sum(map(len, (data.labelled, data.audit, data.test)))
        others = f"; {count} of {rows} rows are too long" if count > 1 else ""
        raise DataError(f"{first}, or leave out what is too long by --skip-long{others}")
    if suite is not None:
        check_answers(reader, suite, max_tokens)


def check_answers(reader: Reader, data: Prompts, max_tokens: int) -> None:
    """Make the prompts of all rows that are answered and not learnt.

    Args:
        reader: The tokenizer, and how many tokens the model reads.
        data: The prompts.
        max_tokens: The longest answer.

    Raises:
        DataError: A prompt is longer than the model's context, or its chat template refuses it.
    """
    for i in range(len(data.rows)):
        check_length(_plain(reader, data, i), reader, max_tokens, _subject(data, i, "the prompt"))


def without(data: Prompts, ids: Sequence[int]) -> Prompts:
    """The same prompts without some rows, which stay in no split.

    Args:
        data: The prompts.
        ids: Sample ids of the rows to leave out.

    Raises:
        DataError: A split that had rows has none left.
    """
    left_out = set(ids)

    def rest(name: str, split: Tensor) -> Tensor:
        kept = split[[i not in left_out for i in split.tolist()]] if left_out else split
        if len(split) and not len(kept):
            raise DataError(f"{data.name}: all {len(split)} rows of the {name} split are too long; shorten them")
        return kept

    labelled, audit, test = rest("train", data.labelled), rest("validation", data.audit), rest("test", data.test)
    return replace(data, labelled=labelled, audit=audit, test=test, left_out=len(left_out))


def long_prompts(reader: Reader, method: Language, data: Prompts, max_tokens: int) -> dict[int, DataError]:
    """The rows that do not fit into the model's context, with the reason; arguments as of `check_prompts`.

    Returns:
        Sample ids with their errors, those that teach first.

    Raises:
        DataError: The chat template refuses a prompt, or a context is broken.
        VitalsError: Student and teacher would not read the same completion.
    """
    room = method.sampling.max_tokens if method.sampling else 0
    judged = max(room, max_tokens)
    found = dict[int, DataError]()
    for ids, teaches in ((data.labelled, True), (data.audit, True), (data.test, False)):
        for i in ids.tolist():
            try:
                prompt = _plain(reader, data, i)
                check_length(prompt, reader, room if ids is data.labelled else judged, _subject(data, i, "the prompt"))
                _check_demonstration(reader, data, i, prompt)
                for context_prompt, what in _context_prompts(reader, method, data, i, prompt) if teaches else ():
                    check_length(context_prompt, reader, room, _subject(data, i, what))
            except PromptLengthError as error:
                found[i] = error
    return found


def possible_rollouts(
    reader: Reader, method: Language, data: Prompts, i: int, plain: Sequence[int]
) -> list[list[Rollout]]:
    """Rollouts that a context may read: a wrong one alone, and beside a right one where a prompt has siblings."""
    row, end = data.rows[i], turn_end(reader.tokenizer)
    prompt, ids = tuple(plain), () if end is None else (end,)
    wrong = Rollout(i, prompt, ids, row.wrong or "?", 0.0, row.feedback or "not correct")
    right = Rollout(i, prompt, ids, row.demonstration or row.answer or "", 1.0)
    return [[wrong], [wrong, right]] if method.source.samples > 1 else [[wrong]]


def _plain(reader: Reader, data: Prompts, i: int) -> list[int]:
    """The student's prompt."""
    try:
        return rendered(reader.tokenizer, data.rows[i].messages)
    except DataError as error:
        raise DataError(f"{_where(data, i)}: {error}") from error


def _check_demonstration(reader: Reader, data: Prompts, i: int, prompt: Sequence[int]) -> None:
    text = data.rows[i].demonstration
    if text is not None:
        ids = completed(reader.tokenizer, text)
        if not reader.fits(len(prompt) + len(ids)):
            raise PromptLengthError(
                f"{_subject(data, i, 'the prompt')} has {len(prompt)} tokens and its demonstration {len(ids)}, more "
                f"than the model's context of {reader.context_length}; shorten them"
            )


def _context_prompts(
    reader: Reader, method: Language, data: Prompts, i: int, plain: Sequence[int]
) -> Iterator[tuple[list[int], str]]:
    """What is read with a context, by whom."""
    row, tokenizer = data.rows[i], reader.tokenizer

    def made(context: Context, rollouts: Sequence[Rollout]) -> list[int] | None:
        try:
            return paired(tokenizer, context, row, rollouts, 0, reader.teacher_template)
        except DataError as error:
            raise DataError(f"{_where(data, i)}: {error}") from error

    before = [Rollout(i, tuple(plain), ())]
    for context in method.source.contexts:
        if not isinstance(context, NoContext) and (prompt := made(context, before)) is not None:
            yield prompt, "the prompt with its context"
    judging = [context for context in (method.context, method.against) if context is not None]
    for context in judging if method.distils else ():
        for rollouts in possible_rollouts(reader, method, data, i, plain):
            if (prompt := made(context, rollouts)) is not None:
                yield prompt, "what the teacher reads"


def _where(data: Prompts, i: int) -> str:
    line = data.rows[i].line
    return f"{data.name}:{line}" if line else data.name


def _subject(data: Prompts, i: int, what: str) -> str:
    return f"{_where(data, i)}: {what} ({place(data.rows[i])})"
