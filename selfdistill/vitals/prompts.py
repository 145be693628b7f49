"""Do student and teacher read the same completion, after prompts that end alike? For terms on language models."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import VitalsError

Ids = Sequence[int]  # token ids of one row, without padding; a one-dimensional tensor will do


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
