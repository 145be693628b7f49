"""Verdicts from made records, by hand and by enumeration."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import Any

import pytest
from scipy import stats

from selfdistill.errors import DataError
from selfdistill.experiments.compare import judge
from selfdistill.experiments.compare.verdicts import label_curve, median_depth, pooled, ratio, steps_to
from selfdistill.report.comparison_page import render_label_curve

PLAIN = [0.80, 0.82, 0.81, 0.79, 0.80, 0.83, 0.81, 0.80]
GOOD = [x + d for x, d in zip(PLAIN, [0.01, 0.02, 0.03, 0.01, 0.02, 0.03, 0.02, 0.01], strict=True)]
SAME = [x + d for x, d in zip(PLAIN, [0.01, -0.01, 0.02, -0.02, 0.01, -0.01, 0.0, 0.0], strict=True)]


def record(accuracy: float, audit: float, **more: Any) -> dict[str, Any]:
    return {
        "metrics": {"accuracy": accuracy, "nll": 1 - accuracy}, "audit": {"accuracy": audit}, "decisions": None,
        "passes": {"forward": 1, "backward": 1, "teacher": 0, "evaluation": 0, "total": 3.0},
        "with_teacher_training": None, "steps": 10, "generations": 1,
        "curve": [{"step": s, "score": audit - (10 - s) / 50, "generation": 0} for s in (5, 10)],
        **more,
    }  # fmt: skip


def cells() -> dict[str, dict[int, dict[str, Any]]]:
    """The best control by audit is `early stopping`; by test it would be `label smoothing`."""
    made = {"good()": (GOOD, 0.8), "same()": (SAME, 0.7), "plain": (PLAIN, 0.6), "early stopping": (PLAIN, 0.9)}
    found = {name: {s: record(a, audit) for s, a in enumerate(values)} for name, (values, audit) in made.items()}
    found["label smoothing"] = {s: record(a + 0.05, 0.5) for s, a in enumerate(PLAIN)}
    found["independent, averaged"] = {s: record(a + 0.04, 0.5) for s, a in enumerate(PLAIN)}
    for one in found["good()"].values():
        one["peers"] = True
    return found


def row(result: dict[str, Any], name: str) -> dict[str, Any]:
    return next(r for r in result["rows"] if r["name"] == name)


def test_differences_p_values_and_verdicts_by_hand() -> None:
    result = judge(cells(), ["good()", "same()"])
    differences = [a - b for a, b in zip(GOOD, PLAIN, strict=True)]
    found = row(result, "good()")["against"]["plain"]["accuracy"]
    low, high = stats.t.interval(0.95, 7, statistics.fmean(differences), stats.sem(differences))
    assert found["difference"] == pytest.approx(statistics.fmean(differences))
    assert found["interval"] == pytest.approx([low, high])
    extreme = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= abs(sum(differences)) - 1e-12
        for signs in itertools.product([1, -1], repeat=8)
    ]
    assert found["p"] == statistics.fmean(extreme) == 2 / 256
    assert found["holm"] == 4 / 256  # the smaller of two p-values, times two
    assert found["verdict"] == "BEATS"
    assert row(result, "good()")["against"]["plain"]["nll"]["verdict"] == "BEATS"  # there less is better
    assert row(result, "same()")["against"]["plain"]["accuracy"]["verdict"] == "TIES"
    said = result["verdict"][0]
    assert said.startswith("good(): in accuracy, BEATS plain, +1.88 points")
    assert "a tie, whatever" not in said


def test_the_sentence_says_which_way_and_whether_so_few_seeds_could_say_more() -> None:
    made = {name: {s: found[s] for s in range(3)} for name, found in cells().items()}
    for said in judge(made, ["good()", "same()"])["verdict"]:
        assert "TIES with plain, " in said
        assert said.endswith("With so few seeds every verdict is a tie, whatever the difference.")
    controls = {name: found for name, found in cells().items() if "(" not in name}
    worse = {**controls, "worse()": {s: record(a - 0.05, 0.5) for s, a in enumerate(PLAIN)}}
    assert judge(worse, ["worse()"])["verdict"][0].startswith("worse(): in accuracy, LOSES to plain, -5.00 points [")


def test_products_that_no_generation_taught_are_told() -> None:
    made = cells()
    for seed, one in made["good()"].items():
        one |= {"decisions": [True, seed > 2], "final_generation": int(seed > 2)}
    result = judge(made, ["good()", "same()"])
    assert "in 3 of 8 seeds the final model is generation 0, which had no teacher" in result["verdict"][0]
    assert "generation 0" not in result["verdict"][1]


def test_the_best_control_is_chosen_on_the_audit_split() -> None:
    result = judge(cells(), ["good()", "same()"])
    assert result["best_control"]["name"] == "early stopping"
    assert row(result, "good()")["against"]["best_control"]["accuracy"]["verdict"] == "BEATS"
    assert row(result, "plain")["against"] == {"plain": None, "best_control": None}
    assert row(result, "label smoothing")["against"]["best_control"] is None
    assert row(result, "label smoothing")["against"]["plain"]["accuracy"]["verdict"] == "BEATS"


def test_rows_of_an_ablation_are_no_controls_and_have_a_correction_of_their_own() -> None:
    made = cells()
    arms = {"good(), own predictions": "good()", "good(), peers and own predictions": "good()"}
    for name in arms:
        made[name] = {s: record(a - 0.01, 0.99) for s, a in enumerate(GOOD)}
    result, usual = judge(made, ["good()", "same()"], ablations=arms), judge(cells(), ["good()", "same()"])
    assert result["best_control"] == usual["best_control"]
    assert result["verdict"] == usual["verdict"]
    assert [r for r in result["rows"] if r["name"] not in arms] == usual["rows"]
    (one,) = result["ablation"]
    found = one["rows"][0]["against"]["accuracy"]
    assert found["difference"] == pytest.approx(-0.01)
    assert found["p"] == 2 / 256
    assert found["holm"] == 4 / 256
    assert "own predictions -1.00 points" in one["verdict"]


def test_the_share_of_the_ensembles_gain_is_told_where_peers_teach() -> None:
    result = judge(cells(), ["good()", "same()"])
    assert row(result, "good()")["ensemble_gain_retained"]["mean"] == pytest.approx(0.01875 / 0.04)
    assert row(result, "same()")["ensemble_gain_retained"] is None


def test_a_ratio_of_means_has_its_interval_by_the_delta_method() -> None:
    ours, whole = [1.0, 2.0, 4.0], [2.0, 5.0, 6.0]
    share = 7 / 13
    residuals = [(a - share * b) / (13 / 3) for a, b in zip(ours, whole, strict=True)]
    half = stats.t.ppf(0.975, 2) * statistics.stdev(residuals) / math.sqrt(3)
    found = ratio(ours, whole)
    assert found["mean"] == pytest.approx(share)
    assert found["interval"] == pytest.approx([share - half, share + half])


def test_steps_to_plains_score() -> None:
    result = judge(cells(), ["good()", "same()"])
    assert row(result, "good()")["steps_to_plain"] == 5  # .7 at step 5, plain ends at .6
    assert row(result, "plain")["steps_to_plain"] == 10
    assert row(result, "label smoothing")["steps_to_plain"] is None
    assert math.isinf(steps_to([{"step": 1, "score": 0.1}], 0.2))


def test_bins_of_several_seeds_weigh_by_their_rows() -> None:
    one = [{"confidence": 0.55, "accuracy": 0.5, "share": 0.25}, {"confidence": 0.95, "accuracy": 1.0, "share": 0.75}]
    two = [{"confidence": 0.58, "accuracy": 0.8, "share": 0.75}, {"confidence": 1.0, "accuracy": 0.0, "share": 0.25}]
    low, high = pooled([one, two])
    assert low == pytest.approx({"confidence": 0.5725, "accuracy": 0.725, "share": 0.5})
    assert high == pytest.approx({"confidence": 0.9625, "accuracy": 0.75, "share": 0.5})


def test_unequal_or_few_seeds_are_refused() -> None:
    made = cells()
    made["good()"].pop(3)
    with pytest.raises(DataError, match=r"plain has|good\(\) has") as caught:
        judge(made, ["good()", "same()"])
    assert "\n" not in str(caught.value)
    few = {name: {s: found[s] for s in (0, 1)} for name, found in cells().items()}
    with pytest.raises(DataError, match="2 seeds allow no verdict"):
        judge(few, ["good()", "same()"])


def test_steps_to_plains_score_have_an_interval() -> None:
    """Order statistics of made curves: two of eight seeds never reach it, and the upper end says so."""
    made = cells()
    for seed, one in made["good()"].items():
        one["curve"] = [{"step": s, "score": float(seed > 1 and s >= 4 + seed), "generation": 0} for s in range(1, 21)]
    result = judge(made, ["good()", "same()"])
    found = row(result, "good()")["convergence"]
    assert found["reached"] == 6
    assert found["steps"] == sorted([6, 7, 8, 9, 10, 11, math.inf, math.inf])[4] == 10
    assert found["interval"] == [6, None]
    assert found["coverage"] == pytest.approx(1 - 2 / 2**8)
    assert found["share"] == 0.5
    words = "good(): it reaches plain's final validation score after 10 steps [6, never], 50 % of its own; plain itself"
    assert any(words in line for line in result["benefits"])
    for one in made["good()"].values():
        one["curve"] = []
    made["plain"][0]["curve"] = []
    assert row(judge(made, ["good()"]), "good()")["convergence"] is None


def test_the_interval_of_a_median_covers_it() -> None:
    for count in range(3, 40):
        depth, coverage = median_depth(count)
        assert coverage == pytest.approx(
            stats.binom.cdf(count - depth, count, 0.5) - stats.binom.cdf(depth - 1, count, 0.5)
        )
        assert coverage >= 0.95 or depth == 1


def test_the_gap_is_told_beside_that_of_plain() -> None:
    made = cells()
    for name, records in made.items():
        for seed, one in records.items():
            one["metrics"]["gap"] = 0.2 - 0.01 * seed * (name == "good()") - 0.05 * (name == "good()")
    result = judge(made, ["good()", "same()"])
    assert row(result, "good()")["against"]["plain"]["gap"]["verdict"] == "BEATS"  # a smaller gap is better
    assert any("training minus test accuracy is 11.5 points, of plain 20.0" in line for line in result["benefits"])
    assert not any("good(): in gap" in line for line in result["verdict"])


def by_labels(scores: dict[str, list[float]]) -> dict[int, dict[str, Any]]:
    """Comparisons at 10, 20 and 40 labels: each row's score at each, the same for eight seeds up to a shift."""
    parts = {}
    for place, count in enumerate((10, 20, 40)):
        made = {name: {s: record(values[place] + 0.001 * s, 0.5) for s in range(8)} for name, values in scores.items()}
        parts[count] = {**judge(made, [name for name in scores if "(" in name]), "seeds": list(range(8))}
    return parts


def test_labels_needed_are_interpolated_and_bounded_by_the_counts() -> None:
    """Half-way in score between 10 and 20 labels is 10 sqrt 2 of them; what is never or always reached is said so."""
    scores = {
        "half()": [0.5, 0.7, 0.8],
        "never()": [0.1, 0.2, 0.3],
        "first()": [0.9, 0.9, 0.9],
        "plain": [0.2, 0.4, 0.6],
    }
    found = label_curve(by_labels(scores))
    rows = {one["name"]: one for one in found["rows"]}
    assert found["goal"] == pytest.approx(0.6035)
    assert rows["half()"]["labels"] == pytest.approx([10 * 2**0.5] * 3)
    assert rows["half()"]["needed"] == ["14", "14"]
    assert rows["never()"]["labels"] == [None] * 3
    assert rows["never()"]["needed"][0] == "more than 40"
    assert rows["first()"]["needed"][0] == "at most 10"
    assert rows["plain"]["needed"][0] == "40"
    assert found["verdict"][0].startswith(
        "half(): for the accuracy of plain with 40 labels (60.3 %) it needs 14 labels [14"
    )
    assert len(found["verdict"]) == 3
    shown = render_label_curve(
        {**found, "methods": ["half()"], "data": {"name": "<digits>"}, "command": ["selfdistill"]}
    )
    for words in ("more than 40", "&lt;digits&gt;", "<svg", "labels-20/report.html"):
        assert words in shown


def test_seeds_that_a_budget_left_out_are_left_out_of_the_curve() -> None:
    parts = by_labels({"half()": [0.5, 0.7, 0.8], "plain": [0.2, 0.4, 0.6]})
    for one in parts[20]["rows"]:
        for spread in one["metrics"].values():
            spread["values"] = spread["values"][:5]
    parts[20]["seeds"] = list(range(5))
    assert label_curve(parts)["seeds"] == [0, 1, 2, 3, 4]
    parts[20]["seeds"] = [0, 1]
    with pytest.raises(DataError, match="2 seeds in common"):
        label_curve(parts)
