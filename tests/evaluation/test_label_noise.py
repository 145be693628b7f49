"""Label noise: rates, matrices and scores of labels whose noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from selfdistill.errors import DataError
from selfdistill.evaluation.label_noise import adjust, find_label_errors, raise_rate


def simulate(noise: float, rows: int = 1200, classes: int = 5, seed: int = 0):
    """True classes, given ones and calibrated probabilities, about 96 % of which are right."""
    random = np.random.default_rng(seed)
    q = random.dirichlet(np.full(classes, 0.04), rows)
    true = np.array([random.choice(classes, p=row) for row in q])
    given, wrong = true.copy(), random.permutation(rows)[: round(noise * rows)]
    given[wrong] = (true[wrong] + random.integers(1, classes, len(wrong))) % classes
    return true, given, q


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.26, 0.4])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_noise_rate_is_within_three_points(noise: float, power: float) -> None:
    """Also of a model that is too certain, or not certain enough."""
    true, given, q = simulate(noise)
    q = np.maximum(q, 1e-9) ** power
    result = find_label_errors(given, q / q.sum(axis=1, keepdims=True))
    assert abs(result.noise.rate - noise) < (0.03 if noise else 0.02)
    assert result.noise.low <= result.noise.rate <= result.noise.high
    if noise:
        assert (true != given)[result.order[: int(0.8 * noise * len(true))]].mean() > 0.95


def test_the_matrix_tells_which_classes_are_confused() -> None:
    true, given, q = simulate(0.0)
    flipped = (true == 1) & (np.arange(len(true)) % 3 == 0)
    given[flipped] = 4
    result = find_label_errors(given, q)
    assert result.matrix is not None
    assert result.matrix[1, 4] == pytest.approx(1 / 3, abs=0.06)
    assert result.matrix[4, 1] < 0.03
    assert result.matrix.sum(axis=1) == pytest.approx(np.ones(5))


def test_the_adjusted_accuracy_is_that_on_the_true_labels() -> None:
    true, given, q = simulate(0.3, rows=3000)
    result, test = find_label_errors(given, q), slice(0, 1500)
    score = adjust(q[test], given[test], result, q[test], result.scores[test])
    right = (q[test].argmax(axis=1) == true[test]).mean()
    assert score["raw"] < right - 0.2
    assert score["low"] <= right <= score["high"]
    assert score["adjusted"] == pytest.approx(right, abs=0.03)


def test_annotators_have_their_own_agreement() -> None:
    true, _, q = simulate(0.0)
    random = np.random.default_rng(1)
    votes = np.stack([np.where(random.random(len(true)) < rate, random.integers(0, 5, len(true)), true)
                      for rate in (0.0, 0.2, 0.5)], axis=1)  # fmt: skip
    votes[::7, 0] = -1
    result = find_label_errors(votes, q)
    assert [round(rate.rate, 1) for rate in result.agreement] == [1.0, 0.8, 0.6]
    assert (result.suggested == true).mean() > 0.98


def test_soft_labels_have_the_score_of_their_shares() -> None:
    _, given, q = simulate(0.2)
    soft = 0.8 * np.eye(5)[given] + 0.2 / 5
    result = find_label_errors(soft, q)
    hard = find_label_errors(given, q)
    assert np.corrcoef(result.scores, hard.scores)[0, 1] > 0.95


def test_values_that_lie_outside_are_likely_errors() -> None:
    random = np.random.default_rng(0)
    m = random.normal(size=500)
    y = m + 0.2 * random.normal(size=500)
    y[:50] = random.normal(size=50) * 5
    result = find_label_errors(y, m)
    assert abs(result.noise.rate - 0.1) < 0.04
    assert result.likely[50:].sum() <= 5
    assert (np.diff(np.abs(y - m - np.median(y - m))[result.order][:40]) <= 1e-9).all()
    clean = find_label_errors(m + 0.2 * random.normal(size=500), m)
    assert clean.noise.rate < 0.02
    assert find_label_errors(m, m).noise.rate == 0.0


def test_a_memory_sharpens_the_scores_and_has_no_part_in_the_noise() -> None:
    """A memory that is right more often, and too sure of the given labels."""
    true, given, q = simulate(0.26)
    random = np.random.default_rng(1)
    q = 0.5 * q + 0.5 * random.dirichlet(np.ones(5), len(q))
    memory = 0.55 * np.eye(5)[given] + 0.35 * np.eye(5)[true] + 0.02
    alone, both = find_label_errors(given, q), find_label_errors(given, q, memory=memory)
    assert both.noise == alone.noise
    assert np.array_equal(both.matrix, alone.matrix)  # type: ignore[arg-type]
    assert both.scores.mean() == pytest.approx(both.noise.rate, abs=1e-3)
    assert np.flatnonzero((given != true)[both.order])[-1] + 40 < np.flatnonzero((given != true)[alone.order])[-1]
    assert find_label_errors(given, memory).noise.rate < 0.1
    with pytest.raises(DataError, match="memory has the shape"):
        find_label_errors(given, q, memory=memory[:5])


def test_the_rate_of_rows_left_out_raises_that_of_models_that_learnt_the_labels() -> None:
    true, given, q = simulate(0.26)
    left_out = np.arange(len(q)) % 3 == 0
    learnt = np.where(left_out[:, None], q, 0.6 * np.eye(5)[given] + 0.3 * np.eye(5)[true] + 0.02)
    noise, held = find_label_errors(given, learnt), find_label_errors(given[left_out], q[left_out])
    raised = raise_rate(noise, held)
    assert noise.noise.rate < 0.2
    assert raised.noise == held.noise
    assert raised.noise.rate == pytest.approx(0.26, abs=0.03)
    assert raised.scores.mean() == pytest.approx(held.noise.rate, abs=0.01)
    assert (np.diff(raised.scores[np.argsort(noise.scores)]) >= -1e-12).all()
    assert raised.matrix is not None
    assert raised.matrix.sum(axis=1) == pytest.approx(np.ones(5))
    assert 1 - np.trace(raised.matrix) / 5 == pytest.approx(held.noise.rate, abs=0.03)
    clean = find_label_errors(true[left_out], q[left_out])  # a trusted test split
    assert raise_rate(noise, clean) is noise


@pytest.mark.parametrize(
    ("labels", "probabilities", "message"),
    [
        ([0, 1], [[0.5, 0.5]], "the same rows"),
        ([0], [[0.5, 0.6]], "sum to 1"),
        ([2], [[0.5, 0.5]], "none of the classes"),
        ([-1], [[0.5, 0.5]], "none of the classes"),
        ([0.5], [[0.5, 0.5]], "none of the classes"),
        ([[-1, -1]], [[0.5, 0.5]], "any annotator"),
        ([[0.2, 0.2]], [[0.5, 0.5]], "sum to 1"),
        ([np.nan], [1.0], "no finite number"),
        (["a"], [[1.0]], "no finite number"),
        ([], [], "shape"),
    ],
)
def test_bad_input_is_one_line(labels: list[object], probabilities: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        find_label_errors(labels, probabilities)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
