"""Data sets of prompts for language models, with their splits; the same prompt is never in two of them.

Prompts are drawn in the order of a hash of their text, so the splits depend neither on the order of the rows nor, but
for the last prompts drawn, on rows that are added later. The test split does not depend on the seed either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..errors import DataError
from ..io import trust
from ..io.expressions import nearest, one_line
from . import reasoning, rewards
from .copies import MOST_LISTED, Conflict, CopyReport, connect, numbered, time_values
from .examples import FIELDS, OWN_NAMES, Example, FieldNames, PromptRow, read_rows, rows_in_memory
from .splits import latest

__all__ = ["Example", "Prompts", "load_prompts", "load_seeds", "load_suite", "need", "of_examples", "of_records"]

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
    renamed: tuple[tuple[str, str], ...] = ()  # fields of the file that were read as others
    copies: CopyReport = CopyReport()
    left_out: int = 0  # rows in no split, because they are too long for the model

    @property
    def unlabelled(self) -> Tensor:
        """No row: prompts have no unlabelled set."""
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
        """The description of the data for a run's record, as JSON values."""
        parts = {name: len(getattr(self, name)) for name in ("labelled", "unlabelled", "audit", "test")}
        return {
            "name": self.name,
            "kind": self.kind,
            "task": self.task,
            "shape": list(self.shape),
            "classes": list(self.classes),
            "rows": parts,
            **({"left_out": self.left_out} if self.left_out else {}),
            **self.copies.describe(),
            "fields": {name: len(self.has(name)) for name in ("demonstration", "answer", "checker")},
            "noise": 0.0,
            "flips": self.flips,
            "augment": self.augment,
            "fingerprint": self.fingerprint,
        }

    def sealed(self) -> Prompts:
        """The same prompts with the test rows out of reach; the others keep their ids, and all the fingerprint."""
        test_ids = set(self.test.tolist())
        rows = tuple(_OUT_OF_REACH if i in test_ids else row for i, row in enumerate(self.rows))
        copy = replace(self, rows=rows, test=self.test[:0])
        copy.__dict__["fingerprint"] = self.fingerprint
        return copy


def load_prompts(
    source: str,
    *,
    labels: int | None = None,
    audit: float | str | Path | None = None,
    test: float | str | Path | None = None,
    seed: int = 0,
    checker: str | None = None,
    groups: str | None = None,
    time: str | None = None,
    columns: Iterable[tuple[str, str]] = (),
    trust_code: bool = False,
) -> Prompts:
    """The prompts of a file (see `prompt_files`), or of ``reasoning-gym:TASK`` or ``reasoning-gym:TASK(key=value)``.

    ``test`` is a share of the rows (0.2, at most 500 rows) that does not depend on ``seed``, and ``audit`` one of the
    rest (0.2, at most 200); a row's own "split" is obeyed, and either may be a file of the rows of that split. Rows of
    the same prompt share a split that is drawn, and so do those with one value of the field ``groups``; by the field
    ``time`` the latest rows test and the earliest teach. ``labels`` keeps that many teaching rows, and at most as many
    for the audit. ``checker`` is for rows that name none, and instead of a task's own. ``columns`` are pairs (field,
    name in the file) of fields that the file calls otherwise. ``trust_code`` allows checkers that the file names as
    ``module:function``.

    Raises:
        DataError: anything in the file or the request that cannot be used; the message names it and a remedy.
        CheckpointError: the file names a function as a checker, and is not trusted.

    >>> rows = load_prompts("reasoning-gym:chain_sum(size=50)", labels=6)
    >>> len(rows.labelled), len(rows.audit), rows.rows[0].checker
    (6, 6, 'reasoning-gym:chain_sum(size=50)')
    """
    with trust.trust_code(trust_code):
        return load_seeds(
            source,
            (seed,),
            labels=labels,
            audit=audit,
            test=test,
            checker=checker,
            groups=groups,
            time=time,
            columns=columns,
        )[0]


def load_seeds(
    source: str,
    seeds: Iterable[int],
    *,
    labels: int | None = None,
    audit: float | str | Path | None = None,
    test: float | str | Path | None = None,
    checker: str | None = None,
    groups: str | None = None,
    time: str | None = None,
    columns: Iterable[tuple[str, str]] = (),
) -> list[Prompts]:
    """The prompts as each seed splits them, read once; the arguments are those of `load_prompts`.

    Raises:
        DataError: as `load_prompts`.

    >>> one, other = load_seeds("reasoning-gym:chain_sum(size=50)", (0, 1))
    >>> one.test.equal(other.test), one.audit.equal(other.audit)
    (True, False)
    """
    names = FieldNames(groups, time, tuple(columns))
    rows, name = _read_prompts(source, checker, reasoning.ROWS, names)
    for split, part in (("test", test), ("audit", audit)):
        if isinstance(part, str | Path):
            if any(row.split == split for row in rows):
                raise DataError(f'{name}: its field "split" names {split} rows, and {part} is given too; leave one out')
            further = _checked(read_rows(Path(part), names), str(part), checker)
            rows += [row._replace(split=split, own=True) for row in further]
    tested, audited = (None if isinstance(part, str | Path) else part for part in (test, audit))
    return [_assembled(name, rows, SplitRequest(tested, audited, labels, seed)) for seed in seeds]


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
    return _assembled(name, [PromptRow(row, None) for row in rows], SplitRequest(test, audit, labels, seed))


def of_records(records: Iterable[Mapping[str, Any]], name: str, *, trust_code: bool = False) -> Prompts:
    """Prompts from the rows of a table in memory, all of which teach.

    Args:
        records: The fields of each row; names of other tools are read by their meaning.
        name: Of the table, for messages.
        trust_code: Allow checkers that the table names as ``module:function``; it may have come from elsewhere.

    Returns:
        The prompts; a sample id is the number of its row.

    Raises:
        DataError: A row is none, or names a checker that there is not.
        CheckpointError: The table names a function as a checker, and is not trusted.

    >>> of_records([{"question": "1 + 1?", "answer": "2"}], "sums").labelled.tolist()
    [0]
    """
    with trust.trust_code(trust_code):
        rows, no_ids = _checked(rows_in_memory(records, name), name, None), torch.zeros(0, dtype=torch.int64)
    return Prompts(name, tuple(r.example for r in rows), torch.arange(len(rows)), no_ids, no_ids, *_fields(rows))


def load_suite(source: str, *, checker: str | None = None) -> Prompts:
    """A suite of prompts for evaluation alone: every row that can be checked is in the test split.

    ``source`` and ``checker`` are as in `load_prompts`; a task has 200 rows if its size is not given.

    Raises:
        DataError: as `load_prompts`, or no row can be checked.

    >>> len(load_suite("reasoning-gym:chain_sum").test)
    200
    """
    rows, name = _read_prompts(source, checker, SUITE_ROWS)
    checked = torch.tensor([i for i, row in enumerate(rows) if row.example.checker is not None], dtype=torch.int64)
    if not len(checked):
        raise DataError(
            f'{name}: none of its {len(rows)} rows can be checked; add the fields "answer" and "checker" to keep it'
        )
    no_ids = checked[:0]
    return Prompts(name, tuple(row.example for row in rows), no_ids, no_ids, checked, *_fields(rows))


def need(data: Prompts, field: str, recipe: str, instead: str | None = None, *, alternative: str | None = None) -> None:
    """Refuse prompts that lack a field which a recipe needs on each training row; ``instead`` names a recipe that needs
    less, ``alternative`` a field that can stand in.

    Raises:
        DataError: some rows that teach have no ``field``.

    >>> need(load_prompts("reasoning-gym:chain_sum(size=50)"), "answer", "opsd")
    """
    fields = (field,) if alternative is None else (field, alternative)
    teaching = [data.rows[i] for i in data.labelled.tolist()]
    lacking = [row for row in teaching if all(getattr(row, name) is None for name in fields)]
    if not lacking:
        return
    article = "an" if field[0] in "aeiou" else "a"
    first_line = f" (first: line {lacking[0].line})" if lacking[0].line else ""
    unread_names = nearest(field, list(data.extra)) or ", ".join(data.extra[:4])
    unread = f" (not read: {one_line(unread_names, 60)})" if unread_names else ""
    default = "--checker exact" if field == "checker" else "use ssd, which needs none"
    raise DataError(
        f"{recipe} needs {article} {field} on each prompt and {len(lacking)} of {len(data.labelled)} rows of "
        f'{data.name} have none{first_line}; add the field "{field}"{unread}, or {instead or default}'
    )


# ---- from a source to prompts ----------------------------------------------------------------------


def _read_prompts(
    source: str, checker: str | None, size: int, names: FieldNames = OWN_NAMES
) -> tuple[list[PromptRow], str]:
    """The rows with valid checkers, and the name of the data."""
    if reasoning.is_task(source):
        if any(names):
            raise DataError(f"{source}: the rows of a task have no groups, no time and no columns; leave them out")
        rows = [PromptRow(row, None) for row in reasoning.make_examples(source, size)]
        if checker is not None:
            rows = [row._replace(example=replace(row.example, checker=None)) for row in rows]
        return _checked(rows, source.strip(), checker), source.strip()
    return _checked(read_rows(Path(source), names), source, checker), Path(source).name


def _checked(rows: Sequence[PromptRow], source: str, default: str | None) -> list[PromptRow]:
    """Rows with their checkers, or the usual one where it can judge.

    Raises:
        DataError: a checker does not exist, or cannot judge by the row's answer.
    """
    resolved: set[str] = set()
    if default is not None:
        rewards.resolve(default)
    checked = []
    for row in rows:
        example = row.example
        entry, location = example.entry is not None, f"{source}:{example.line}" if example.line else source
        if example.checker is None:
            judged = default is not None and rewards.unusable_reason(default, example.answer, entry=entry) is None
            checked.append(row._replace(example=replace(example, checker=default if judged else None)))
            continue
        if example.checker not in resolved:
            if rewards.names_function(example.checker):
                place, _, name = example.checker.strip().partition(":")
                trust.require_trust(place, name, location)
            try:
                rewards.resolve(example.checker)
            except DataError as error:
                raise DataError(f"{location}: {error}") from None
            resolved.add(example.checker)
        if reason := rewards.unusable_reason(example.checker, example.answer, entry=entry):
            raise DataError(f"{location}: {reason}")
        checked.append(row)
    return checked


def _assembled(name: str, rows: Sequence[PromptRow], request: SplitRequest) -> Prompts:
    parts = split_prompts(rows, request, name)
    data = Prompts(name, tuple(row.example for row in rows), *_limited(parts, request, name), *_fields(rows))
    return replace(data, copies=_report_copies(rows, parts))


def _fields(rows: Sequence[PromptRow]) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The fields without a use here, and those that were read as others."""
    renamed = dict.fromkeys(pair for row in rows for pair in row.renamed)
    return tuple(sorted({name for row in rows for name in row.extra})), tuple(renamed)


TEST_SHARE, AUDIT_SHARE = 0.2, 0.2  # of the rows; of what the test leaves


MOST_TEST, MOST_AUDIT = 500, 200


LEAST = 3  # distinct prompts: one for each split


class SplitRequest(NamedTuple):
    """The requested shares, number of training rows and seed; None is the default."""

    test: float | None = None
    audit: float | None = None
    labels: int | None = None
    seed: int = 0


class PromptSplits(NamedTuple):
    """Sample ids, ascending."""

    labelled: Tensor
    audit: Tensor
    test: Tensor


def split_prompts(rows: Sequence[PromptRow], request: SplitRequest, name: str) -> PromptSplits:
    """Split the rows; a row that names its split is put there, with rows of the same prompt that name none.

    Raises:
        DataError: fewer than three distinct prompts, a share outside [0, 1) or for a split that the rows name, or no
            row that teaches.
    """
    groups = _groups(rows)
    if len(groups) < LEAST:
        raise DataError(f"{name}: {len(groups)} distinct prompts; give {LEAST} or more, to teach, to judge and to test")
    parts: dict[str, list[int]] = {"train": [], "audit": [], "test": []}
    free = list[str]()
    for key, members in groups.items():
        splits_of_key = [rows[i].split for i in members if rows[i].split is not None]
        if not splits_of_key:
            free.append(key)
        for i in members if splits_of_key else ():
            parts[rows[i].split or splits_of_key[0] or "train"].append(i)
    declared = {split for split, members in parts.items() if members}
    sizes = {key: len(groups[key]) for key in free}
    for split, default, limit, address in (
        ("test", TEST_SHARE, MOST_TEST, "test"),
        ("audit", AUDIT_SHARE, MOST_AUDIT, f"audit {request.seed}"),
    ):
        share = _share(getattr(request, split), default, split in declared, split, name)
        if not share or split in declared or not free:
            continue
        count = min(limit, max(1, round(share * (len(rows) - len(parts["test"])))))
        if rows[0].time is not None:
            parts[split], free = _draw_latest(rows, groups, free, count, name)
            continue
        reserve = ("train" not in declared) + (split == "test" and request.audit != 0 and "audit" not in declared)
        drawn = set(_draw_prompts(free, sizes, count, address, reserve))
        parts[split] = [i for key in drawn for i in groups[key]]
        free = [key for key in free if key not in drawn]
    parts["train"] += [i for key in free for i in groups[key]]
    if not parts["train"]:
        raise DataError(f'{name}: no row teaches; give some the split "train", or none')
    ids = (torch.tensor(sorted(parts[split]), dtype=torch.int64) for split in ("train", "audit", "test"))
    return PromptSplits(*ids)


def _groups(rows: Sequence[PromptRow]) -> dict[str, list[int]]:
    """The rows of each distinct prompt, and of prompts that a group connects."""
    keys = [f"\0{row.split}\n{row.example.user_text}" if row.own else row.example.user_text for row in rows]
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    if rows and rows[0].group is None:
        return groups
    owners = [f"\0{row.split}\n{row.group}" if row.own else f"\n{row.group}" for row in rows]
    connected: dict[int, list[int]] = {}
    for index, code in enumerate(connect(numbered(np.array(keys, dtype=object)), np.array(owners)).tolist()):
        connected.setdefault(code, []).append(index)
    return {min(keys[i] for i in members): members for members in connected.values()}


def _draw_latest(
    rows: Sequence[PromptRow], groups: dict[str, list[int]], free: list[str], count: int, name: str
) -> tuple[list[int], list[str]]:
    """About ``count`` rows, the latest ones, and the prompts that began before; what these have later is left out."""
    pool = torch.tensor([i for key in free for i in groups[key]])
    times = time_values(np.array([rows[i].time for i in pool.tolist()]), f"{name}: time")
    late = set(latest(name, pool, torch.from_numpy(times), count).tolist())
    rest = [key for key in free if not set(groups[key]) <= late]
    for key in rest:
        groups[key] = [i for i in groups[key] if i not in late]
    drawn = [i for key in free if key not in set(rest) for i in groups[key]]
    if not drawn:
        raise DataError(f"{name}: each of the latest {len(late)} rows belongs to a prompt or group with earlier rows")
    return drawn, rest


def _report_copies(rows: Sequence[PromptRow], parts: PromptSplits) -> CopyReport:
    """The rows of one prompt, and those whose answers differ."""
    prompts: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        prompts.setdefault(row.example.user_text, []).append(index)
    several = [members for members in prompts.values() if len(members) > 1]
    conflicts = []
    for members in several:
        answered = [i for i in members if rows[i].example.answer is not None]
        answers = [str(rows[i].example.answer) for i in answered]
        if len(set(answers)) > 1:
            conflicts.append(Conflict([rows[i].example.line or i + 1 for i in answered], answers, []))
    teach, audit = set(parts.labelled.tolist()), set(parts.audit.tolist())
    test = parts.test.tolist()
    across = [i for i in test if (teach | audit) & set(prompts[rows[i].example.user_text])]
    return CopyReport(
        rows=sum(map(len, several)),
        distinct=len(several),
        conflicting=sum(len(conflict.rows) for conflict in conflicts),
        conflicts=tuple(conflicts[:MOST_LISTED]),
        across=torch.tensor(across, dtype=torch.int64),
        validated=sum(bool(teach & set(prompts[rows[i].example.user_text])) for i in audit),
        left_out=len(rows) - len(teach) - len(audit) - len(test),
    )


def _share(request: float | None, default: float, declared: bool, split: str, name: str) -> float:
    if request is None:
        return default
    if declared:
        raise DataError(f'{name}: its {split} rows are given by its field "split"; leave {split} out')
    if not 0 <= request < 1:
        raise DataError(f"{name}: {split} is a share from 0 to below 1, not {request}; try 0.2")
    return float(request)


def _draw_prompts(free: Sequence[str], sizes: dict[str, int], count: int, address: str, reserve: int) -> list[str]:
    """Prompts with ``count`` rows in all, or as near below as whole prompts go, but one; ``reserve`` prompts stay."""
    order = sorted(free, key=lambda key: hashlib.sha256(f"{address}\n{key}".encode()).digest())
    limit, drawn, rows = len(free) - reserve, list[str](), 0
    for key in order:
        if len(drawn) < limit and rows + sizes[key] <= count:
            drawn.append(key)
            rows += sizes[key]
    return drawn or sorted(order, key=lambda key: sizes[key])[: min(1, limit)]


def _limited(parts: PromptSplits, request: SplitRequest, name: str) -> PromptSplits:
    """At most ``labels`` rows teach, and no more of them judge."""
    labels, (teach, audit, test) = request.labels, parts
    if labels is None:
        return parts
    if not 1 <= labels <= len(teach):
        raise DataError(
            f"{name}: {labels} rows were asked for, but {len(teach)} can teach; ask for {len(teach)} or fewer"
            if labels > 0
            else f"{name}: {labels} rows were asked for; ask for 1 or more"
        )
    subsets = [
        ids[rng.permutation((request.seed, address), len(ids))[:labels]].sort().values
        for address, ids in (("labels", teach), ("audit labels", audit))
    ]
    return PromptSplits(subsets[0], subsets[1], test)
