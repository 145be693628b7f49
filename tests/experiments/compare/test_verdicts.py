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
from selfdistill.experiments.compare.verdicts import pooled, ratio, steps_to

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
