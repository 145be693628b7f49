"""The dry run of a language model: every prompt and context is made once before step 0, so that misfits show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..data.prompts import Prompts
from ..errors import VitalsError
from ..models.causal_lm import fits
from .contexts import Context, Nothing, Rollout, paired, place, rendered
from .evaluation import checked
from .teachers import External, Live

if TYPE_CHECKING:
    from .trainer import LanguageTrainer


def check(trainer: LanguageTrainer) -> None:
    """Make all prompts and contexts, of rows that teach, audit or are kept.

    Raises:
        DataError: one is longer than the model's context allows, or a context is broken.
        VitalsError: student and teacher would not read the same completion.
    """
    method, data = trainer.method, trainer.data
    room = method.sampling.max_tokens if method.sampling else 0
    written = [c for c in (getattr(method.source, n, None) for n in ("context", "rescue")) if c is not None]
    judged = [c for c in (method.context, method.against) if c is not None] if method.distils else []
    for i in data.labelled.tolist():
        _fit(trainer, data, i, rendered(trainer.tokenizer, data.rows[i].messages), room, "the prompt")
        for context in written:
            _fit(trainer, data, i, trainer.prompt(i, context), room, "the prompt with its context")
        for context in judged:
            for rollouts in imagined(trainer, i):
                prompt = paired(trainer.tokenizer, context, data.rows[i], rollouts, 0)
                if prompt is not None:
                    _fit(trainer, data, i, prompt, room, "what the teacher reads")
    for rows, ids in ((data, data.audit), *([(suite, suite.test)] if (suite := trainer.suite) else [])):
        room = trainer.greedy.max_tokens if checked(rows) else 0
        for i in ids.tolist():
            _fit(trainer, rows, i, rendered(trainer.tokenizer, rows.rows[i].messages), room, "the prompt")


def alive(trainer: LanguageTrainer) -> None:
    """Can the teacher say anything that the student does not?

    Raises:
        VitalsError: it is the student itself and reads nothing more, so that the loss is 0 whatever it says.
    """
    for name, term in trainer.method.distils.items():
        if isinstance(term.teacher, External) or _adds(trainer, trainer.method.context) or (
            term.contrast and trainer.method.against is not None and _adds(trainer, trainer.method.against)
        ):  # fmt: skip
            continue
        if isinstance(term.teacher, Live):
            raise VitalsError(
                "teacher-is-student",
                f"teacher-is-student: term {name!r} is taught by the student itself, and its context adds nothing to "
                f"any of {len(trainer.data.labelled)} prompts, so there is nothing to learn; give one that does",
            )
        trainer.warn(
            f"warning: the context of term {name!r} adds nothing to any of {len(trainer.data.labelled)} prompts: its "
            "teacher differs from the student by its weights alone"
        )


def imagined(trainer: LanguageTrainer, example: int) -> list[list[Rollout]]:
    """Rollouts that a context may meet: a wrong one alone, and beside a right one where a prompt has siblings."""
    row = trainer.data.rows[example]
    prompt, end = tuple(rendered(trainer.tokenizer, row.messages)), tuple(trainer.stop[:1])
    wrong = Rollout(example, prompt, end, "", 0.0, row.feedback or "not correct")
    right = Rollout(example, prompt, end, row.demonstration or row.answer or "", 1.0)
    return [[wrong], [wrong, right]] if trainer.method.source.samples > 1 else [[wrong]]


def _adds(trainer: LanguageTrainer, context: Context) -> bool:
    """Is there a row for which it makes another prompt than the student's?"""
    if isinstance(context, Nothing):
        return False
    for i in trainer.data.labelled.tolist():
        row = trainer.data.rows[i]
        plain = rendered(trainer.tokenizer, row.messages)
        made = [paired(trainer.tokenizer, context, row, rollouts, 0) for rollouts in imagined(trainer, i)]
        if any(prompt is not None and prompt != plain for prompt in made):
            return True
    return False


def _fit(trainer: LanguageTrainer, data: Prompts, i: int, prompt: Sequence[int], room: int, what: str) -> None:
    fits(prompt, trainer.model, room, f"{what} ({place(data.rows[i])} of {data.name})")
