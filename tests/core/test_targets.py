"""Targets know their space: nothing is softmaxed twice, and what does not fit is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.core.targets import Target
from selfdistill.errors import SpaceError


def logits(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5, 10.0])
def test_probabilities_at_a_temperature_are_those_of_the_logits(temperature):
    """softmax(z)^(1/T), normalised again, is softmax(z / T): a stored distribution can be warmed afterwards."""
    z = logits(6, 4)
    warmed = torch.exp(z / temperature) / torch.exp(z / temperature).sum(-1, keepdim=True)
    stored = Target(torch.exp(z) / torch.exp(z).sum(-1, keepdim=True), "probabilities")
    for target in (Target(z, "logits"), stored):
        torch.testing.assert_close(target.probabilities(4, temperature), warmed)
        torch.testing.assert_close(target.log_probabilities(4, temperature), warmed.log())


def test_labels_stay_one_hot_at_every_temperature():
    """A label has no temperature; a missing one (-1) gives a harmless distribution, masked elsewhere."""
    target = Target(torch.tensor([2, 0, -1]), "classes")
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0], [1, 0, 0]])
    for temperature in (1.0, 5.0):
        assert target.probabilities(3, temperature).equal(expected)


@pytest.mark.parametrize("space", ["values", "gaussian", "features"])
def test_what_is_no_distribution_is_not_made_one(space):
    """Features and values are never softmaxed by accident."""
    with pytest.raises(SpaceError, match=space):
        Target(torch.zeros(2, 4), space).probabilities(4)


@pytest.mark.parametrize("space", ["probabilities", "logits"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_distribution_over_other_classes_is_refused(space, temperature):
    """A teacher of 1 or 7 classes does not broadcast over a student of 4."""
    for width in (1, 7):
        target = Target(torch.full((2, width), 1 / width), space)
        with pytest.raises(SpaceError, match=f"{width} .*4"):
            target.probabilities(4, temperature)
        with pytest.raises(SpaceError, match=f"{width} .*4"):
            target.log_probabilities(4, temperature)


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(1, 3), max_size=2), st.sampled_from(["classes", "probabilities"]))
def test_spread_gives_every_inner_element_its_rows_target(rows, inner, space):
    """Exits and peers of a row share its target and its validity; one without a target says 0."""
    value = torch.arange(rows) if space == "classes" else torch.rand(rows, 5)
    valid = torch.arange(rows) % 2 == 0
    student = torch.zeros(rows, *inner, 5)
    spread = Target(value, space, valid).spread(student)
    assert spread.valid is not None
    assert spread.valid.shape == student.shape[:-1]
    for index in torch.cartesian_prod(*[torch.arange(n) for n in (rows, *inner)]).reshape(-1, 1 + len(inner)):
        place = tuple(index.tolist())
        given = value[place[0]]
        assert spread.value[place].equal(given if valid[place[0]] else torch.zeros_like(given))
        assert spread.valid[place].equal(valid[place[0]])


def test_spread_of_a_rows_mask_over_a_whole_target():
    """A target for every peer may come with a mask for every row, also where there are as many peers as rows."""
    target = Target(torch.rand(2, 2, 3), "logits", torch.tensor([True, False])).spread(torch.zeros(2, 2, 3))
    assert target.valid is not None
    assert target.valid.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("shape", [(3, 4), (2, 5, 4), (2, 3, 3, 4)])
def test_a_target_for_other_elements_is_refused(shape):
    """Other rows, or elements the student does not have."""
    with pytest.raises(SpaceError, match="does not fit"):
        Target(torch.zeros(shape), "logits").spread(torch.zeros(2, 3, 4))


def test_best_class_and_detached_value():
    """The best class is the label itself or the largest component; a detached target has no graph."""
    z = logits(3, 4).requires_grad_()
    assert Target(torch.tensor([3]), "classes").best().tolist() == [3]
    assert Target(z, "logits").best().tolist() == [max(range(4), key=row.__getitem__) for row in z.tolist()]
    assert not Target(z * 2, "logits").detached().value.requires_grad
