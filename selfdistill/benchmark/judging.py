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
from .fitting import PLAIN, STOPPED, is_control
from .records import Records

LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """A method's or control's figures over its finished seeds; differences are to `plain()`, on the seeds of both."""

    name: str
    control: bool
    seeds: tuple[int, ...]
    accuracy: float
    stopped: float  # at the epoch that the audit split likes best
    nll: float
    ece: float
    passes: float | None
    budget: float | None
    difference: float | None = None
    half: float | None = None  # of the 95 % interval
    p: float | None = None
    holm: float | None = None
    verdict: Verdict | None = None


def two_sided(differences: Sequence[float]) -> float:
    """P-value of Student's paired t-test; where all differences are equal, that of the exact sign-flip test.

    >>> round(two_sided([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if max(differences) == min(differences):
        return sign_flip(differences)
    p = one_sided_t(np.asarray(differences))
    return 2 * min(p, 1 - p)


def scores(records: Mapping[int, Mapping[str, Any]], use: str = "last") -> dict[int, dict[str, float]]:
    """Test metrics of the finished seeds: of the last weights, or of those ``stopped`` early."""
    return {seed: r["test"][use] for seed, r in sorted(records.items()) if r["status"] == "finished"}


def judge(records: Records) -> list[Row]:
    """A row for each method with a finished seed, the best first, with verdicts where three seeds are paired."""
    tables = {name: scores(found) for name, found in records.items()}
    tables[STOPPED] = scores(records.get(PLAIN, {}), "stopped")
    sources = {name: records[PLAIN if name == STOPPED else name] for name, found in tables.items() if found}
    reference = {seed: found["accuracy"] for seed, found in tables.get(PLAIN, {}).items()}
    differences: dict[str, list[float]] = {}
    for name in sources:
        ours = {seed: found["accuracy"] for seed, found in tables[name].items()}
        both = ours.keys() & reference.keys()
        if name != PLAIN and both:
            differences[name] = paired({s: ours[s] for s in both}, {s: reference[s] for s in both})
    tested = {name: two_sided(d) for name, d in differences.items() if len(d) >= FEWEST}
    adjusted = dict[str, float]()
    for family in (True, False):
        adjusted |= holm({name: p for name, p in tested.items() if is_control(name) == family})
    rows = []
    for name, found in sources.items():
        judged: dict[str, Any] = {}
        if name in differences:
            judged["difference"], judged["half"] = interval(differences[name])
        if name in tested:
            said = verdict(differences[name], adjusted[name], True, LEVEL)
            judged |= {"p": tested[name], "holm": adjusted[name], "verdict": said}
        rows.append(_row(name, tables[name], scores(found, "stopped"), found, judged))
    return sorted(rows, key=lambda row: (row.difference is None, -(row.difference or 0.0), row.name))


def _row(
    name: str,
    table: dict[int, dict[str, float]],
    stopped: dict[int, dict[str, float]],
    records: Mapping[int, Mapping[str, Any]],
    judged: dict[str, Any],
) -> Row:
    done = [records[seed] for seed in table]
    passes = [r["passes"]["total"] for r in done if r["passes"]]

    def mean(metric: str, of: dict[int, dict[str, float]] = table) -> float:
        return statistics.fmean(found[metric] for found in of.values())

    return Row(
        name, is_control(name), tuple(table), mean("accuracy"), mean("accuracy", stopped), mean("nll"), mean("ece"),
        statistics.fmean(passes) if passes else None, done[0]["budget"], **judged,
    )  # fmt: skip
