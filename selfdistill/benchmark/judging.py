"""From records to rows and verdicts: a pure function of the cells, paired over the seeds that both sides have.

P-values are those of Student's paired t-test, which the intervals belong to, corrected over the methods of a setting
(Holm). The exact sign-flip test of `compare` cannot fall below 2^(1 - seeds), so that with ten seeds and thirty methods
no difference whatever would pass it.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..stats import FEWEST, Verdict, holm, interval, one_sided_t, paired, sign_flip, verdict
from .fitting import PLAIN, STOPPED, UNTRAINED, is_control
from .records import Records

LEVEL = 0.05


@dataclass(frozen=True)
class Compared:
    """A paired difference of accuracy: its mean, half of its 95 % interval and, of three pairs or more, the verdict."""

    difference: float
    half: float
    p: float | None = None
    holm: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Row:
    """A method's or control's figures over its finished seeds, against `plain()` and against the best control."""

    name: str
    control: bool
    seeds: tuple[int, ...]
    accuracy: float
    stopped: float  # at the epoch that the audit split likes best
    nll: float
    ece: float
    passes: float | None
    budget: float | None
    plain: Compared | None = None
    best: Compared | None = None


def two_sided(differences: Sequence[float]) -> float:
    """P-value of Student's paired t-test; where all differences are equal, that of the exact sign-flip test.

    >>> round(two_sided([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if max(differences) == min(differences):
        return sign_flip(differences)
    p = one_sided_t(np.asarray(differences))
    return 2 * min(p, 1 - p)


def scores(
    records: Mapping[int, Mapping[str, Any]], use: str = "last", split: str = "test"
) -> dict[int, dict[str, float]]:
    """Metrics of the finished seeds on a split: of the last weights, or of those ``stopped`` early."""
    return {seed: r[split][use] for seed, r in sorted(records.items()) if r["status"] == "finished"}


def tables(records: Records, split: str = "test") -> dict[str, dict[int, dict[str, float]]]:
    """Metrics by row and seed; early stopping is a row of its own, of the same trainings."""
    found = {name: scores(of, split=split) for name, of in records.items()}
    found[STOPPED] = scores(records.get(PLAIN, {}), "stopped", split)
    return {name: of for name, of in found.items() if of}


def best_control(records: Records) -> str | None:
    """The control that the audit split likes best, of those with every seed of `plain()`; None without any. Where no
    label teaches it is the untrained network: `plain()`, which sees them all, is what could be had with them."""
    if UNTRAINED in records:
        return UNTRAINED
    audits = tables(records, "audit")
    whole = {
        name: statistics.fmean(found[seed]["accuracy"] for seed in audits[PLAIN])
        for name, found in audits.items()
        if is_control(name) and audits.get(PLAIN, {}).keys() <= found.keys()
    }
    return max(whole, key=lambda name: whole[name], default=None) if PLAIN in audits else None


def judge(records: Records) -> list[Row]:
    """A row for each method with a finished seed, the best first.

    Methods are compared with `plain()` and with the best control, controls with `plain()`; p-values are corrected over
    the rows that are compared with the same one.
    """
    found = tables(records)
    ours = [name for name in found if not is_control(name)]
    controls = [name for name in found if is_control(name) and name != PLAIN]
    plainly = {**compared(found, ours, PLAIN), **compared(found, controls, PLAIN)}
    best = best_control(records)
    against = compared(found, ours, best) if best is not None else {}
    rows = [_row(name, found[name], records, plainly.get(name), against.get(name)) for name in found]
    return sorted(rows, key=lambda row: (row.plain is None, -(row.plain.difference if row.plain else 0.0), row.name))


def compared(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], family: Sequence[str], reference: str
) -> dict[str, Compared]:
    """Each of a family against the reference, in accuracy, on the seeds that both have."""
    differences: dict[str, list[float]] = {}
    for name in family:
        both = found[name].keys() & found.get(reference, {}).keys()
        if both:
            one, other = ({seed: found[side][seed]["accuracy"] for seed in both} for side in (name, reference))
            differences[name] = paired(one, other)
    p = {name: two_sided(d) for name, d in differences.items() if len(d) >= FEWEST}
    adjusted = holm(p)
    return {
        name: Compared(*interval(d), p[name], adjusted[name], verdict(d, adjusted[name], True, LEVEL))
        if name in p
        else Compared(*interval(d))
        for name, d in differences.items()
    }


def _row(
    name: str, table: Mapping[int, Mapping[str, float]], records: Records, plain: Compared | None, best: Compared | None
) -> Row:
    of = records[PLAIN if name == STOPPED else name]
    done, stopped = [of[seed] for seed in table], scores(of, "stopped")
    passes = [r["passes"]["total"] for r in done if r["passes"]]

    def mean(metric: str, of: Mapping[int, Mapping[str, float]]) -> float:
        return statistics.fmean(found[metric] for found in of.values())

    return Row(
        name, is_control(name), tuple(table), mean("accuracy", table), mean("accuracy", stopped), mean("nll", table),
        mean("ece", table), statistics.fmean(passes) if passes else None, done[0]["budget"], plain, best,
    )  # fmt: skip
