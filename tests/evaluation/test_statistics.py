"""Statistics against brute force, hand-computed cases, scikit-learn's scipy and simulation."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, wilcoxon

from selfdistill.errors import DataError
from selfdistill.evaluation import statistics


def test_pairs_come_in_the_order_of_seeds():
    assert statistics.paired({3: 1.0, 1: 0.5, 2: 0.25}, {1: 0.25, 2: 0.5, 3: 0.0}) == [0.25, -0.25, 1.0]


def test_the_interval_of_a_difference_of_accuracies_covers_it():
    """By simulation: with 12 rows it holds the true difference in about 95 of 100 draws; two rows show none."""
    draw = np.random.default_rng(0)
    share, held = np.array([0.3, 0.1, 0.6]), 0
    for better, worse, _ in draw.multinomial(12, share, 2000):
        low, high = statistics.accuracy_interval(int(better), int(worse), 12)
        held += low <= share[0] - share[1] <= high
    assert 0.93 < held / 2000 < 0.99
    assert statistics.accuracy_interval(2, 0, 2)[0] < 0
    assert statistics.accuracy_interval(0, 0, 9) == pytest.approx((-0.251, 0.251), abs=1e-3)
    with pytest.raises(DataError, match="give counts of rows"):
        statistics.accuracy_interval(2, 1, 2)


def test_unequal_seeds_are_named():
    with pytest.raises(DataError, match=r"1 \(ours only\), 4 \(theirs only\)"):
        statistics.paired({1: 0.0, 2: 0.0}, {2: 0.0, 4: 0.0})
    with pytest.raises(DataError, match="seed 2 is nan"):
        statistics.paired({1: 0.0, 2: math.nan}, {1: 0.0, 2: 0.0})
    with pytest.raises(DataError, match="n at least 1"):
        statistics.paired({}, {})


def test_interval_by_hand():
    """Of 1, 2, 3 the standard error is 1 / sqrt(3); the tables have t = 4.303 and 9.925 for two degrees."""
    mean, half = statistics.interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.303 / math.sqrt(3), rel=2e-4)
    assert statistics.interval([1.0, 2.0, 3.0], 0.99)[1] == pytest.approx(9.925 / math.sqrt(3), rel=2e-4)
    assert statistics.interval([0.5]) == (0.5, math.inf)
    assert statistics.interval([0.5, 0.5]) == (0.5, 0.0)


def flipped(differences: list[Fraction]) -> float:
    """The definition, in exact fractions."""
    wanted: Fraction = abs(sum(differences, Fraction(0)))
    vectors = product((1, -1), repeat=len(differences))
    sums = [sum((s * d for s, d in zip(signs, differences, strict=True)), Fraction(0)) for signs in vectors]
    return sum(abs(total) >= wanted for total in sums) / len(sums)


@given(st.lists(st.integers(-12, 12), min_size=1, max_size=9))
def test_sign_flip_is_the_enumeration_also_with_ties_that_rounding_breaks(hundredths):
    """Hundredths have no exact float, so that 0.1 + 0.2 and 0.3 differ: such ties must still count."""
    exact = [Fraction(h, 100) for h in hundredths]
    assert statistics.sign_flip([h / 100 for h in hundredths]) == flipped(exact)
    assert statistics.sign_flip([1e-300 * h / 100 for h in hundredths]) == flipped(exact)


def test_sign_flip_of_twenty_and_more():
    assert statistics.sign_flip([0.1 * i for i in range(1, 21)]) == 2 / 2**20
    assert statistics.sign_flip([1.0] * 30) == 1 / 100_001
    assert statistics.sign_flip([0.0] * 30) == 1.0
    d = list(np.arange(1.0, 26.0) * np.where(np.arange(25) % 3 == 0, -1, 1))
    # on the numbers 1 to n, the flips of signs are Wilcoxon's signed rank test
    assert statistics.sign_flip(d) == pytest.approx(wilcoxon(d, method="exact").pvalue, abs=0.005)
    assert statistics.sign_flip(d) == statistics.sign_flip(d)


@pytest.mark.parametrize("seeds", [1, 3, 5, 10])
def test_the_smallest_p_is_reached(seeds):
    assert statistics.smallest_p(seeds) == 2 / 2**seeds == statistics.sign_flip([0.1 + 0.01 * i for i in range(seeds)])


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, then 0.03 x 2 (no less than 0.06), then 0.9 x 1."""
    got = statistics.holm({"d": 0.9, "a": 0.01, "c": 0.03, "b": 0.02})
    assert got == pytest.approx({"d": 0.9, "a": 0.04, "c": 0.06, "b": 0.06}, abs=1e-15)
    assert list(got) == ["d", "a", "c", "b"]
    assert statistics.holm({"a": 0.04, "b": 0.03}) == {"a": 0.06, "b": 0.06}  # monotone: 0.04 x 1 is less than 0.03 x 2
    assert statistics.holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    assert statistics.holm({}) == {}
    with pytest.raises(DataError, match="p-value of a is nan"):
        statistics.holm({"a": math.nan})


@pytest.mark.parametrize(
    ("differences", "p", "higher", "said"),
    [
        ([0.1, 0.2], 0.05, True, "BEATS"),
        ([0.1, 0.2], 0.05, False, "LOSES"),
        ([-0.1, -0.2], 0.01, True, "LOSES"),
        ([-0.1, -0.2], 0.01, False, "BEATS"),
        ([0.1, 0.2], 0.0501, True, "TIES"),
        ([0.0, 0.0], 0.0, True, "TIES"),
    ],
)
def test_verdicts(differences, p, higher, said):
    assert statistics.verdict(differences, p, higher) == said
    assert statistics.verdict(differences, p, higher, level=1e-9) == ("TIES" if p else said)


@pytest.mark.parametrize(("seeds", "methods"), [(3, 1), (5, 1), (6, 1), (5, 10), (8, 10), (9, 10), (9, 13)])
def test_reachable_says_what_the_best_possible_runs_would_get(seeds, methods):
    """Every method wins on every seed: is then any verdict but TIES?"""
    wins = [1.0 + i for i in range(seeds)]
    adjusted = statistics.holm({str(m): statistics.sign_flip(wins) for m in range(methods)})
    said = {statistics.verdict(wins, p, True) for p in adjusted.values()}
    sentence = statistics.reachable(seeds, methods)
    assert ("seeds can pass" in sentence) == (said == {"BEATS"})
    assert ("cannot pass" in sentence) == (said == {"TIES"})


def test_reachable_says_how_many_seeds_would_do():
    assert statistics.reachable(5, 10).endswith("9 seeds would do.")
    assert statistics.reachable(5, 1).endswith("1 method (smallest p 0.0625 x 1 > 0.05); 6 seeds would do.")
    assert "compare fewer methods" in statistics.reachable(5, 10, level=1e-7)
    assert "a sampled test" in statistics.reachable(30, 10)
    with pytest.raises(DataError, match="2 seeds are too few"):
        statistics.reachable(2, 1)


def test_mcnemar_is_the_enumeration_of_coins():
    for better, worse in product(range(6), repeat=2):
        throws = [sum(coins) for coins in product((0, 1), repeat=better + worse)]
        assert statistics.mcnemar(better, worse) == sum(x >= better for x in throws) / len(throws)
    assert statistics.mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("better", "worse"), [(1001, 1000), (1100, 901), (900, 1101), (2001, 0)])
def test_mcnemar_of_many_rows_is_the_sum_of_whole_numbers(better, worse):
    n, total = better + worse, 0
    ways = 1  # Pascal: ways to throw k heads
    for k in range(n + 1):
        total += ways if k >= better else 0
        ways = ways * (n - k) // (k + 1)
    assert statistics.mcnemar(better, worse) == pytest.approx(float(Fraction(total, 2**n)), rel=1e-9)


def test_levels_spent_do_not_exceed_the_level():
    assert math.fsum(statistics.spend(0.05, k, 10) for k in range(1, 11)) == pytest.approx(0.05, abs=1e-15)
    without_end = math.fsum(statistics.spend(0.05, k, None) for k in range(1, 20_001))
    assert 0.05 - 2e-6 < without_end < 0.05
    for number, planned in ((11, 10), (0, 10), (0, None), (1, 0)):
        with pytest.raises(DataError):
            statistics.spend(0.05, number, planned)


@pytest.mark.parametrize("planned", [10, None])
def test_ten_audits_of_an_equal_model_rarely_accept_it(planned):
    """Family: does any of ten audits accept? 400 rows, of which each differs with probability 0.3, either way."""
    level, families = 0.2, 2000
    source = np.random.default_rng(3)
    levels = [statistics.spend(level, k, planned) for k in range(1, 11)]
    differ = source.binomial(400, 0.3, size=(families, 10))
    better = source.binomial(differ, 0.5)
    accepted = sum(
        any(statistics.mcnemar(int(b), int(n - b)) <= spent for b, n, spent in zip(bs, ns, levels, strict=True))
        for bs, ns in zip(better, differ, strict=True)
    )
    assert 0.2 * level < accepted / families <= level + 3 * math.sqrt(level * (1 - level) / families)


@pytest.mark.parametrize(("rows", "level"), [(100, 0.05), (7, 0.03125), (4, 0.05), (5, 0.05), (0, 0.5), (50, 1e-12)])
def test_smallest_visible_is_the_first_that_mcnemar_rejects(rows, level):
    seen = [k / rows for k in range(1, rows + 1) if statistics.mcnemar(k, 0) <= level]
    assert statistics.smallest_visible(rows, level) == (seen[0] if seen else math.inf)


def test_one_sided_t_is_that_of_scipy():
    d = np.random.default_rng(0).normal(0.1, 1.0, size=200)
    for sample in (d, -d, d.astype(np.float32)):
        expected = ttest_1samp(sample.astype(np.float64), 0.0, alternative="greater").pvalue
        assert statistics.one_sided_t(sample) == pytest.approx(expected, rel=1e-9)
    assert [statistics.one_sided_t(np.full(5, x)) for x in (0.0, 0.1, -0.1)] == [1.0, 0.0, 1.0]
    with pytest.raises(DataError, match="at least two rows"):
        statistics.one_sided_t(np.ones(1))


def test_what_has_no_answer_is_refused_in_one_line():
    for call in (
        lambda: statistics.sign_flip([]),
        lambda: statistics.sign_flip([0.1, math.nan]),
        lambda: statistics.interval([math.inf]),
        lambda: statistics.interval([1.0, 2.0], level=1.0),
        lambda: statistics.one_sided_t(np.ones((2, 2))),
        lambda: statistics.smallest_p(0),
        lambda: statistics.mcnemar(-1, 0),
        lambda: statistics.spend(0.0, 1, None),
        lambda: statistics.smallest_visible(-1, 0.05),
        lambda: statistics.verdict([0.1], 1.5, True),
        lambda: statistics.reachable(5, 0),
    ):
        with pytest.raises(DataError) as caught:
            call()
        assert "\n" not in str(caught.value)
        assert ";" in str(caught.value) or "give" in str(caught.value)


def test_one_rule_gives_the_words_to_a_family() -> None:
    """Corrected over those with three pairs or more; the others have a difference alone."""
    family = {
        "up": [1.0, 1.1, 0.9, 1.0],
        "down": [-1.0, -1.1, -0.9, -1.0],
        "same": [0.1, -0.1, 0.2, -0.2],
        "few": [5.0],
    }
    found = statistics.compare_paired(family, statistics.two_sided_t)
    assert {name: one.verdict for name, one in found.items()} == {
        "up": "BEATS", "down": "LOSES", "same": "TIES", "few": None,
    }  # fmt: skip
    assert statistics.compare_paired(family, statistics.two_sided_t, higher_is_better=False)["up"].verdict == "LOSES"
    assert (
        statistics.compare_paired(family, statistics.sign_flip)["up"].verdict == "TIES"
    )  # four pairs have no p below 1/8
    assert found["up"].holm == pytest.approx(3 * (found["up"].p or 0.0))
    assert found["few"] == statistics.PairedComparison(5.0, math.inf)


def test_the_interquartile_mean_is_the_mean_trimmed_by_a_quarter() -> None:
    from scipy.stats import trim_mean

    values = np.random.default_rng(0).normal(size=(5, 9))
    assert statistics.interquartile_mean(values) == pytest.approx(trim_mean(values, 0.25, axis=None))


def test_the_bootstrap_of_a_mean_is_that_of_the_normal_distribution() -> None:
    strata = [np.random.default_rng(n).normal(n, 1.0, 200).tolist() for n in range(3)]
    low, high = statistics.stratified_bootstrap(strata, lambda values: float(values.mean()), draws=4000)
    error = math.sqrt(sum(float(np.var(values)) / 200 for values in strata)) / 3  # strata do not mix
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.05)
    assert (high + low) / 2 == pytest.approx(float(np.mean(strata)), abs=error / 5)


def test_the_probability_of_improvement_is_mann_and_whitneys_statistic() -> None:
    from scipy.stats import mannwhitneyu

    source = np.random.default_rng(0)
    ours, theirs = source.integers(0, 9, 30).tolist(), source.integers(0, 8, 20).tolist()
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(
        mannwhitneyu(ours, theirs).statistic / 600
    )


def test_with_the_rows_that_are_needed_a_change_is_shown_four_times_in_five() -> None:
    source, rows = np.random.default_rng(0), statistics.rows_needed(3.0, 1.0)
    shown = [statistics.one_sided_t(source.normal(1.0, 3.0, rows)) <= 0.05 for _ in range(600)]
    assert 0.74 < np.mean(shown) < 0.86
