"""Verdicts against SciPy's own paired t-test and Holm's rule written once more."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
from scipy.stats import t, ttest_rel

from selfdistill.evaluation.statistics import two_sided_t
from selfdistill.experiments.benchmark.page import best_control, judge
from selfdistill.experiments.benchmark.settings import HALF, PLAIN, STOPPED
from tests.experiments.benchmark.common import NOISE, record

GAINS = {"elr()": 0.05, "ps_kd()": -0.05, "ols()": 0.0, "dlb()": 0.008, "mutual()": 0.012}


def made(seeds: int = 8) -> dict[str, dict[int, dict[str, Any]]]:
    """Accuracies with a seed's own luck, which pairs take away, and each training's own."""
    source = random.Random(3)
    luck = [source.gauss(0.8, 0.05) for _ in range(seeds)]
    gains = {PLAIN: 0.0, HALF: -0.01, **GAINS}
    return {
        name: {s: record(NOISE, name, s, luck[s] + gain + source.gauss(0, 0.008)) for s in range(seeds)}
        for name, gain in gains.items()
    }


def accuracies(records: dict[int, dict[str, Any]]) -> list[float]:
    return [records[s]["test"]["last"]["accuracy"] for s in sorted(records)]


@pytest.mark.parametrize("against", ["plain", "best"])
def test_verdicts_are_those_of_a_plain_computation(against: str) -> None:
    """Against the plain training, and against the best control: the same training stopped early, a point better."""
    records = made()
    rows = {row.name: row for row in judge(records)}
    reference = [a + (0.01 if against == "best" else 0.0) for a in accuracies(records[PLAIN])]
    assert best_control(records) == STOPPED
    p = {name: float(ttest_rel(accuracies(records[name]), reference).pvalue) for name in GAINS}
    rejected: list[str] = []
    for place, name in enumerate(sorted(p, key=p.__getitem__)):
        if p[name] > 0.05 / (len(p) - place):
            break
        rejected.append(name)
    assert {"elr()", "ps_kd()"} <= set(rejected) < set(GAINS), "the example has all three verdicts"
    for name in GAINS:
        differences = [a - b for a, b in zip(accuracies(records[name]), reference, strict=True)]
        mean = statistics.fmean(differences)
        half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
        found = getattr(rows[name], against)
        assert found.p == pytest.approx(p[name], rel=1e-9)
        assert found.difference == pytest.approx(mean)
        assert found.half == pytest.approx(half)
        assert found.verdict == ("TIES" if name not in rejected else "BEATS" if mean > 0 else "LOSES")
        assert rows[name].accuracy == pytest.approx(statistics.fmean(accuracies(records[name])))


def test_stopping_early_is_a_control_row_of_the_same_trainings() -> None:
    rows = {row.name: row for row in judge(made())}
    stopped = rows[STOPPED].plain
    assert stopped is not None
    assert stopped.difference == pytest.approx(0.01)
    assert rows[STOPPED].control
    assert rows[PLAIN].plain is None
    assert rows[HALF].best is None
    assert rows["elr()"].stopped == pytest.approx(rows["elr()"].accuracy + 0.01)


def test_the_best_control_is_chosen_on_the_audit_split_among_those_with_all_seeds() -> None:
    records = made()
    for seed in range(8):  # on the test split it stays the worst
        records[HALF][seed]["audit"]["last"] = {"accuracy": 0.99}
    assert best_control(records) == HALF
    del records[HALF][3]
    assert best_control(records) == STOPPED
    assert best_control({"elr()": records["elr()"]}) is None


def test_only_seeds_of_both_sides_are_paired_and_failures_are_left_out() -> None:
    records = made()
    del records[PLAIN][0]
    records["elr()"][7] = {**records["elr()"][7], "status": "failed", "error": "x"}
    (row,) = [row for row in judge(records) if row.name == "elr()"]
    ours, theirs = (statistics.fmean(accuracies({s: records[m][s] for s in range(1, 7)})) for m in ("elr()", PLAIN))
    assert row.plain is not None
    assert row.plain.difference == pytest.approx(ours - theirs)
    assert row.seeds == tuple(range(7))


def test_too_few_pairs_have_no_verdict_and_no_reference_no_difference() -> None:
    assert all(row.plain is None or row.plain.verdict is None for row in judge(made(2)))
    alone = judge({"elr()": made()["elr()"]})
    assert [(row.plain, row.best) for row in alone] == [(None, None)]


def test_equal_differences_are_judged_by_signs() -> None:
    """Student's test would be certain of three equal ones."""
    assert two_sided_t([0.25, 0.25, 0.25]) == 0.25
    assert two_sided_t([0.0, 0.0, 0.0]) == 1.0
