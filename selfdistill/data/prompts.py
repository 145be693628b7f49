"""Data sets of prompts for language models, with their splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import DataError
from ..io.expressions import nearest, one_line
from . import jsonl, prompt_splits, reasoning, rewards
from .examples import FIELDS, Example
from .prompt_splits import Asked

__all__ = ["Example", "Prompts", "load_prompts", "load_seeds", "load_suite", "need", "of_examples"]

SUITE_ROWS = 200  # of a task that is made on the spot and asked three times


_OUT_OF_REACH = Example((("user", "(a row of the test split: out of reach while anything is trained or chosen)"),))


@dataclass(frozen=True, eq=False)
class Prompts:
    """Examples and their splits; a sample id is an example's index in ``rows``, in every split.

    >>> sums = load_prompts("reasoning-gym:chain_sum(size=50)")
    >>> len(sums.labelled), len(sums.audit), len(sums.test), len(sums.has("answer"))
    (32, 8, 10, 50)
    """

    kind: ClassVar[str] = "prompts"
    task: ClassVar[str] = "generate"
    classes: ClassVar[tuple[str, ...]] = ()
    shape: ClassVar[tuple[int, ...]] = ()
    center: ClassVar[float] = 0.0
    scale: ClassVar[float] = 1.0
    flips: ClassVar[bool] = False
    augment: ClassVar[str] = "none"

    name: str
    rows: tuple[Example, ...]
    labelled: Tensor  # sample ids that teach
    audit: Tensor  # that accept and choose
    test: Tensor  # that are asked once at the end
    extra: tuple[str, ...] = ()  # fields of the file that have no meaning here

    @property
    def unlabelled(self) -> Tensor:
        """None: what a prompt lacks, it lacks by itself."""
        return self.labelled[:0]

    @cached_property
    def y(self) -> Tensor:
        """(n,) zeros: a prompt has no class."""
        return torch.zeros(len(self.rows), dtype=torch.int64)

    @property
    def targets(self) -> Tensor:
        """As `y`."""
        return self.y

    @cached_property
    def noisy(self) -> Tensor:
        """(n,) False."""
        return torch.zeros(len(self.rows), dtype=torch.bool)

    def has(self, field: str) -> Tensor:
        """The ids of all rows that have ``field``: "demonstration", "answer", "checker", "feedback" or "wrong"."""
        return torch.tensor(
            [i for i, row in enumerate(self.rows) if getattr(row, field) is not None], dtype=torch.int64
        )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over rows and splits: a run resumes on the same data only."""
        digest = hashlib.sha256(self.kind.encode())
        for row in self.rows:
            digest.update(repr((row.messages, *(getattr(row, name) for name in FIELDS))).encode())
        for part in (self.labelled, self.audit, self.test):
            digest.update(repr(part.tolist()).encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, object]:
        """What a run's record says about its data; everything in it can be written as JSON."""
        parts = {name: len(getattr(self, name)) for name in ("labelled", "unlabelled", "audit", "test")}
        return {
            "name": self.name,
            "kind": self.kind,
            "task": self.task,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "rows": parts,
            "fields": {name: len(self.has(name)) for name in ("demonstration", "answer", "checker")},
            "noise": 0.0,
            "flips": self.flips,
            "augment": self.augment,
            "fingerprint": self.fingerprint,
        }

    def sealed(self) -> Prompts:
        """The same prompts with the test rows out of reach; the others keep their ids, and all the fingerprint."""
        held = set(self.test.tolist())
        rows = tuple(_OUT_OF_REACH if i in held else row for i, row in enumerate(self.rows))
        kept = replace(self, rows=rows, test=self.test[:0])
        kept.__dict__["fingerprint"] = self.fingerprint
        return kept


def load_prompts(
    source: str,
    *,
    labels: int | None = None,
    audit: float | None = None,
    test: float | None = None,
    seed: int = 0,
    checker: str | None = None,
) -> Prompts:
    """The prompts of a ``.jsonl`` file, or of ``reasoning-gym:TASK`` or ``reasoning-gym:TASK(key=value, ...)``.

    ``test`` is a share of the rows (0.2, at most 500 rows) that does not depend on ``seed``, and ``audit`` one of the
    rest (0.2, at most 200); a row's own "split" is obeyed. The same prompt is never in two splits. ``labels`` keeps
    that many teaching rows, and at most as many for the audit. ``checker`` is for rows that name none, and instead of
    a task's own.

    Raises:
        DataError: anything in the file or the request that cannot be used; the message names it and a remedy.

    >>> rows = load_prompts("reasoning-gym:chain_sum(size=50)", labels=6)
    >>> len(rows.labelled), len(rows.audit), rows.rows[0].checker
    (6, 6, 'reasoning-gym:chain_sum(size=50)')
    """
    rows, name = _found(source, checker, reasoning.ROWS)
    return _assembled(name, rows, Asked(test, audit, labels, seed))


def load_seeds(source: str, seeds: Iterable[int], *, labels: int | None = None) -> list[Prompts]:
    """The prompts as each seed splits them, read once; the arguments are those of `load_prompts`.

    Raises:
        DataError: as `load_prompts`.

    >>> one, other = load_seeds("reasoning-gym:chain_sum(size=50)", (0, 1))
    >>> one.test.equal(other.test), one.audit.equal(other.audit)
    (True, False)
    """
    rows, name = _found(source, None, reasoning.ROWS)
    return [_assembled(name, rows, Asked(None, None, labels, seed)) for seed in seeds]


def of_examples(
    rows: Iterable[Example],
    name: str = "prompts",
    *,
    labels: int | None = None,
    audit: float | None = None,
    test: float | None = None,
    seed: int = 0,
) -> Prompts:
    """Prompts from examples; the arguments are those of `load_prompts`.

    >>> len(of_examples(Example((("user", f"{i} + 1 = ?"),)) for i in range(10)).test)
    2
    """
    return _assembled(name, [jsonl.Row(row, None, ()) for row in rows], Asked(test, audit, labels, seed))


def load_suite(source: str, *, checker: str | None = None) -> Prompts:
    """Prompts that are only asked, to see what a model keeps: every row that can be checked is in the test split.

    ``source`` and ``checker`` are as in `load_prompts`; a task has 200 rows if its size is not given.

    Raises:
        DataError: as `load_prompts`, or no row can be checked.

    >>> len(load_suite("reasoning-gym:chain_sum").test)
    200
    """
    rows, name = _found(source, checker, SUITE_ROWS)
    checked = torch.tensor([i for i, row in enumerate(rows) if row.example.checker is not None], dtype=torch.int64)
    if not len(checked):
        raise DataError(
            f'{name}: none of its {len(rows)} rows can be checked; add the fields "answer" and "checker" to keep it'
        )
    none = checked[:0]
    return Prompts(name, tuple(row.example for row in rows), none, none, checked, _extra(rows))


def need(data: Prompts, field: str, recipe: str, instead: str | None = None) -> None:
    """Refuse prompts that lack what a recipe needs of each row that teaches; ``instead`` names what needs less.

    Raises:
        DataError: some rows that teach have no ``field``.

    >>> need(load_prompts("reasoning-gym:chain_sum(size=50)"), "answer", "opsd")
    """
    lacking = [data.rows[i] for i in data.labelled.tolist() if getattr(data.rows[i], field) is None]
    if not lacking:
        return
    article = "an" if field[0] in "aeiou" else "a"
    first = f" (first: line {lacking[0].line})" if lacking[0].line else ""
    close = nearest(field, list(data.extra)) or ", ".join(data.extra[:4])
    unread = f" (not read: {one_line(close, 60)})" if close else ""
    default = "--checker exact" if field == "checker" else "use ssd, which needs none"
    raise DataError(
        f"{recipe} needs {article} {field} on each prompt and {len(lacking)} of {len(data.labelled)} rows of "
        f'{data.name} have none{first}; add the field "{field}"{unread}, or {instead or default}'
    )


# ---- from a source to prompts ----------------------------------------------------------------------


def _found(source: str, checker: str | None, size: int) -> tuple[list[jsonl.Row], str]:
    """The rows, with checkers that exist and can judge them, and what to call them."""
    if reasoning.is_task(source):
        rows = [jsonl.Row(row, None, ()) for row in reasoning.make(source, size)]
        if checker is not None:
            rows = [row._replace(example=replace(row.example, checker=None)) for row in rows]
        return _checked(rows, source.strip(), checker), source.strip()
    return _checked(jsonl.read(Path(source)), source, checker), Path(source).name


def _checked(rows: Sequence[jsonl.Row], place: str, usual: str | None) -> list[jsonl.Row]:
    """Rows with their checkers, or the usual one where it can judge.

    Raises:
        DataError: a checker does not exist, or cannot judge by the row's answer.
    """
    known: set[str] = set()
    if usual is not None:
        rewards.resolve(usual)
    checked = []
    for row in rows:
        example = row.example
        entry, where = example.entry is not None, f"{place}:{example.line}" if example.line else place
        if example.checker is None:
            judged = usual is not None and rewards.refused(usual, example.answer, entry=entry) is None
            checked.append(row._replace(example=replace(example, checker=usual if judged else None)))
            continue
        if example.checker not in known:
            try:
                rewards.resolve(example.checker)
            except DataError as error:
                raise DataError(f"{where}: {error}") from None
            known.add(example.checker)
        if why := rewards.refused(example.checker, example.answer, entry=entry):
            raise DataError(f"{where}: {why}")
        checked.append(row)
    return checked


def _assembled(name: str, rows: Sequence[jsonl.Row], asked: Asked) -> Prompts:
    parts = prompt_splits.make(rows, asked, name)
    return Prompts(name, tuple(row.example for row in rows), *parts, _extra(rows))


def _extra(rows: Sequence[jsonl.Row]) -> tuple[str, ...]:
    return tuple(sorted({name for row in rows for name in row.extra}))
