"""Tests of differences, paired over seeds (a claim) or over rows (an audit).

Over seeds: ``paired``, ``interval``, ``sign_flip``, ``holm``, ``verdict``; ``reachable`` asks beforehand whether
there are seeds enough. Over rows: ``mcnemar``, ``accuracy_interval`` and ``one_sided_t``, with ``spend`` for many
audits of the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

Verdict = Literal["BEATS", "TIES", "LOSES"]

EXACT = 20  # most pairs whose sign vectors are enumerated


DRAWS = 100_000  # sign vectors drawn where there are more pairs


TIE = 1e-9  # sums this close, relative to the sum of sizes, are equal: rounding must not lose a tie


FEWEST = 3  # pairs, of seeds or of rows


TIED = "TIES: no difference is shown, which does not show that there is none."


SAME_ROWS = (
    "All seeds are tested on the same rows: intervals are over labels and chance in training, not over other rows."
)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    """Ours minus theirs for every seed, in the order of the seeds.

    >>> paired({2: 0.75, 1: 0.5}, {1: 0.25, 2: 0.75})
    [0.25, 0.0]

    Raises:
        DataError: a seed is on one side only, or a value is not finite, or there is no seed.
    """
    unpaired = sorted(ours.keys() ^ theirs.keys())
    if unpaired:
        sides = ", ".join(f"{seed} ({'ours' if seed in ours else 'theirs'} only)" for seed in unpaired)
        raise DataError(f"seeds without a partner in the paired comparison: {sides}; run both sides with equal seeds")
    differences = [float(ours[seed]) - float(theirs[seed]) for seed in sorted(ours)]
    for seed, difference in zip(sorted(ours), differences, strict=True):
        if not math.isfinite(difference):
            raise DataError(f"the difference of seed {seed} is {difference}; repair or leave out that seed's runs")
    _finite(differences, "paired")
    return differences


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Mean of differences (n,) and half-width of its interval (Student, The probable error of a mean, 1908).

    The half-width of a single pair is infinite.

    >>> mean, half = interval([1.0, 2.0, 3.0])
    >>> mean, round(half, 3)
    (2.0, 2.484)

    Raises:
        DataError: no difference, one that is not finite, or a level outside (0, 1).
    """
    from scipy.stats import t

    d = _finite(differences, "interval")  # scipy's ttest_1samp().confidence_interval() warns where all are equal
    _level(level, "interval")
    if len(d) < 2:
        return float(d.mean()), math.inf
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(d.mean()), float(t.ppf((1 + level) / 2, len(d) - 1)) * error


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of the mean of differences (n,) being 0: the share of sign vectors with a mean as far out.

    Exact for up to 20 differences (Fisher, The Design of Experiments, 1935; Pitman, 1937); for more, 100 000 sign
    vectors are drawn, always the same, and p = (b + 1) / (m + 1) (Phipson & Smyth, Permutation p-values should never
    be zero, 2010).

    >>> sign_flip([1.0, 2.0, 3.0])
    0.25

    Raises:
        DataError: no difference, or one that is not finite.
    """
    # scipy.stats.permutation_test takes 15 s for 20 differences, and this 10 ms; its ties are lost to rounding.
    d = _finite(differences, "sign_flip")
    largest = float(np.abs(d).max())
    if largest == 0:
        return 1.0
    d = d / largest
    threshold = abs(float(d.sum())) - TIE * float(np.abs(d).sum())
    if len(d) <= EXACT:
        sums = d[:1]  # the first sign is fixed: a vector and its opposite are equally far out
        for value in d[1:]:
            sums = np.concatenate([sums + value, sums - value])
        return float((np.abs(sums) >= threshold).mean())
    source = np.random.default_rng(0)
    count, chunk = 0, 10_000
    for _ in range(DRAWS // chunk):
        signs = 2.0 * source.integers(0, 2, size=(chunk, len(d))) - 1.0
        count += int((np.abs(signs @ d) >= threshold).sum())
    return (count + 1) / (DRAWS + 1)


def smallest_p(seeds: int) -> float:
    """The smallest p-value that the exact ``sign_flip`` of so many pairs can have: 2 of 2^n sign vectors.

    >>> smallest_p(5)
    0.0625

    Raises:
        DataError: no seed.
    """
    if seeds < 1:
        raise DataError(f"{seeds} seeds have no smallest p-value; give at least one seed")
    return math.ldexp(1.0, 1 - seeds)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values by name, in the order given (Holm, A simple sequentially rejective procedure, 1979).

    The i-th smallest of m (from 0) times m - i, never less than one before it, at most 1. What is at most
    ``level`` here holds with a family-wise error of ``level``.

    >>> holm({"a": 0.5, "b": 0.125})
    {'a': 0.5, 'b': 0.25}

    Raises:
        DataError: a p-value outside [0, 1].
    """
    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise DataError(f"the p-value of {name} is {p}, outside [0, 1]; repair the test it came from")
    adjusted, largest = {}, 0.0
    for i, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, p * (len(p_values) - i)))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def verdict(differences: Sequence[float], adjusted_p: float, higher_is_better: bool, level: float = 0.05) -> Verdict:
    """BEATS or LOSES, by the sign of the mean of differences (n,), where adjusted p is at most level; else TIES.

    >>> verdict([0.1, 0.2, 0.3], 0.01, higher_is_better=True)
    'BEATS'

    Raises:
        DataError: no difference, one that is not finite, a p-value outside [0, 1] or a level outside (0, 1).
    """
    mean = float(_finite(differences, "verdict").mean())
    _level(level, "verdict")
    if not 0 <= adjusted_p <= 1:
        raise DataError(f"the adjusted p-value of the verdict is {adjusted_p}, outside [0, 1]; take it from holm")
    if adjusted_p > level or mean == 0:
        return "TIES"
    return "BEATS" if (mean > 0) == higher_is_better else "LOSES"


def reachable(seeds: int, methods: int, level: float = 0.05) -> str:
    """A sentence on whether any verdict but TIES can be reached with so many seeds and methods.

    Holm's first step needs smallest p times methods <= level; where that fails, no later step is come to, though
    the last would need only smallest p <= level.

    >>> print(reachable(5, 10))
    5 seeds cannot pass an exact test corrected for 10 methods (smallest p 0.0625 x 10 > 0.05); 9 seeds would do.

    Raises:
        DataError: fewer than 3 seeds, no method, or a level outside (0, 1).
    """
    _level(level, "reachable")
    if seeds < FEWEST:
        raise DataError(f"{seeds} seeds are too few for a comparison; run at least {FEWEST}")
    if methods < 1:
        raise DataError(f"a comparison of {methods} methods has nothing to correct for; give at least one method")
    smallest = smallest_p(seeds) if seeds <= EXACT else 1 / (DRAWS + 1)
    article = "an exact" if seeds <= EXACT else "a sampled"
    family = f"{methods} method{'s' if methods > 1 else ''}"
    sum_ = f"smallest p {smallest:.3g} x {methods}"
    if smallest * methods <= level:
        return f"{seeds} seeds can pass {article} test corrected for {family} ({sum_} <= {level:g})."
    enough = [n for n in range(FEWEST, EXACT + 1) if smallest_p(n) * methods <= level]
    remedy = f"{enough[0]} seeds would do" if enough else "no number of seeds would do, so compare fewer methods"
    return f"{seeds} seeds cannot pass {article} test corrected for {family} ({sum_} > {level:g}); {remedy}."


def fewest_seeds(methods: int, level: float = 0.05) -> int:
    """The smallest number of seeds with which every verdict can be reached; 10 where none can.

    >>> fewest_seeds(1), fewest_seeds(2), fewest_seeds(10)
    (6, 7, 9)
    """
    enough = (n for n in range(FEWEST, EXACT + 1) if smallest_p(n) * methods <= level)
    return next(enough, 10)


def mcnemar(better: int, worse: int) -> float:
    """Exact one-sided p-value that the candidate is better: P(X >= better), X ~ Bin(better + worse, 1/2).

    ``better`` counts the rows that only the candidate gets right, ``worse`` those that only the incumbent does
    (McNemar, Note on the sampling error of the difference between correlated proportions, 1947).

    >>> mcnemar(5, 0)
    0.03125

    Raises:
        DataError: a negative count.
    """
    from scipy.stats import binomtest

    if better < 0 or worse < 0:
        raise DataError(f"McNemar's counts are {better} and {worse}; give counts of rows, at least 0")
    if better == 0:
        return 1.0
    return float(binomtest(better, better + worse, 0.5, alternative="greater").pvalue)


def accuracy_interval(better: int, worse: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """The interval of the difference of two accuracies on the same rows, which holds for few rows too.

    ``better`` and ``worse`` are as of `mcnemar`, ``rows`` counts all rows (Bonett and Price, Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data, 2012).

    >>> low, high = accuracy_interval(2, 0, 2)
    >>> round(low, 2), high
    (-0.35, 1.0)

    Raises:
        DataError: a negative count, more pairs than rows, or a level outside (0, 1).
    """
    _level(level, "accuracy_interval")
    if min(better, worse) < 0 or better + worse > rows or rows < 1:
        raise DataError(f"{better} rows better and {worse} worse of {rows}; give counts of rows, at least 0")
    b, c = (better + 1) / (rows + 2), (worse + 1) / (rows + 2)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt((b + c - (b - c) ** 2) / (rows + 2))
    return max(-1.0, b - c - half), min(1.0, b - c + half)


def share_interval(count: int, rows: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, such as an accuracy, from a count of rows.

    >>> [round(end, 3) for end in share_interval(9, 10)]
    [0.596, 0.982]

    Raises:
        DataError: a negative count, more than the rows, no rows, or a level outside (0, 1).
    """
    from scipy.stats import binomtest

    _level(level, "share_interval")
    if not 0 <= count <= rows or rows < 1:
        raise DataError(f"{count} of {rows} rows; give a count of rows, from 0 to all of them")
    low, high = binomtest(count, rows).proportion_ci(level, method="wilson")
    return float(low), float(high)


def spend(level: float, audit_number: int, planned: int | None) -> float:
    """The level of audit number k (from 1), such that all together err with probability at most ``level``.

    ``level`` / ``planned`` each; not planned, level 6 / (π k)², whose sum over all k is ``level``. A union bound, so
    that audits may depend on one another (alpha spending: Lan & DeMets, Discrete sequential boundaries, 1983).

    >>> spend(0.05, 3, planned=10)
    0.005

    Raises:
        DataError: a number below 1, an audit beyond those planned, or a level outside (0, 1).
    """
    _level(level, "spend")
    if audit_number < 1 or (planned is not None and planned < 1):
        raise DataError(f"audit {audit_number} of {planned} planned has no level; count audits from 1")
    if planned is None:
        return level * 6 / (math.pi * audit_number) ** 2
    if audit_number > planned:
        raise DataError(f"audit {audit_number} is beyond the {planned} planned, level spent; plan more on fresh rows")
    return level / planned


def smallest_visible(rows: int, level: float) -> float:
    """The smallest net change of accuracy at which ``mcnemar`` can reject on so many rows; inf where none can.

    k / rows, with the least k for which 2^-k <= level: k rows differ and all of them point one way.

    >>> smallest_visible(100, 0.05)
    0.05

    Raises:
        DataError: a level outside (0, 1) or a negative number of rows.
    """
    _level(level, "smallest_visible")
    if rows < 0:
        raise DataError(f"an audit of {rows} rows is impossible; give a count of rows, at least 0")
    k = 1
    while math.ldexp(1.0, -k) > level:
        k += 1
    return k / rows if k <= rows else math.inf


def one_sided_t(differences: NDArray[np.floating]) -> float:
    """p-value that the mean of (n,) differences of loss, incumbent minus candidate, is > 0 (Student, 1908).

    All zero is 1; all equal is 0 where positive and 1 where negative.

    >>> round(one_sided_t(np.array([1.0, 2.0, 3.0])), 4)
    0.0371

    Raises:
        DataError: fewer than two rows, or a difference that is not finite.
    """
    from scipy.stats import t

    d = _finite(differences, "one_sided_t")
    if len(d) < 2:
        raise DataError("one row has no spread, so one_sided_t cannot test its loss; audit at least two rows")
    if d.max() == d.min():
        return 0.0 if d[0] > 0 else 1.0
    error = float(d.std(ddof=1)) / math.sqrt(len(d))
    return float(t.sf(float(d.mean()) / error, len(d) - 1))


def _finite(differences: Sequence[float] | NDArray[np.floating], place: str) -> NDArray[np.float64]:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 1 or not len(d):
        raise DataError(f"the differences of {place} have shape {d.shape}; give (n,) with n at least 1")
    if not np.isfinite(d).all():
        at = int(np.flatnonzero(~np.isfinite(d))[0])
        raise DataError(f"difference {at} of {place} is {d[at]}; repair or leave out the run or row it came from")
    return d


def _level(level: float, place: str) -> None:
    if not 0 < level < 1:
        raise DataError(f"the level of {place} is {level}; give one between 0 and 1, as 0.05")


class PairedComparison(NamedTuple):
    """A mean difference of pairs and half of its 95 % interval; from three pairs on also p-values and a verdict."""

    difference: float
    half: float
    p: float | None = None
    holm: float | None = None
    verdict: Verdict | None = None


def two_sided_t(differences: Sequence[float]) -> float:
    """P-value of Student's paired t-test; where all differences are equal, that of the exact sign-flip test.

    >>> round(two_sided_t([1.0, 2.0, 3.0]), 4)
    0.0742
    """
    if max(differences) == min(differences):
        return sign_flip(differences)
    p = one_sided_t(np.asarray(differences))
    return 2 * min(p, 1 - p)


def compare_paired(
    differences: Mapping[str, Sequence[float]],
    p_value: Callable[[Sequence[float]], float],
    higher_is_better: bool = True,
    level: float = 0.05,
) -> dict[str, PairedComparison]:
    """The one rule for BEATS, TIES and LOSES: by the p-value of a test of the pairs, corrected over the family (Holm).

    Args:
        differences: ours minus the reference's, (n,) for each member of the family.
        p_value: the two-sided test; `sign_flip` needs no assumption, and `two_sided_t` fewer pairs.
        higher_is_better: of the metric.
        level: of the family.

    Returns:
        A comparison for each; without a verdict where there are fewer than three pairs.

    >>> compare_paired({"a": [0.1, 0.2, 0.3, 0.2], "b": [0.1]}, two_sided_t)["a"].verdict
    'BEATS'

    Raises:
        DataError: no difference, one that is not finite, or a level outside (0, 1).
    """
    p = {name: p_value(d) for name, d in differences.items() if len(d) >= FEWEST}
    adjusted = holm(p)

    def compare(name: str, d: Sequence[float]) -> PairedComparison:
        if name not in p:
            return PairedComparison(*interval(d))
        outcome = verdict(d, adjusted[name], higher_is_better, level)
        return PairedComparison(*interval(d), p[name], adjusted[name], outcome)

    return {name: compare(name, d) for name, d in differences.items()}


def rows_needed(spread: float, visible: float, level: float = 0.05, power: float = 0.8) -> int:
    """The rows with which a one-sided test of a mean shows a change with this power, by the normal distribution.

    Args:
        spread: standard deviation of a row, or of a pair's difference.
        visible: the change, above 0.
        level: of the test.
        power: the probability that the change is shown.

    >>> rows_needed(82.0, 29.0)
    50
    """
    from scipy.stats import norm

    quantiles = float(norm.ppf(1 - level) + norm.ppf(power))
    return max(2, math.ceil((quantiles * spread / visible) ** 2))


def interquartile_mean(values: Sequence[float] | NDArray[np.floating]) -> float:
    """The mean of the middle half of all values (Agarwal et al., NeurIPS 2021).

    >>> interquartile_mean([0.0, 1.0, 3.0, 100.0])
    2.0
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64), axis=None)
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def stratified_bootstrap(
    strata: Sequence[Sequence[float]],
    statistic: Callable[[NDArray[np.float64]], float] = interquartile_mean,
    level: float = 0.95,
    draws: int = 2000,
) -> tuple[float, float]:
    """The percentile interval of a statistic; each draw takes as many values of a stratum as it has, with replacement.

    Args:
        strata: the values of each stratum, such as the runs of a task.
        statistic: of all values together.
        level: of the interval.
        draws: how many; always the same ones.

    >>> stratified_bootstrap([[1.0, 1.0], [3.0, 3.0]], lambda values: float(values.mean()))
    (2.0, 2.0)
    """
    source, arrays = np.random.default_rng(0), [np.asarray(values, dtype=np.float64) for values in strata]
    drawn = [
        statistic(np.concatenate([values[source.integers(0, len(values), len(values))] for values in arrays]))
        for _ in range(draws)
    ]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The probability that a value of ours is above one of theirs, ties counting half (Mann & Whitney, 1947).

    >>> probability_of_improvement([2.0, 3.0], [1.0, 2.0])
    0.875
    """
    a, b = np.asarray(ours, dtype=np.float64)[:, None], np.asarray(theirs, dtype=np.float64)[None, :]
    return float(((a > b) + 0.5 * (a == b)).mean())


class Reach(NamedTuple):
    """The amount, such as of labels, at which a curve reaches a goal, and the ends of its interval; the smallest amount
    means it or less, and infinity more than the largest one."""

    amount: float
    low: float
    high: float


def amount_reached(
    amounts: Sequence[float], curves: Sequence[Sequence[float]], goals: Sequence[float], level: float = 0.95
) -> Reach:
    """Where the mean curve first reaches the mean goal, on straight lines over the logarithm of the amounts.

    The interval is that of percentiles of a bootstrap over seeds, each with its curve and its goal.

    Args:
        amounts: In ascending order.
        curves: A score at each amount, more is better, for each seed.
        goals: The score to reach, for each seed.
        level: Of the interval.

    >>> amount_reached([10, 40], [[0.0, 1.0], [0.0, 1.0]], [0.5, 0.5])
    Reach(amount=20.0, low=20.0, high=20.0)
    """
    ticks, scores = np.log(np.asarray(amounts, dtype=np.float64)), np.asarray(curves, dtype=np.float64)
    wanted, source = np.asarray(goals, dtype=np.float64), np.random.default_rng(0)

    def crossing(rows: NDArray[np.int64]) -> float:
        curve, goal = scores[rows].mean(0), wanted[rows].mean()
        first = int((curve >= goal - TIE).argmax())
        if curve[first] < goal - TIE:
            return math.inf
        if first == 0:
            return float(amounts[0])
        rise = (goal - curve[first - 1]) / (curve[first] - curve[first - 1])
        return round(math.exp(ticks[first - 1] + rise * (ticks[first] - ticks[first - 1])), 9)

    drawn = sorted(crossing(source.integers(0, len(scores), len(scores))) for _ in range(2000))
    tail = (1 - level) / 2  # order statistics: there is no mean of infinities
    low, high = drawn[int(tail * (len(drawn) - 1))], drawn[math.ceil((1 - tail) * (len(drawn) - 1))]
    return Reach(crossing(np.arange(len(scores))), low, high)
