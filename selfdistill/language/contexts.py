"""What the teacher reads and the student does not: a context makes messages of an example and of what was tried.

A context is called with the example, the rollouts of its prompt and the number of the one to be judged, and returns
messages, or None where it has nothing to add; any such function is one. Student and teacher are rendered by the same
template and end in the same way, the completion is joined as token ids, and nothing is cut off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar

from ..data.examples import Example
from ..errors import DataError, VitalsError
from ..io.expressions import one_line

Message = tuple[str, str]  # role, content


@dataclass(frozen=True)
class Rollout:
    """One completion: of which example, prompt and completion as ids, and what a checker said of it.

    ``log_probs`` are those of the sampler, where it was not the student alone as it learns: another engine, or a
    mixture with the teacher. ``tutored``: written by who reads a context, and learnt without it; ``trusted``: to be
    learnt from at all. ``thinking``: its prompt ends with the tag that begins a thought.
    """

    example: int
    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    text: str = ""
    reward: float | None = None
    feedback: str | None = None
    log_probs: tuple[float, ...] | None = None
    tutored: bool = False
    trusted: bool = True
    thinking: bool = False

    @property
    def answer(self) -> str:
        """The text without its thoughts; a thought that was cut off ends with the text."""
        return without_thoughts(self.text, self.thinking)


Context = Callable[[Example, Sequence[Rollout], int], Sequence[Message] | None]


ROLES = ("system", "developer", "user", "assistant", "tool")


_OPENING = "<think>"
_THOUGHT = re.compile(r"<think>.*?(?:</think>\s*|$)", re.DOTALL)


#: Words of one who has read more than the question.
LEAK = re.compile(
    r"\b(as (shown |given |stated |mentioned )?in the (reference|example|solution|demonstration|document|passage)"
    r"|following the example|the (reference|given|provided) (solution|answer|response|document|passage)"
    r"|(according to|based on) the (example|reference|hint|solution|document|passage|text))", re.I,
)  # fmt: skip


def without_thoughts(text: str, thinking: bool = False) -> str:
    """A text without what was thought in it; a thought that was cut off ends with the text.

    Args:
        text: The text.
        thinking: Whether the tag that begins a thought stands before the text.

    >>> without_thoughts("<think>1 + 1</think> 2"), without_thoughts("1 + 1</think> 2", True)
    ('2', '2')
    """
    return _THOUGHT.sub("", f"{_OPENING}{text}" if thinking else text).rpartition("</think>")[2].strip()


def asked(example: Example, text: str) -> list[Message]:
    """The example's messages with another last turn."""
    return [*example.messages[:-1], ("user", text)]


def filled(template: str, **parts: str | None) -> str:
    """``{name}`` replaced by its part; other braces stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda found: found[0] if (part := parts.get(found[1])) is None else part, template)


@dataclass(frozen=True)
class NoContext:
    """The prompt alone: a control, in which the teacher knows no more than the student."""

    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        return example.messages


@dataclass(frozen=True)
class Demonstration:
    """A demonstration after the question. Default template: SDFT (arXiv 2601.19897)."""

    template: str = (
        "{prompt}\n\nThis is an example for a response to the question:\n{demonstration}\n\n"
        "Now answer with a response of your own, including the thinking process."
    )
    field: str = "demonstration"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.field,)

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that it shows, where they are there."""
        return (self.field, "privileged_context") if self.field == "demonstration" else (self.field,)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        known = example.shown if self.field == "demonstration" else getattr(example, self.field)
        text = filled(self.template, prompt=example.prompt, **{self.field: known})
        return None if known is None else asked(example, text)


def reference() -> Demonstration:
    """A reference solution, to be retold in one's own words. Source: OPSD (arXiv 2601.18734)."""
    return Demonstration(
        "{prompt}\n\nHere is a reference solution to this problem:\n{demonstration}\n\nAfter understanding the "
        "reference solution, now articulate your own step-by-step reasoning to solve the problem."
    )


def document() -> Demonstration:
    """A document that the question is about: the privileged context, or the demonstration."""
    return Demonstration("Document:\n{demonstration}\n\nQuestion: {prompt}")


def rewriting() -> Demonstration:
    """A reference answer as a guide for one's own. Source: SDFT 2024 (arXiv 2402.13669)."""
    return Demonstration(
        "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a "
        "guide, write your own response.\n\n### Instruction:\n{prompt}\n\n### Reference Answer:\n{demonstration}\n\n"
        "### Response:"
    )


@dataclass(frozen=True)
class FewShotTurns:
    """The demonstration as an answer already given to the same question, in an earlier turn: small models follow what
    was done before rather than what they are told."""

    needs: ClassVar[tuple[str, ...]] = ("demonstration",)
    reads: ClassVar[tuple[str, ...]] = ("demonstration", "privileged_context")

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        if example.shown is None:
            return None
        return [*example.messages, ("assistant", example.shown), example.messages[-1]]


@dataclass(frozen=True)
class Hint:
    """The answer as a hint, for what was not solved without. Source: STaR (Zelikman et al. 2022), rationalization."""

    template: str = "{prompt}\n\nHint: the answer is {answer}. Explain step by step how to arrive at it."
    needs: ClassVar[tuple[str, ...]] = ("answer",)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        if example.answer is None:
            return None
        return asked(example, filled(self.template, prompt=example.prompt, answer=example.answer))


@dataclass(frozen=True)
class Instruction:
    """An instruction that is to be followed without being given. Source: Askell et al. 2021; Snell et al. 2022."""

    text: str
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        earlier = [content for role, content in example.messages if role == "system"]
        rest = [message for message in example.messages if message[0] != "system"]
        return [("system", "\n\n".join([self.text, *earlier])), *rest]


@dataclass(frozen=True)
class SiblingAttempts:
    """A sibling's correct solution, and feedback on the own attempt where there is none; neither: nothing.

    The own attempt is not shown, nor what was thought in it. ``both`` adds the feedback beside a solution too;
    ``failed`` has nothing to say of attempts that are right. Source: SDPO (arXiv 2601.20802).
    """

    threshold: float = 1.0
    both: bool = False
    failed: bool = False
    solution: str = "\n\nCorrect solution:\n\n{solution}"
    feedback: str = "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback}"
    closing: str = "\n\nCorrectly solve the original question."
    needs: ClassVar[tuple[str, ...]] = ("checker",)
    reads: ClassVar[tuple[str, ...]] = ("checker", "feedback")

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        mine = rollouts[own]
        if self.failed and (mine.reward or 0.0) >= self.threshold:
            return None
        solved = [r.answer for i, r in enumerate(rollouts) if i != own and (r.reward or 0.0) >= self.threshold]
        solution = next(filter(None, solved), None)
        text = filled(self.solution, solution=solution) if solution else ""
        said = mine.feedback or example.feedback
        if said and (mine.reward or 0.0) < self.threshold and (self.both or not text):
            text += filled(self.feedback, feedback=said)
        return asked(example, example.prompt + text + self.closing) if text else None


@dataclass(frozen=True)
class Preface:
    """An instruction before the last turn, within it: what is to be done without being told."""

    text: str
    needs: ClassVar[tuple[str, ...]] = ()

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        return asked(example, f"{self.text}\n\n{example.prompt}")


@dataclass(frozen=True)
class Hindsight:
    """What the user said of the answer, read before it is given again. Source: arXiv 2603.12273."""

    template: str = (
        "{prompt}\n\nTo an earlier answer the user replied:\n{feedback}\n\nAnswer the request itself, better than that "
        "answer did."
    )
    needs: ClassVar[tuple[str, ...]] = ("feedback",)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        said = rollouts[own].feedback or example.feedback
        return None if said is None else asked(example, filled(self.template, prompt=example.prompt, feedback=said))


@dataclass(frozen=True)
class Revision:
    """The own attempt and what its reward asks for: to say it again, or to correct it. Source: arXiv 2604.12002.

    Args:
        right: the user's turn after an attempt of at least ``threshold``.
        wrong: the user's turn after any other.
        threshold: the reward of a right attempt.
    """

    right: str = "That is right. Say it again in other words."
    wrong: str = "That is wrong. Correct it."
    threshold: float = 1.0
    needs: ClassVar[tuple[str, ...]] = ("checker",)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        mine = rollouts[own]
        if not mine.text.strip():
            return None
        asks = self.right if (mine.reward or 0.0) >= self.threshold else self.wrong
        return [*example.messages, ("assistant", mine.text), ("user", asks)]


@dataclass(frozen=True)
class ShortContext:
    """The privileged context in the place of what the question follows: the part of a long text that answers it.

    It stands for all turns before the last one, or for the whole prompt where that is one turn.
    Source: OPSDL (arXiv 2604.17535).
    """

    needs: ClassVar[tuple[str, ...]] = ("privileged_context",)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        short = example.privileged_context
        if short is None:
            return None
        if len(example.messages) == 1:
            return [("user", short)]
        return [(example.messages[0][0], short), example.messages[-1]]


@dataclass(frozen=True)
class WrongSolution:
    """A wrong solution in the place of the demonstration: what a contrastive teacher turns away from."""

    like: Demonstration = Demonstration()
    needs: ClassVar[tuple[str, ...]] = ("wrong",)

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Sequence[Message] | None:
        if example.wrong is None:
            return None
        wrong = replace(example, demonstration=example.wrong, answer=example.wrong, privileged_context=None)
        return self.like(wrong, rollouts, own)


def rendered(tokenizer: Any, messages: Sequence[Message], template: str | None = None) -> list[int]:
    """Token ids of messages by the tokenizer's own chat template or another, with the turn of the assistant begun; a
    tokenizer without one gets the contents, a line each.

    Raises:
        DataError: the template refuses the messages.
    """
    if template or getattr(tokenizer, "chat_template", None):
        text = _by_template(tokenizer, messages, True, template)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return list(tokenizer("\n".join(content for _, content in messages) + "\n")["input_ids"])


def _by_template(tokenizer: Any, messages: Sequence[Message], begin: bool, template: str | None = None) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    try:
        text: str = tokenizer.apply_chat_template(
            turns, chat_template=template, add_generation_prompt=begin, tokenize=False
        )
    except Exception as error:  # a template is code of its own: jinja2's errors and any other
        roles = [role for role, _ in messages]
        if "system" in roles or "developer" in roles:
            remedy = "move the system text into the user's turn, or take a model whose template has a system turn"
        elif any(one == other for one, other in pairwise(roles)):
            remedy = "join neighbouring turns of one role, or take a model with another template"
        else:
            remedy = "write turns that it takes, or take a model with another template"
        raise DataError(
            f"the model's chat template refuses the turns {', '.join(roles)} ({one_line(error, 100)}); {remedy}"
        ) from error
    return text


def begins_thought(tokenizer: Any, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with the tag that begins a thought, as the chat templates of some models end it.

    Args:
        tokenizer: The model's tokenizer.
        prompt: Token ids of the prompt.
    """
    return bool(re.search(rf"{_OPENING}\s*$", tokenizer.decode(list(prompt[-16:]), skip_special_tokens=False)))


def spoken(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a completion, without special tokens but for the tags of a thought.

    Args:
        tokenizer: The model's tokenizer.
        ids: Token ids of the completion.
    """
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    tags = special & set(tokenizer.convert_tokens_to_ids([_OPENING, "</think>"]))
    kept = [i for i in ids if i in tags or i not in special] if tags else list(ids)
    return str(tokenizer.decode(kept, skip_special_tokens=not tags))


def turn_end(tokenizer: Any) -> int | None:
    """The token with which the chat template ends a turn of the assistant; without one the tokenizer's end of text."""
    ids, _ = _turn_tail(tokenizer, _template_text(tokenizer))
    return ids[-1] if ids else tokenizer.eos_token_id


def _template_text(tokenizer: Any) -> str | None:
    """The template as a text that a cache can hold."""
    template = getattr(tokenizer, "chat_template", None)
    return repr(sorted(template.items())) if isinstance(template, dict) else template


@lru_cache(maxsize=8)
def _turn_tail(tokenizer: Any, template: str | None) -> tuple[tuple[int, ...], str]:
    """The tokens with which the chat template ends a turn, up to the first special one (none: it has no such token),
    and the text that follows an answer.
    """
    answer = "0answer0"
    if not template:
        return (), ""
    try:
        text = _by_template(tokenizer, [("user", "0"), ("assistant", answer)], begin=False)
    except DataError:
        return (), ""
    tail = text.rpartition(answer)[2]
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    end = next((place for place, token in enumerate(ids) if token in special), None)
    if end is None or tokenizer.decode(ids[:end]).strip():  # a text before it: the token belongs to what follows
        return (), tail
    return tuple(ids[: end + 1]), tail


def completed(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a given text as a completion, ended as the chat template ends a turn."""
    ids, _ = _turn_tail(tokenizer, _template_text(tokenizer))
    end = tokenizer.eos_token_id
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], *(ids or ([] if end is None else [end]))]


def template_notes(tokenizer: Any, ends: Collection[int] = ()) -> list[str]:
    """What is unusual in how a model's chat template begins and ends a turn, a line each.

    Args:
        tokenizer: The model's tokenizer.
        ends: Tokens that end an answer by the model's generation config, which may be more than the tokenizer names.
    """
    if not getattr(tokenizer, "chat_template", None):
        return ["the model has no chat template: a prompt is the contents of its turns, a line each"]
    notes, end, eos = list[str](), turn_end(tokenizer), tokenizer.eos_token_id
    ids, tail = _turn_tail(tokenizer, _template_text(tokenizer))
    if end is not None and end != eos and end not in ends:
        name, other = (repr(tokenizer.decode([token])) for token in (end, eos if eos is not None else end))
        tells = f"and the tokenizer calls {other} the end" if eos is not None else "and the tokenizer names no end"
        notes.append(
            f"the chat template ends a turn with {name} {tells}; demonstrations end, and answers stop, at {name}"
        )
    elif not ids:
        closing = f"{one_line(tail.strip(), 40)!r}, which is no token" if tail.strip() else "no token"
        stop = "nothing" if eos is None else repr(tokenizer.decode([eos]))
        notes.append(
            f"the chat template ends a turn with {closing} that could end an answer; demonstrations end, and answers "
            f"stop, at {stop}"
        )
    turns = [("user", "0")]
    if _by_template(tokenizer, turns, begin=True) == _by_template(tokenizer, turns, begin=False):
        notes.append("the chat template does not begin the assistant's turn: completions follow the user's text")
    return notes


def suffix(tokenizer: Any, template: str | None = None) -> list[int]:
    """What the template writes between the last turn and the completion: how two prompts with other questions end."""
    return list(_suffix(tokenizer, _template_text(tokenizer), template))


@lru_cache(maxsize=8)
def _suffix(tokenizer: Any, own: str | None, template: str | None) -> list[int]:
    a, b = (rendered(tokenizer, [("user", text)], template) for text in ("0 x", "y 1"))
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] == b[-1 - length]:
        length += 1
    return a[len(a) - length :]


def paired(
    tokenizer: Any,
    context: Context,
    example: Example,
    rollouts: Sequence[Rollout],
    own: int,
    template: str | None = None,
) -> list[int] | None:
    """The teacher's prompt for a rollout as ids, checked against the student's; None where the context has none.

    Args:
        tokenizer: The model's tokenizer.
        context: What the teacher reads more.
        example: The row.
        rollouts: Those of its prompt.
        own: The number of the one that is judged.
        template: The teacher's chat template, where it is not the tokenizer's own.

    Raises:
        DataError: the context is broken: it raises, or returns something that is no conversation.
        VitalsError: the two prompts do not end alike, so that the completion would not continue the teacher's; of two
            templates each ends in its own way.
    """
    name, where = getattr(context, "__name__", type(context).__name__), place(example)
    try:
        messages = context(example, rollouts, own)
        if messages is None:
            return None
        _conversation(messages, example.messages[-1][0])
    except Exception as error:  # a context may be anybody's code
        why = one_line(f"{type(error).__name__}: {error}", 120)
        raise DataError(f"context {name} fails on {where} ({why}); it takes (example, rollouts, own) and returns "
                        "messages (role, content), or None") from error  # fmt: skip
    try:
        prompt = rendered(tokenizer, messages, template)
    except DataError as error:
        raise DataError(f"context {name}, {where}: {error}") from error
    said = list(rollouts[own].ids)
    mine, theirs = [*rollouts[own].prompt, *said], [*prompt, *said]
    try:
        if template is None:
            check_prompts([mine], [theirs], [said], suffix=suffix(tokenizer))
        else:
            check_prompts([mine], [mine], [said], suffix=suffix(tokenizer))
            check_prompts([theirs], [theirs], [said], suffix=suffix(tokenizer, template))
    except VitalsError as error:
        raise VitalsError(error.vital, f"context {name}, {where}: {error}") from None
    return prompt


def place(example: Example) -> str:
    """Where a person finds an example: its line, or how its prompt begins."""
    return f"line {example.line}" if example.line else f"the prompt {one_line(example.prompt, 40)!r}"


def _conversation(messages: Sequence[Message], last: str) -> None:
    """Refuse what is none, or ends with another's turn than the student's prompt."""
    if isinstance(messages, str) or not messages:
        raise TypeError("no conversation came back")
    for message in messages:
        if isinstance(message, str) or len(message) != 2 or not all(isinstance(part, str) for part in message):
            raise TypeError(f"{one_line(message, 40)} is no message")
        if message[0] not in ROLES:
            raise ValueError(f"{one_line(message[0], 20)!r} is no role")
    if messages[-1][0] != last:
        raise ValueError(f"its last turn is the {messages[-1][0]}'s, the prompt's the {last}'s")


def difference(context: Context, example: Example, rollouts: Sequence[Rollout], own: int) -> list[str]:
    """The two conversations line by line: what both read, and with + what the teacher alone reads (- the student)."""
    import difflib

    def lines(messages: Sequence[Message]) -> list[str]:
        return [f"{role}: {line}" for role, content in messages for line in content.splitlines()]

    theirs = context(example, rollouts, own)
    if theirs is None:
        return ["(this context has nothing to add here)"]
    return [line for line in difflib.ndiff(lines(example.messages), lines(theirs)) if not line.startswith("?")]


def check_prompts(
    student: Sequence[Ids],
    teacher: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    privileged: Sequence[Ids | None] | None = None,
    suffix: int | Ids = 4,
) -> None:
    """Compare what student and teacher are given to read, row by row.

    Args:
        student: prompt and completion as the student reads them.
        teacher: prompt and completion as the teacher reads them.
        completions: the completion that both are to judge.
        privileged: what only the teacher is to know (a solution, a hint); None for a row without.
        suffix: how many tokens before the completion the template writes in every row (the turn of the assistant
            begins there), or these tokens themselves.

    Raises:
        VitalsError: ``completion-mismatch``, a row does not end in its completion (or there is no row to a row);
            ``template-mismatch``, the prompts of a row do not end alike, or not in ``suffix``; ``privileged-cut``, the
            teacher's prompt lacks the privileged part or holds only a piece of it. The message names the rows.

    >>> check_prompts([[5, 9, 7, 7]], [[5, 6, 6, 9, 7, 7]], [[7, 7]], privileged=[[6, 6]], suffix=1)
    """
    if not len(student) == len(teacher) == len(completions) == len(completions if privileged is None else privileged):
        _fail(
            "completion-mismatch", [], "there are not as many rows of each", "give one prompt of each to a completion"
        )
    said, theirs, wanted = (_plain(rows) for rows in (student, teacher, completions))
    odd = [i for i, c in enumerate(wanted) if not (_ends(said[i], c) and _ends(theirs[i], c))]
    if odd:
        _fail("completion-mismatch", odd, "student and teacher do not read the same completion", "append the sampled "
              "token ids to both prompts, and never encode the text again")  # fmt: skip
    prompts = [(s[: len(s) - len(c)], t[: len(t) - len(c)]) for s, t, c in zip(said, theirs, wanted, strict=True)]
    if isinstance(suffix, int):
        odd = [i for i, (s, t) in enumerate(prompts) if s[max(0, len(s) - suffix) :] != t[max(0, len(t) - suffix) :]]
    else:
        odd = [i for i, both in enumerate(prompts) if not all(_ends(p, list(map(int, suffix))) for p in both)]
    if odd:
        _fail("template-mismatch", odd, "the prompts do not end alike before the completion", "render both by the same "
              "template with its generation prompt, and cut prompts on the left")  # fmt: skip
    hints = [None if hint is None else list(map(int, hint)) for hint in privileged or [None] * len(prompts)]
    odd = [i for i, hint in enumerate(hints) if hint is not None and not _holds(prompts[i][1], hint)]
    if odd:
        _fail("privileged-cut", odd, "the teacher's prompt does not hold the privileged part as a whole", "allow "
              "longer prompts or drop these rows, and put the part in by its token ids")  # fmt: skip


def _plain(rows: Sequence[Ids]) -> list[list[int]]:
    return [list(map(int, row)) for row in rows]


def _ends(row: list[int], end: list[int]) -> bool:
    return len(row) >= len(end) and row[len(row) - len(end) :] == end


def _holds(row: list[int], part: list[int]) -> bool:
    return any(row[i : i + len(part)] == part for i in range(len(row) - len(part) + 1))


def _fail(vital: str, rows: list[int], what: str, remedy: str) -> None:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    where = f" in rows {shown}" if rows else ""
    raise VitalsError(vital, f"{vital}: {what}{where}; {remedy}")


Ids = Sequence[int]  # token ids of one row, without padding; a one-dimensional tensor will do
