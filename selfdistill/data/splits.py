"""Seeded stratified splits, removal of labels and label noise.

The test split depends on the data alone, so runs with different seeds are measured on the same rows. Rows that belong
together (`copies.RowGroups`) share a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import rng
from ..errors import DataError
from ..io.display import plural
from .copies import MOST_LISTED, Conflict, CopyReport, RowGroups, near_copies

Address = tuple[int | str, ...]


Part = Tensor | int | float  # a split: its sample ids, how many rows, or which share of what is left


class LabelColumn(NamedTuple):
    """The labels of every row: y is int64 with -1 for none, or float32 with nan for none and no classes."""

    name: str  # of the data, for messages
    y: Tensor  # (n,)
    classes: tuple[str, ...]
    taught: tuple[str, ...] = ()  # classes that the model knows already: no row need teach them


class Splits(NamedTuple):
    """Sample ids of each split, ascending, with the labels as the run may see them."""

    y: Tensor  # (n,), after removal and noise
    labelled: Tensor
    unlabelled: Tensor
    audit: Tensor
    test: Tensor
    noisy: Tensor  # (n,) bool
    clean: Tensor = torch.zeros(0, dtype=torch.int64)  # of those that teach, with a label that a person decided
    before_noise: Tensor | None = None  # (n,) the labels before some were made wrong


FEW_TEST = 50  # rows of a drawn test split, below which cross-fitted scores are proposed


def notice_of_test(name: str, part: Part, test: Tensor) -> str:
    """A notice that a test split (rows,), which was drawn, has few rows; mostly empty.

    >>> notice_of_test("mine", 0.2, torch.arange(16)).partition(";")[0]
    'mine: the test split has 16 rows, and a score on it is uncertain'
    """
    if isinstance(part, Tensor) or not 0 < len(test) < FEW_TEST:
        return ""
    return (
        f"{name}: the test split has {plural(len(test), 'row')}, and a score on it is uncertain; `run --test cross-fit`"
        " scores all labelled rows, and the final model learns from all of them"
    )


def has_label(y: Tensor) -> Tensor:
    """A mask of the rows with a label: not -1 for classes, not nan for values.

    >>> has_label(torch.tensor([0, -1, 2])).tolist()
    [True, False, True]
    """
    return ~torch.isnan(y) if y.is_floating_point() else y >= 0


def allocate(sizes: list[int], count: int, *, least: int = 0, reserve: int = 0) -> list[int]:
    """Share ``count`` among groups in proportion to ``sizes`` (largest remainder), within bounds.

    Every group gets ``least`` and leaves ``reserve`` behind, as far as it has them; where these bounds allow no
    exact sum, the nearest one.

    >>> allocate([60, 30, 10], 10), allocate([98, 1, 1], 10, least=1)
    ([6, 3, 1], [8, 1, 1])
    """
    total = max(sum(sizes), 1)
    upper = [max(size - reserve, 0) for size in sizes]
    lower = [min(least, top) for top in upper]
    shares = [min(max(count * size // total, low), top) for size, low, top in zip(sizes, lower, upper, strict=True)]
    while missing := count - sum(shares):
        step, bound = (1, upper) if missing > 0 else (-1, lower)
        movable = [i for i in range(len(sizes)) if shares[i] != bound[i]]
        if not movable:
            break
        # exact integers: owed minus given, in units of 1 / total
        shares[max(movable, key=lambda i: step * (count * sizes[i] - shares[i] * total))] += step
    return shares


def draw(
    ids: Tensor, y: Tensor, count: int, address: Address, *, reserve: int = 0, groups: Tensor | None = None
) -> Tensor:
    """``count`` of ``ids``, ascending: any for values; for classes in proportion, one of each if it can.

    Of ``groups`` (n,) whole ones are drawn, with ``count`` rows in all or as near as they go.
    """
    if groups is not None and len(groups[ids].unique()) < len(ids):
        return _draw_groups(ids, y, groups, count, address, reserve)
    if y.is_floating_point():
        return ids[rng.permutation(address, len(ids))[:count]].sort().values
    present = _present(y[ids])
    members = [ids[y[ids] == label] for label in present]
    shares = allocate([len(m) for m in members], count, least=int(count >= len(members)), reserve=reserve)
    drawn = [
        rows[rng.permutation((*address, label), len(rows))[:share]]
        for label, rows, share in zip(present, members, shares, strict=True)
    ]
    return torch.cat([*drawn, ids[:0]]).sort().values


def _draw_groups(ids: Tensor, y: Tensor, groups: Tensor, count: int, address: Address, reserve: int) -> Tensor:
    """`draw` for groups: one after the other in a random order, each if it fits and leaves ``reserve`` of its classes.

    A group with several classes is drawn among those of its first row's class.
    """
    classes = (torch.zeros_like(ids) if y.is_floating_point() else y[ids]).numpy()
    _, first, unit, counts = np.unique(groups[ids].numpy(), return_index=True, return_inverse=True, return_counts=True)
    stratum, width = classes[first], int(classes.max()) + 1
    pairs = np.unique(unit * width + classes)  # which group has which classes
    begin = np.searchsorted(pairs, np.arange(len(first) + 1) * width).tolist()
    own, sizes, left = (pairs % width).tolist(), counts.tolist(), np.bincount(pairs % width).tolist()
    present = np.unique(stratum).tolist()
    rows = [int(counts[stratum == label].sum()) for label in present]
    taken = np.zeros(len(first), dtype=bool)

    def take(k: int, most: int) -> int:
        """The rows of group ``k`` if it can be drawn, with at most so many rows; else 0."""
        there = own[begin[k] : begin[k + 1]]
        if sizes[k] > most or any(left[label] <= reserve for label in there):
            return 0
        taken[k] = True
        for label in there:
            left[label] -= 1
        return int(sizes[k])

    for label, share in zip(present, allocate(rows, count, least=int(count >= len(present))), strict=True):
        members = np.flatnonzero(stratum == label)
        members = members[np.argsort(first[members])]
        values = address if y.is_floating_point() else (*address, label)
        order, total = members[rng.permutation(values, len(members)).numpy()].tolist(), 0
        for k in order:
            total += take(k, share - total)
            if total >= share:
                break
        missing = share - total
        most = 2 * missing - 1 if total else len(ids)  # one more is nearer than none; the first is better than none
        for k in sorted(order, key=lambda k: sizes[k]) if missing else ():
            if not taken[k] and take(k, most):
                break
    return ids[torch.from_numpy(taken[unit])].sort().values


def make_splits(
    rows: LabelColumn,
    *,
    test: Part,
    audit: Part,
    labels: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
    bare: bool = False,
    groups: RowGroups | None = None,
) -> Splits:
    """Split the labelled rows into training, audit and test; everything else is unlabelled training data.

    With ``labels``, the other training rows lose theirs, and the audit keeps at most as many: an audit must
    not hold more labels than training. What it gives up becomes unlabelled training data too. Of ``bare`` rows none
    has a label, and all are unlabelled training data.

    Rows of one of the ``groups`` share a drawn split; unlabelled ones of a group in audit or test are in no split.
    With their time the latest rows test and the earliest teach, and a group keeps only the rows of its earliest split.

    Raises:
        DataError: one class only, a class too rare to split, a test class without training rows, more
            ``labels`` than rows, noise outside [0, 1), or given ids that overlap or have no label.
    """
    if bare:
        return _unlabelled_splits(rows, labels, label_noise)
    _check_noise(rows, label_noise)
    _check_given(rows, {"test": test, "audit": audit})
    y, least = rows.y.clone(), 1 + _is_open(test) + _is_open(audit)
    pool = has_label(y).nonzero()[:, 0]
    for fixed in (test, audit):
        if isinstance(fixed, Tensor):
            pool = difference(pool, fixed)
    _check_pool(rows, pool, least, groups)
    test_ids = _part(pool, rows, test, ("test",), reserve=least - 1, groups=groups)
    pool = difference(pool, test_ids)
    audit_ids = _part(pool, rows, audit, (seed, "audit"), reserve=1, groups=groups)
    labelled = difference(pool, audit_ids)
    parts = ((test_ids, test), (audit_ids, audit))
    drawn = torch.cat([pool[:0], *(ids for ids, part in parts if not isinstance(part, Tensor))])
    if groups is not None and groups.time is not None:
        audit_ids, test_ids = _apart(rows, groups.groups, labelled, {"audit": audit_ids, "test": test_ids}, drawn)
    _check_seen(rows, labelled, test_ids)
    if labels is not None:
        _check_labels(rows, labelled, labels)
        labelled = draw(labelled, y, labels, (seed, "labels"))
        most, together = min(labels, len(audit_ids)), None if groups is None else groups.groups
        audit_ids = draw(audit_ids, y, most, (seed, "audit labels"), groups=together)
    rest = difference(torch.arange(len(y)), torch.cat([labelled, audit_ids, test_ids]))
    y[rest] = torch.nan if y.is_floating_point() else -1
    unlabelled = rest if groups is None else _harmless(rest, groups, drawn, torch.cat([audit_ids, test_ids]))
    noisy, before = torch.zeros(len(y), dtype=torch.bool), y.clone() if label_noise else None
    for name, ids in (("train", labelled), ("audit", audit_ids)):
        if label_noise:
            noisy[make_noise(y, ids, label_noise, len(rows.classes), (seed, "noise", name))] = True
    return Splits(y, labelled, unlabelled, audit_ids, test_ids, noisy, before_noise=before)


def _apart(
    rows: LabelColumn, groups: Tensor, labelled: Tensor, parts: dict[str, Tensor], drawn: Tensor
) -> list[Tensor]:
    """Audit and test by time, without the drawn rows of groups that have earlier rows in a split before."""
    earlier, remaining = labelled, []
    for split, ids in parts.items():
        late = torch.isin(ids, drawn) & torch.isin(groups[ids], groups[earlier])
        if len(ids) and bool(late.all()):
            raise DataError(
                f"{rows.name}: each of the latest {len(ids)} rows, the {split} split, belongs to a group with earlier "
                "rows; leave out the time or the groups"
            )
        remaining.append(ids[~late])
        earlier = torch.cat([earlier, ids])
    return remaining


def _harmless(ids: Tensor, groups: RowGroups, drawn: Tensor, judged: Tensor) -> Tensor:
    """Rows that may teach without a label: of no group in a drawn split, and earlier than all of these."""
    judged = judged[torch.isin(judged, drawn)]
    ids = ids[~torch.isin(groups.groups[ids], groups.groups[judged])]
    if groups.time is None or not len(drawn):
        return ids
    return ids[groups.time[ids] < groups.time[drawn].min()]


def _unlabelled_splits(rows: LabelColumn, labels: int | None, label_noise: float) -> Splits:
    """Rows without any label: all of them teach without, and nothing is audited or tested."""
    if labels is not None or label_noise:
        option = "label noise" if labels is None else "a number of labels"
        raise DataError(f"{rows.name}: no row has a label, and {option} was asked for; leave it out")
    every = torch.arange(len(rows.y))
    return Splits(rows.y, every[:0], every, every[:0], every[:0], torch.zeros(len(every), dtype=torch.bool))


def report_copies(rows: LabelColumn, groups: RowGroups | None, parts: Splits, names: Sequence[str] = ()) -> CopyReport:
    """The copies among rows, by their labels before removal and noise, and their splits; ``names`` are their files.

    >>> rows = LabelColumn("mine", torch.tensor([0, 0, 1, 1]), ("no", "yes"))
    >>> parts = make_splits(rows, test=torch.tensor([2]), audit=0)
    >>> groups = RowGroups(torch.tensor([0, 1, 0, 2]), torch.tensor([0, 1, 0, 2]))
    >>> report = report_copies(rows, groups, parts)
    >>> report.conflicts, report.across.tolist()
    ((Conflict(rows=[1, 3], labels=['no', 'yes'], names=[]),), [2])
    """
    if groups is None:
        return CopyReport()
    copies, y = groups.copies.numpy(), rows.y.numpy()
    labelled = has_label(rows.y).nonzero()[:, 0].numpy()
    sizes = np.bincount(copies)
    low, high = np.full(len(sizes), np.inf), np.full(len(sizes), -np.inf)
    np.minimum.at(low, copies[labelled], y[labelled])
    np.maximum.at(high, copies[labelled], y[labelled])
    labelled = labelled[(low < high)[copies[labelled]]]
    order = labelled[np.argsort(copies[labelled], kind="stable")]
    inputs = np.split(order, np.flatnonzero(np.diff(copies[order])) + 1) if len(order) else []
    labels = [rows.classes[code] if rows.classes else f"{code:.6g}" for code in y[order]]
    place = dict(zip(order.tolist(), labels, strict=True))
    conflicts = [
        Conflict([i + 1 for i in ids], [place[i] for i in ids], [names[i] for i in ids] if names else [])
        for ids in (part.tolist() for part in inputs[:MOST_LISTED])
    ]
    teach = torch.cat([parts.labelled, parts.unlabelled])
    others = torch.cat([teach, parts.audit])
    return CopyReport(
        rows=int(sizes[sizes > 1].sum()),
        distinct=int((sizes > 1).sum()),
        conflicting=len(order),
        conflicts=tuple(conflicts),
        across=parts.test[torch.isin(groups.copies[parts.test], groups.copies[others])],
        validated=int(torch.isin(groups.copies[parts.audit], groups.copies[teach]).sum()),
        left_out=len(rows.y) - len(others) - len(parts.test),
    )


def report_near_copies(report: CopyReport, gradients: Tensor, names: Sequence[str], parts: Splits) -> CopyReport:
    """The report with the near-copies of images (hashes (n, 32)) that lie in different splits."""
    part = torch.full((len(gradients),), -1)
    for number, ids in enumerate((torch.cat([parts.labelled, parts.unlabelled]), parts.audit, parts.test)):
        part[ids] = number
    part[report.across] = -1  # they are counted as copies
    rows, pairs = near_copies(gradients, part)
    examples = tuple((names[i], names[k]) for i, k in pairs.tolist())
    return replace(report, nearly=int((part[rows] > 0).sum()), near=examples)


def make_noise(y: Tensor, ids: Tensor, share: float, classes: int, address: Address) -> Tensor:
    """Symmetric noise, in place: round(share * rows) labels become another class, drawn evenly; their ids."""
    noisy = ids[rng.permutation(address, len(ids))[: round(share * len(ids))]]
    step = 1 + (rng.uniform(address, noisy, 1)[:, 0] * (classes - 1)).long()
    y[noisy] = (y[noisy] + step) % classes
    return noisy


def row_ids(name: str, split: str, selection: Tensor, rows: int) -> Tensor:
    """The sample ids (k,) int64 that ``selection`` means: ids as they are, or where a mask (rows,) is true.

    Raises:
        DataError: another shape or dtype, an id outside the rows, an id twice.

    >>> row_ids("mine", "test", torch.tensor([False, True, True]), 3).tolist()
    [1, 2]
    """
    if selection.dtype == torch.bool:
        if tuple(selection.shape) != (rows,):
            raise DataError(
                f"{name}: a {split} mask of shape {tuple(selection.shape)}; give one value for each of {rows} rows"
            )
        return selection.nonzero()[:, 0].cpu()
    if selection.ndim != 1 or (len(selection) and (selection.is_floating_point() or selection.is_complex())):
        fault = f"{str(selection.dtype).removeprefix('torch.')} of shape {tuple(selection.shape)}"
        raise DataError(f"{name}: {split} ids are {fault}; give whole row numbers in one dimension, or a mask")
    ids = selection.long().cpu()
    invalid = ids[(ids < 0) | (ids >= rows)]
    if len(invalid):
        raise DataError(f"{name}: {split} ids outside 0..{rows - 1}, such as {int(invalid[0])}; use row numbers")
    found_ids, times = ids.unique(return_counts=True)
    if bool((times > 1).any()):
        raise DataError(f"{name}: row {int(found_ids[times > 1][0])} is twice among the {split} ids; give each once")
    return ids


def difference(ids: Tensor, excluded: Tensor) -> Tensor:
    """The ``ids`` that are not among ``excluded``, in their order."""
    return ids[~torch.isin(ids, excluded)]


def _present(y: Tensor) -> list[int]:
    return [int(label) for label in torch.bincount(y).nonzero()[:, 0]]


def _is_open(part: Part) -> int:
    """1 if this split is still to be drawn, else 0."""
    return 0 if isinstance(part, Tensor) or part == 0 else 1


def _part(
    pool: Tensor, rows: LabelColumn, part: Part, address: Address, *, reserve: int, groups: RowGroups | None
) -> Tensor:
    if isinstance(part, Tensor):
        return part.sort().values
    if part == 0:
        return pool[:0]
    count = part if isinstance(part, int) else max(1, round(part * len(pool)))
    if groups is None:
        return draw(pool, rows.y, count, address, reserve=reserve)
    if groups.time is None:
        return draw(pool, rows.y, count, address, reserve=reserve, groups=groups.groups)
    return latest(rows.name, pool, groups.time[pool], count)


def latest(name: str, pool: Tensor, time: Tensor, count: int) -> Tensor:
    """About ``count`` of the rows, the latest ones; rows of one time stay together.

    Raises:
        DataError: all rows have one time.
    """
    moments, sizes = time.unique(return_counts=True)
    if len(moments) < 2:
        raise DataError(f"{name}: {len(pool)} rows to split have one time; give a column with more, or leave it out")
    later = sizes.flip(0).cumsum(0).flip(0)[1:]  # rows from each moment on, but the first
    return pool[time >= moments[1:][(later - count).abs().argmin()]]


def _check_given(rows: LabelColumn, parts: dict[str, Part]) -> None:
    """Rows that were chosen for audit and test have labels, and no row is in both."""
    selections = {split: part for split, part in parts.items() if isinstance(part, Tensor)}
    for split, ids in selections.items():
        missing = ids[~has_label(rows.y[ids])]
        if len(missing):
            raise DataError(
                f"{rows.name}: row {int(missing[0])} (from 0) is in the {split} split, but has no label; "
                "label it, or leave it out"
            )
    if len(selections) == len(parts):
        common = selections["test"][torch.isin(selections["test"], selections["audit"])]
        if len(common):
            raise DataError(
                f"{rows.name}: {len(common)} rows are in both test and audit, the first is row {int(common.min())} "
                "(from 0); give each to one of them"
            )


def _check_noise(rows: LabelColumn, label_noise: float) -> None:
    if not 0 <= label_noise < 1:
        raise DataError(f"{rows.name}: label noise is a share from 0 to below 1, not {label_noise}; try 0.4")
    if label_noise and rows.y.is_floating_point():
        raise DataError(f"{rows.name}: label noise swaps classes, but the target is a number; leave it at 0")


def _check_pool(rows: LabelColumn, pool: Tensor, least: int, groups: RowGroups | None) -> None:
    """Enough labelled rows, of enough classes, for every split that is to be drawn; of a group one counts."""
    y, alike = rows.y[pool], ""
    if groups is not None and len(pool):
        classes = torch.zeros_like(pool) if y.is_floating_point() else y
        width = int(classes.max()) + 1
        single = (groups.groups[pool] * width + classes).unique() % width
        if len(single) < len(y):
            alike = " that are not equal or of one group"
        y = single.to(y.dtype)
    if rows.y.is_floating_point():
        if len(y) <= least:
            raise DataError(f"{rows.name}: only {len(y)} rows to split{alike} have a target; add rows")
        return
    present = _present(y)
    if len(present) < 2 and not (present and rows.taught):
        fault = f"only the class '{rows.classes[present[0]]}'" if present else "no class at all"
        raise DataError(f"{rows.name}: the labelled rows have {fault}; learning needs two classes or more")
    counts = torch.bincount(y).tolist()
    for label in present:
        if counts[label] < least:
            raise DataError(
                f"{rows.name}: class '{rows.classes[label]}' has too few labelled rows to split{alike} "
                f"({counts[label]}, needed {least}); add rows, or merge or remove the class"
            )


def _check_seen(rows: LabelColumn, labelled: Tensor, test: Tensor) -> None:
    """A class that is tested must be taught."""
    if rows.y.is_floating_point():
        return
    unseen = sorted(set(_present(rows.y[test])) - set(_present(rows.y[labelled])))
    unseen = [label for label in unseen if rows.classes[label] not in rows.taught]
    if unseen:
        raise DataError(
            f"{rows.name}: class '{rows.classes[unseen[0]]}' is in the test split, but no labelled training "
            "row has it; add some, or remove it from the test split"
        )


def _check_labels(rows: LabelColumn, labelled: Tensor, labels: int) -> None:
    if labels > len(labelled):
        raise DataError(
            f"{rows.name}: {labels} labels were asked for, but only {len(labelled)} training rows have one; "
            f"ask for {len(labelled)} or fewer"
        )
    classes = 1 if rows.y.is_floating_point() else len(_present(rows.y[labelled]))
    if labels < classes:
        raise DataError(f"{rows.name}: {labels} labels for {classes} classes; ask for one of each or more")
