"""Splits of prompts into training, audit and test; the same prompt is never in two of them.

Prompts are drawn in the order of a hash of their text, so the splits depend neither on the order of the rows nor, but
for the last prompts drawn, on rows that are added later. The test split does not depend on the seed either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .. import rng
from ..errors import DataError
from .jsonl import Row

TEST_SHARE, AUDIT_SHARE = 0.2, 0.2  # of the rows; of what the test leaves


MOST_TEST, MOST_AUDIT = 500, 200


LEAST = 3  # distinct prompts: one for each split


class Asked(NamedTuple):
    """The shares that were asked for, how many rows teach, and the seed; None is for the usual."""

    test: float | None = None
    audit: float | None = None
    labels: int | None = None
    seed: int = 0


class Splits(NamedTuple):
    """Sample ids, ascending."""

    labelled: Tensor
    audit: Tensor
    test: Tensor


def make(rows: Sequence[Row], asked: Asked, name: str) -> Splits:
    """Split the rows; those that name their split are where they say, and take rows of the same prompt with them.

    Raises:
        DataError: fewer than three distinct prompts, a prompt in two splits, a share outside [0, 1) or for a split
            that the rows name, no row that teaches, or fewer than ``labels``.
    """
    groups = _groups(rows)
    if len(groups) < LEAST:
        raise DataError(f"{name}: {len(groups)} distinct prompts; give {LEAST} or more, to teach, to judge and to test")
    places: dict[str, list[str]] = {"train": [], "audit": [], "test": []}
    free: list[str] = []
    for key, members in groups.items():
        named = _named([rows[i] for i in members], name)
        (free if named is None else places[named]).append(key)
    sizes = {key: len(members) for key, members in groups.items()}
    for split, usual, most, address in (
        ("test", TEST_SHARE, MOST_TEST, "test"),
        ("audit", AUDIT_SHARE, MOST_AUDIT, f"audit {asked.seed}"),
    ):
        share = _share(getattr(asked, split), usual, bool(places[split]), split, name)
        if not share or places[split] or not free:
            continue
        left = sum(size for key, size in sizes.items() if key not in places["test"])
        keep = (not places["train"]) + (split == "test" and asked.audit != 0 and not places["audit"])
        places[split] = _drawn(free, sizes, min(most, max(1, round(share * left))), address, keep)
        free = [key for key in free if key not in set(places[split])]
    teach, audit, test = (_ids(groups, keys) for keys in (places["train"] + free, places["audit"], places["test"]))
    if not len(teach):
        raise DataError(f'{name}: no row teaches; give some the split "train", or none')
    return _limited(teach, audit, test, asked, name)


def _groups(rows: Sequence[Row]) -> dict[str, list[int]]:
    """The rows of each distinct prompt."""
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.example.asked, []).append(index)
    return groups


def _named(rows: Sequence[Row], name: str) -> str | None:
    """The split that rows of one prompt name, if they do."""
    first: dict[str, int] = {}
    for row in rows:
        if row.split is not None:
            first.setdefault(row.split, row.example.line)
    if len(first) > 1:
        (one, here), (other, there) = sorted(first.items(), key=lambda item: item[1])[:2]
        raise DataError(
            f"{name}:{there}: a prompt of the split {other} that line {here} has in {one}; keep one of the two"
        )
    return next(iter(first), None)


def _share(asked: float | None, usual: float, named: bool, split: str, name: str) -> float:
    if asked is None:
        return usual
    if named:
        raise DataError(f'{name}: its {split} rows are given by its field "split"; leave {split} out')
    if not 0 <= asked < 1:
        raise DataError(f"{name}: {split} is a share from 0 to below 1, not {asked}; try 0.2")
    return float(asked)


def _drawn(free: Sequence[str], sizes: dict[str, int], count: int, address: str, keep: int) -> list[str]:
    """Prompts with ``count`` rows in all, or as near below as whole prompts go, but one; ``keep`` prompts stay."""
    order = sorted(free, key=lambda key: hashlib.sha256(f"{address}\n{key}".encode()).digest())
    most, taken, rows = len(free) - keep, list[str](), 0
    for key in order:
        if len(taken) < most and rows + sizes[key] <= count:
            taken.append(key)
            rows += sizes[key]
    return taken or sorted(order, key=lambda key: sizes[key])[: min(1, most)]


def _ids(groups: dict[str, list[int]], keys: Sequence[str]) -> Tensor:
    return torch.tensor(sorted(i for key in keys for i in groups[key]), dtype=torch.int64)


def _limited(teach: Tensor, audit: Tensor, test: Tensor, asked: Asked, name: str) -> Splits:
    """At most ``labels`` rows teach, and no more of them judge."""
    labels = asked.labels
    if labels is None:
        return Splits(teach, audit, test)
    if not 1 <= labels <= len(teach):
        raise DataError(
            f"{name}: {labels} rows were asked for, but {len(teach)} can teach; ask for {len(teach)} or fewer"
            if labels > 0
            else f"{name}: {labels} rows were asked for; ask for 1 or more"
        )
    few = [
        ids[rng.permutation((asked.seed, which), len(ids))[:labels]].sort().values
        for which, ids in (("labels", teach), ("audit labels", audit))
    ]
    return Splits(few[0], few[1], test)
