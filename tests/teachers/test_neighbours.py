"""Batches of class mates, and what the rows of a batch teach each other."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.regression import of_values
from selfdistill.data.dataset import from_tensors
from selfdistill.data.sampler import Sampler
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL
from selfdistill.methods import bake
from selfdistill.teachers import Neighbours
from selfdistill.views import Views
from tests.harness import tiny_data


def batches(mates: int, epoch: int = 0, seed: int = 0) -> list[Tensor]:
    sampler = Sampler(tiny_data(0), Views(mates=mates), 12, seed=seed)
    return [sampler.sample(epoch, step)["labelled"].ids for step in range(sampler.steps_per_epoch)]


def test_each_row_that_is_drawn_brings_others_of_its_class():
    """66 rows in 6 steps of 11: groups of four, the last one cut; in a group no row comes twice."""
    y = tiny_data(0).y
    found = batches(3)
    assert [len(ids) for ids in found] == [11] * 6
    for ids in found:
        for first in range(0, 11, 4):
            group = ids[first : first + 4].tolist()
            assert len(set(group)) == len(group)
            assert len(set(y[group].tolist())) == 1
    plain = [ids.tolist() for ids in batches(0)]
    assert [ids[0] for ids in plain] == [int(ids[0]) for ids in found], "what is drawn is drawn as without mates"


def test_mates_depend_on_where_they_are_drawn_alone():
    again, later, other = batches(3), batches(3, epoch=1), batches(3, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(batches(3), again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(again, later, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(again, other, strict=True))


def test_a_mate_is_any_other_row_of_the_class_alike():
    """Over 300 epochs each of 16 or 17 rows of class 0 comes about as often: 5 standard deviations."""
    y, counts = tiny_data(0).y, Counter[int]()
    for epoch in range(300):
        for ids in batches(3, epoch):
            counts.update(i for k, i in enumerate(ids.tolist()) if k % 4 and y[i] == 0)
    members = int((y[tiny_data(0).labelled] == 0).sum())
    assert len(counts) == members
    mean = sum(counts.values()) / members
    assert all(abs(n - mean) < 5 * mean**0.5 for n in counts.values())


def test_the_same_row_twice_in_a_batch_is_augmented_in_two_ways():
    """A class of two rows and three mates: rows must come again."""
    y, audit, test = torch.tensor([0, 0, 1, 1] * 2), torch.tensor([4, 6]), torch.tensor([5, 7])
    data = from_tensors(torch.rand(8, 1, 8, 8), y, augment="weak", audit=audit, test=test)
    sampler = Sampler(data, Views(mates=3), 4, seed=0)
    drawn = sampler.sample(0, 0)
    assert len(set(zip(drawn["labelled"].ids.tolist(), drawn["labelled"].visits.tolist(), strict=True))) == 4
    x = sampler.batch(drawn, 0)["x"].x
    assert len({tuple(row.flatten().tolist()) for row in x}) == 4


def test_a_sample_of_addresses_is_uniform_and_without_repetition():
    counts = Counter(tuple(sorted(rng.sample((k, "test"), 4, 2))) for k in range(6000))
    assert len(counts) == 6
    assert all(abs(n - 1000) < 5 * (1000 * 5 / 6) ** 0.5 for n in counts.values())
    assert rng.sample((1, "test"), 1, 3) == [0, 0, 0]


class Two(nn.Module):
    """Logits and features that are given."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x[:, :2], "feature": x[:, 2:]}


def taught(x: Tensor, omega: float = 0.5, temperature: float = 2.0) -> Tensor:
    teacher = Neighbours(omega, temperature)
    term = Term(teacher, KL(temperature))
    objective = Method({"t": term}).bind(Two())
    return teacher.target(nn.Module(), objective.forward_views({"x": x}), term).probabilities(2, temperature)


def test_two_rows_share_what_they_say_by_hand():
    """With two rows A swaps them: Q_1 = (p_1 + omega p_2) / (1 + omega)."""
    x = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.3, 0.9]])
    p = (x[:, :2] / 2.0).softmax(1)
    wanted = torch.stack([(p[0] + 0.5 * p[1]) / 1.5, (p[1] + 0.5 * p[0]) / 1.5])
    assert torch.allclose(taught(x), wanted, atol=1e-6)


def test_a_row_alone_teaches_itself_and_without_neighbours_so_does_each():
    x = torch.randn(5, 4)
    assert torch.allclose(taught(x[:1]), (x[:1, :2] / 2).softmax(1))
    assert torch.allclose(taught(x, omega=0.0), (x[:, :2] / 2).softmax(1), atol=1e-6)
    assert torch.allclose(taught(x, omega=0.9).sum(1), torch.ones(5), atol=1e-5)


def test_rows_that_look_alike_agree_more():
    """Of two rows with other features than the rest, what one says moves the other most."""
    x = torch.zeros(4, 4)
    x[:, 2:] = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]])
    x[1, 0] = x[3, 1] = 5.0
    found = taught(x)
    assert found[0, 0] > 0.5 > found[2, 0]


def test_what_makes_no_sense_is_refused():
    with pytest.raises(RecipeError, match="below 1"):
        bake(omega=1.0)
    with pytest.raises(RecipeError, match="mates is at least 0"):
        bake(mates=-1)
    with pytest.raises(SpaceError, match="values have no classes"):
        of_values(bake())
