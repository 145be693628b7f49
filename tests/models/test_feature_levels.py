"""The classifiers of a model with exits, side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfdistill.errors import SpaceError
from selfdistill.models.feature_heads import Levels, Several
from selfdistill.models.peers import final_model
from selfdistill.models.registry import parse
from selfdistill.testing.specimens import tiny
from tests.harness import build


def test_every_ordered_pair_of_classifiers_comes_once():
    model = Several(build(exits=True))
    x = torch.randn(2, 1, 8, 8)
    said = model.eval()(x)
    each = [*said["exits"].unbind(1), said["logits"]]
    assert torch.equal(said["classifiers"], torch.stack(each, 1))
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    assert said["pupils"].shape == said["tutors"].shape == (2, 6, 4)
    for k, (i, j) in enumerate(pairs):
        assert torch.equal(said["pupils"][:, k], each[i])
        assert torch.equal(said["tutors"][:, k], each[j])
    assert torch.equal(said["levels"], torch.cat([said["features"], said["feature"][:, None]], 1))
    assert final_model(model).state_dict().keys() == model.model.state_dict().keys()


def test_what_is_fused_is_linear_in_the_features():
    """So what is said between two rows is what is said of the features between them."""
    model = Several(build(exits=True), fused=True)
    levels = torch.randn(2, 3, 6)
    both = model.fused(levels.flatten(1))
    between = model.fused((0.3 * levels[0] + 0.7 * levels[1]).flatten()[None])
    assert torch.allclose(between, 0.3 * both[:1] + 0.7 * both[1:], atol=1e-6)
    assert model.eval()(torch.randn(2, 1, 8, 8))["fused"].shape == (2, 4)


def test_the_default_models_give_their_exits_and_others_are_refused_by_name():
    for spec, shape, levels in (("cnn(width=8)", (1, 8, 8), 3), ("mlp(width=8, depth=2)", (5,), 2)):
        said = Levels(fused=True)(parse(spec, shape, 3))()(torch.zeros(2, *shape))
        assert said["classifiers"].shape == (2, levels, 3)
        assert said["fused"].shape == (2, 3)
    with pytest.raises(SpaceError, match="4 classifiers, its own included, and 2 linear"):
        Several(tiny(0), fused=True)(torch.zeros(2, 6))
    with pytest.raises(SpaceError, match="no early exits"):
        Levels()(lambda: nn.Linear(3, 2))()(torch.zeros(2, 3))
