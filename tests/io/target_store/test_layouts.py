"""Words and layouts: what comes back is what was written, to the stated rounding, and nothing is renormalised."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.core.logits import SparseLogProbs
from selfdistill.errors import DataError
from selfdistill.io.target_store import Dense, Store, Top
from selfdistill.io.target_store.layouts import LEAST, id_bits, pack, unpack
from selfdistill.losses.chunked.definitions import ForwardKL, ReverseKL
from selfdistill.losses.chunked.divergences import divergence

WIDTHS = [2, 1000, 131_072, 131_073, 151_936, 262_144, 2**20]


def halved(p: float, bits: int) -> float:
    """p x 2^15 as a number with 5 bits of exponent and so many of fraction, by Python's own arithmetic."""
    x = p * 2.0**15
    if x == 0:
        return 0.0
    exponent = max(math.floor(math.log2(x)), -14)
    step = 2.0 ** (exponent - bits)
    return round(x / step) * step / 2.0**15  # Python rounds halves to even


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(WIDTHS), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_ids_come_back_exactly_and_probabilities_to_the_nearest_step(width, drawn):
    ids = np.array([min(int(u * width), width - 1) for u, _ in drawn])
    p = np.array([v for _, v in drawn])
    back, found = unpack(pack(ids, p, width), width)
    assert back.dtype == np.int64
    assert back.tolist() == ids.tolist()
    bits = 10 - (id_bits(width) - 17)
    for was, is_ in zip(p.tolist(), found.tolist(), strict=True):
        step = 2.0 ** (max(math.floor(math.log2(max(was, 1e-300) * 2**15)), -14) - bits) / 2**15
        if is_ == LEAST:
            assert was <= 0.51 * step
        else:
            assert abs(is_ - was) <= (0.5 if bits == 10 else 0.51) * step + 1e-9 * was


@pytest.mark.parametrize("p", [1.0, 0.5, 0.25, 1 / 3, 1e-3, 2.0**-29, 1e-10, 2.0**-39])
def test_seventeen_bits_leave_all_of_half_precision(p):
    _, found = unpack(pack(np.array([131_071]), np.array([p]), 131_072), 131_072)
    assert float(found[0]) == halved(p, 10)


def test_every_id_survives_with_every_kind_of_probability():
    for width in (131_072, 2**20):
        ids = np.arange(width)
        for p in (0.0, 2.0**-38, 0.3, 1.0):
            assert np.array_equal(unpack(pack(ids, np.full(width, p), width), width)[0], ids)


def test_what_is_no_probability_or_no_id_is_refused():
    for ids, p, words in [
        ([5], [0.5], "ids lie within 0 and 4"), ([-1], [0.5], "ids lie"), ([0], [1.5], "within 0 and 1"),
        ([0], [-0.1], "within 0 and 1"), ([0], [math.nan], "within 0 and 1"),
    ]:  # fmt: skip
        with pytest.raises(DataError, match=words):
            pack(np.array(ids), np.array(p), 5)
    with pytest.raises(DataError, match="keep them dense"):
        id_bits(2**20 + 1)


def logits(elements: int, width: int, seed: int, sharp: float = 3.0) -> torch.Tensor:
    return sharp * torch.randn(elements, width, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(50, 1), (50, 49), (300, 8), (2000, 32)]), st.floats(0.0, 12.0))
def test_kept_probabilities_are_the_true_ones_and_all_add_up_to_one(seed, size, sharp):
    """From flat teachers to sure ones; the parts are exact to what half precision rounds."""
    width, k = size
    z = logits(4, width, seed, sharp)
    found = Top(width, k).sparse(Top(width, k).encode(z))
    true = torch.log_softmax(z.double(), -1)
    best, ids = true.topk(k, -1)
    assert found.ids.dtype == torch.int64
    assert found.log_probs.dtype == torch.float32
    kept = true.gather(1, found.ids)
    torch.testing.assert_close(kept, best, rtol=0, atol=1e-5)  # the most probable ones, whichever of equals
    sure = best > math.log(2.0**-29)
    assert float((found.log_probs - kept)[sure].abs().max()) < 2.0**-11 * (1 + k)
    assert float((found.log_probs[:, 1:] - kept[:, 1:])[sure[:, 1:]].abs().max() if k > 1 else 0) < 2.0**-11
    tails = torch.exp(true).scatter(1, ids, 0.0).sum(-1)
    assert float((found.log_rest.exp() - tails).abs().max()) < 2.0**-11 * k
    small = (tails < best[:, 0].exp()) & (tails > 2.0**-29)
    assert float(((found.log_rest - tails.log()).abs() * small).max()) < 2.0**-11 + 1e-6  # and to their size
    total = found.log_probs.double().exp().sum(-1) + found.log_rest.double().exp()
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-6)


def test_a_sure_teachers_rest_is_not_lost_in_the_rounding_of_its_best():
    """The tail is 1e-5; half precision knows 0.99999 as 1."""
    p = torch.cat([torch.tensor([1 - 1e-5]), torch.full((99,), 1e-5 / 99)])
    layout = Top(100, 1)
    found = layout.sparse(layout.encode(p.log().unsqueeze(0)))
    assert found.log_rest.exp().item() == pytest.approx(1e-5, rel=1e-3)
    assert found.log_probs.exp().item() == pytest.approx(1 - 1e-5, rel=1e-6)


def test_dense_again_it_is_the_kept_ones_and_an_even_rest():
    z = logits(5, 40, 0)
    layout = Top(40, 6)
    again = layout.decode(layout.encode(z)).exp()
    p = torch.softmax(z, -1)
    best, ids = p.topk(6, -1)
    expected = ((1 - best.sum(-1)) / 34).unsqueeze(-1).repeat(1, 40)
    for row in range(5):
        for column, value in zip(ids[row].tolist(), best[row].tolist(), strict=True):
            expected[row, column] = value
    torch.testing.assert_close(again, expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("kind", [ForwardKL(), ReverseKL(), ForwardKL(temperature=2.0)])
def test_the_language_divergences_take_what_the_store_gives(kind):
    """Against the teacher's own log-probabilities of the same ids: value and gradient."""
    student, teacher = logits(7, 200, 1).requires_grad_(), logits(7, 200, 2)
    layout = Top(200, 16)
    found = layout.sparse(layout.encode(teacher / kind.temperature))
    true = torch.log_softmax(teacher / kind.temperature, -1).gather(1, found.ids)
    results: list[Any] = []
    for log_probs in (found.log_probs, true):
        student.grad = None
        compared = divergence(student, SparseLogProbs(found.ids, log_probs), kind)
        compared.total.backward()
        assert student.grad is not None
        results.append((compared.values, student.grad.clone()))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=2e-3, atol=2e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=2e-2, atol=2e-4)


def test_sequences_of_unequal_length_go_from_the_store_to_a_divergence(tmp_path):
    """Of a teacher that is the student, for two sequences read in another order than written: no divergence."""
    store = Store(tmp_path, Top(60, 20), {"teacher": "a", "tokenizer": "b"})
    sequences = {5: logits(9, 60, 1), 2: logits(4, 60, 2), 8: logits(1, 60, 3)}
    for key, z in sequences.items():
        store.write([key], store.layout.encode(z), [len(z)])
    store.flush()
    found, starts = Store(tmp_path).sparse([8, 5])
    assert starts.tolist() == [0, 1, 10]
    assert found.ids.shape == found.log_probs.shape == (10, 20)
    student = torch.cat([sequences[8], sequences[5]])
    values = divergence(student, SparseLogProbs(found.ids, found.log_probs), ForwardKL()).values
    assert values.shape == (10,)
    assert float(values.max()) < 1e-5
    other = divergence(student.flip(0), SparseLogProbs(found.ids, found.log_probs), ForwardKL()).values
    assert float(other.min()) > 0.1


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["float32", "float16"]), st.lists(st.floats(-100, 100, width=16), min_size=3, max_size=3))
def test_dense_targets_come_back_exactly_where_their_numbers_fit(dtype, row):
    layout = Dense(3, dtype)
    values = torch.tensor([row])
    assert layout.decode(layout.encode(values)).equal(values)
    assert layout.bytes == {"float32": 12, "float16": 6}[dtype]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(lambda: Dense(3, "int8"), "float32 or float16"), (lambda: Top(10, 10), "keep 1 to 9"),
     (lambda: Dense(3).encode(torch.zeros(2, 4)), r"\(elements, 3\)"), (lambda: Top(9, 2).encode(torch.zeros(9)), "9"),
     (lambda: Dense(1, "float16").encode(torch.tensor([[1e6]])), "not finite in float16"),
     (lambda: Top(9, 2).packed(np.array([[1, 2]]), np.array([[0.7, 0.3]]), np.array([0.4])), "add up to 1.4")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(wrong, words):
    with pytest.raises(DataError, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_thirty_two_of_131072_take_130_bytes():
    columns = Top(131_072, 32).encode(logits(3, 131_072, 0))
    assert sum(column.nbytes for column in columns.values()) == 3 * 130
