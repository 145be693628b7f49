"""Metrics against hand-computed cases, straight Python loops and scikit-learn."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    r2_score,
    root_mean_squared_error,
)

from selfdistill.errors import DataError
from selfdistill.evaluation.metrics import aurc, classification, coverage, ece, regression

INF = math.inf


def drawn(rows: int, classes: int, seed: int = 0, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, classes, generator=source), torch.randint(classes, (rows,), generator=source)


def ece_by_hand(confidence: list[float], right: list[bool], bins: int) -> float:
    """The definition, one bin after the other, with exact fractions."""
    total = Fraction(0)
    for i in range(bins):
        inside = [j for j, c in enumerate(confidence) if Fraction(i, bins) < Fraction(c) <= Fraction(i + 1, bins)]
        if inside:
            accuracy = Fraction(sum(right[j] for j in inside), len(inside))
            mean = sum((Fraction(confidence[j]) for j in inside), Fraction(0)) / len(inside)
            total += Fraction(len(inside), len(confidence)) * abs(accuracy - mean)
    return float(total)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_classification_agrees_with_scikit_learn(classes):
    logits, y = drawn(500, classes, seed=classes)
    p = np.exp(logits.double().numpy())
    p /= p.sum(axis=1, keepdims=True)
    got = classification(logits, y)
    assert got["accuracy"] == accuracy_score(y, p.argmax(axis=1))
    assert got["nll"] == pytest.approx(log_loss(y, p, labels=range(classes)), abs=1e-12)
    brier = brier_score_loss(y, p, labels=list(range(classes)), scale_by_half=False)
    assert got["brier"] == pytest.approx(brier, abs=1e-12)
    right = (p.argmax(axis=1) == y.numpy()).tolist()
    assert got["ece"] == pytest.approx(ece_by_hand(p.max(axis=1).tolist(), right, 15), abs=1e-12)


def test_classification_by_hand():
    """Two rows over two classes with p = 3/4 on the first class; one is right and one is wrong."""
    logits = torch.tensor([[math.log(3.0), 0.0]] * 2, dtype=torch.float64)
    got = classification(logits, torch.tensor([0, 1]))
    assert got == {
        "accuracy": 0.5,
        "nll": pytest.approx((math.log(4 / 3) + math.log(4)) / 2, abs=1e-15),
        "ece": pytest.approx(0.25, abs=1e-15),
        "brier": pytest.approx((2 / 16 + 2 * 9 / 16) / 2, abs=1e-15),
    }


def test_a_confident_wrong_model_has_the_worst_scores():
    got = classification(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]))
    assert got == {"accuracy": 0.0, "nll": 1000.0, "ece": 1.0, "brier": 2.0}


def test_arithmetic_is_in_float64():
    """In float32, log(1 + exp(-20)) would be 0."""
    nll = classification(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))["nll"]
    assert nll == pytest.approx(math.log1p(math.exp(-20.0)), rel=1e-9)


def test_logits_may_be_infinite():
    impossible = classification(torch.tensor([[0.0, 0.0, -INF]]), torch.tensor([0]))
    assert impossible == classification(torch.tensor([[0.0, 0.0, -2000.0]]), torch.tensor([0]))
    assert classification(torch.tensor([[0.0, -INF]]), torch.tensor([1]))["nll"] == INF
    certain = classification(torch.tensor([[5.0, INF]]), torch.tensor([1]))
    assert certain == {"accuracy": 1.0, "nll": 0.0, "ece": 0.0, "brier": 0.0}
    nothing = classification(torch.full((1, 4), -INF), torch.tensor([0]))
    assert nothing["nll"] == pytest.approx(math.log(4))
    assert classification(torch.tensor([[INF, INF, 0.0]]), torch.tensor([1]))["nll"] == pytest.approx(math.log(2))


def test_a_logit_that_is_no_number_is_wrong_and_seen():
    got = classification(torch.tensor([[math.nan, 0.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    assert got["accuracy"] == 0.5
    assert all(math.isnan(got[name]) for name in ("nll", "ece", "brier"))


def test_rows_without_a_label_are_left_out():
    logits, y = drawn(40, 3)
    hidden = torch.where(torch.arange(40) % 3 == 0, -1, y)
    assert classification(logits, hidden) == classification(logits[hidden >= 0], y[hidden >= 0])
    with pytest.raises(DataError, match="no row has a label"):
        classification(logits, torch.full((40,), -1))
    with pytest.raises(DataError):
        classification(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_shapes_and_labels_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"not \(2, 3, 4\) and \(2,\)"):
        classification(torch.zeros(2, 3, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="labels"):
        classification(torch.zeros(2, 3), torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="label 3 is outside the 3 classes"):
        classification(torch.zeros(2, 3), torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="probabilities"):
        ece(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


@given(
    st.lists(st.tuples(st.integers(8, 16), st.booleans()), min_size=1, max_size=30),
    st.sampled_from([1, 2, 4, 8, 15, 16]),
)
def test_ece_is_the_definition_also_on_the_edges_of_bins(rows, bins):
    """Confidences are sixteenths, so with 2, 4, 8 and 16 bins many lie exactly on an edge."""
    confidence = [c / 16 for c, _ in rows]
    p = torch.tensor([[c, 1 - c] for c in confidence], dtype=torch.float64)
    y = torch.tensor([0 if right or c == 0.5 else 1 for c, (_, right) in zip(confidence, rows, strict=True)])
    right = [bool(r or c == 8) for c, r in rows]
    value = ece(p, y, bins)
    assert value == pytest.approx(ece_by_hand(confidence, right, bins), abs=1e-12)
    assert 0 <= value <= 1


def test_ece_does_not_change_its_input_and_needs_no_grad():
    logits, y = drawn(20, 3)
    before = logits.clone()
    p = logits.requires_grad_().softmax(dim=1)
    assert isinstance(ece(p, y), float)
    assert torch.equal(logits.detach(), before)


def test_regression_agrees_with_scikit_learn():
    source = torch.Generator().manual_seed(1)
    y = torch.randn(200, generator=source)
    pred = y + 0.3 * torch.randn(200, generator=source)
    expected = {
        "rmse": root_mean_squared_error(y.double(), pred.double()),
        "mae": mean_absolute_error(y.double(), pred.double()),
        "r2": r2_score(y.double(), pred.double()),
    }
    assert regression(pred, y) == pytest.approx(expected, abs=1e-12)
    assert regression(pred[:, None], y) == regression(pred, y[:, None]) == regression(pred, y)


def test_regression_by_hand_and_with_rows_left_out():
    got = regression(torch.tensor([1.0, 2.0, 9.0, 100.0]), torch.tensor([1.0, 4.0, 7.0, math.nan]))
    assert got == pytest.approx({"rmse": math.sqrt(8 / 3), "mae": 4 / 3, "r2": 1 - 8 / 18}, abs=1e-12)
    with pytest.raises(DataError):
        regression(torch.ones(2), torch.full((2,), math.nan))
    assert math.isnan(regression(torch.tensor([math.nan]), torch.ones(1))["rmse"])


def test_r2_of_equal_labels_is_one_or_zero_as_in_scikit_learn():
    same = torch.full((7,), 0.5)
    assert regression(same, same)["r2"] == 1.0 == r2_score(same, same)
    assert regression(same + 1, same)["r2"] == 0.0 == r2_score(same, same + 1)
    tenth = torch.full((7,), 0.1)  # whose mean is not exactly 0.1: the spread is rounding, not zero
    assert regression(tenth + 1, tenth)["r2"] == 0.0


def test_regression_refuses_what_would_be_broadcast():
    with pytest.raises(ValueError, match=r"not \(3, 2\) and \(3,\)"):
        regression(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="one prediction"):
        regression(torch.zeros(3), torch.zeros(4))


def two_classes(confidence: list[float], right: list[bool]) -> tuple[torch.Tensor, torch.Tensor]:
    p = torch.tensor([[c, 1 - c] for c in confidence], dtype=torch.float64)
    return p, torch.tensor([0 if r else 1 for r in right])


@pytest.mark.parametrize(
    ("confidence", "right", "area"),
    [
        ([0.9, 0.8, 0.7], [True, True, True], 0.0),
        ([0.9, 0.8, 0.7], [False, False, False], 1.0),
        ([0.7, 0.9, 0.8], [False, True, True], (0 + 0 + 1 / 3) / 3),
        ([0.9, 0.8, 0.7], [False, True, True], (1 + 1 / 2 + 1 / 3) / 3),
        ([0.8, 0.8], [True, False], 0.5),  # the mean of (0 + 1/2) / 2 and (1 + 1/2) / 2
        ([0.9, 0.6, 0.6], [True, False, True], (0 + 1 / 4 + 1 / 3) / 3),
    ],
)
def test_aurc_by_hand(confidence, right, area):
    assert aurc(*two_classes(confidence, right)) == pytest.approx(area, abs=1e-15)


@given(st.lists(st.tuples(st.integers(9, 12), st.booleans()), min_size=1, max_size=5))
def test_aurc_with_ties_is_the_mean_over_all_orders(rows):
    areas = []
    for order in permutations(rows):
        in_order = sorted(order, key=lambda row: -row[0])  # stable: equals stay as permuted
        wrong = [not right for _, right in in_order]
        areas.append(sum(Fraction(sum(wrong[:k]), k) for k in range(1, len(wrong) + 1)) / len(wrong))
    p, y = two_classes([c / 16 for c, _ in rows], [right for _, right in rows])
    assert aurc(p, y) == pytest.approx(float(sum(areas) / len(areas)), abs=1e-12)
    assert aurc(p.flip(0), y.flip(0)) == pytest.approx(aurc(p, y), abs=1e-12)


def test_aurc_leaves_out_rows_without_a_label_and_refuses_what_does_not_fit():
    logits, y = drawn(40, 3)
    p, hidden = logits.softmax(dim=1), torch.where(torch.arange(40) % 3 == 0, -1, y)
    assert aurc(p, hidden) == aurc(p[hidden >= 0], y[hidden >= 0])
    assert math.isnan(aurc(torch.full((2, 2), math.nan), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(DataError, match="no row has a label"):
        aurc(p, torch.full((40,), -1))
    with pytest.raises(ValueError, match="probabilities"):
        aurc(torch.zeros(2), torch.zeros(2, dtype=torch.int64))


def test_coverage_by_hand():
    low, high = torch.tensor([0.0, 0.0, 0.0, 0.0, math.nan]), torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0])
    y = torch.tensor([0.0, 1.0, 1.5, math.nan, 0.5])  # on an edge twice, outside, no label, no bound
    assert coverage(low, high, y) == 0.5 == coverage(low[:, None], high, y[:, None])
    assert coverage(high, low, torch.full((5,), 0.5)) == 0.0
    with pytest.raises(DataError, match="no row has a label"):
        coverage(low, high, torch.full((5,), math.nan))
    with pytest.raises(ValueError, match=r"not \(5,\) and \(4,\) and \(5,\)"):
        coverage(low, high[:4], y)
