"""The pyramid of a model's own maps: who learns from whom, at which sizes, and what is left of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Objective
from selfdistill.errors import SpaceError
from selfdistill.methods import frskd
from selfdistill.models.feature_pyramid import SelfTeacher
from selfdistill.models.peers import final_model
from selfdistill.models.registry import parse


def bound(*kept: str) -> tuple[Objective, nn.Module]:
    """FRSKD on a small CNN, with these terms alone."""
    method = frskd(width=1)
    method = replace(method, terms={name: method.terms[name] for name in kept or method.terms})
    assert method.wrap_model is not None
    torch.manual_seed(0)
    model = method.wrap_model(parse("cnn(width=4)", (1, 8, 8), 3))()
    return method.bind(model), model


def learners(*kept: str) -> set[str]:
    """Which parts get gradient from these terms."""
    objective, model = bound(*kept)
    torch.manual_seed(1)
    objective({"x": torch.randn(6, 1, 8, 8), "y": torch.arange(6) % 3}).backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    return {name.partition(".")[0] if not name.startswith("model.classifier") else "head" for name in found}


def test_the_pyramid_learns_labels_alone_and_trains_the_models_stages():
    assert learners("label") == {"model", "head"}
    assert learners("taught") == {"model", "pyramid", "classifier"}


def test_nothing_teaches_the_pyramid_what_the_model_says():
    assert learners("teacher") == {"model", "head"}
    assert learners("map_0", "map_1", "map_2") == {"model"}


def test_every_map_keeps_its_size_and_has_unit_length():
    _, model = bound()
    said = model(torch.randn(2, 1, 8, 8))
    for layer, positions in (("stages.0", 64), ("stages.1", 16), ("stages.2", 16)):
        for head in (f"energy:{layer}", f"pyramid:{layer}"):
            assert said[head].shape == (2, positions)
            assert torch.allclose(said[head].norm(dim=1), torch.ones(2), atol=1e-5)
    assert said["taught"].shape == (2, 3)
    bare = final_model(model)
    assert bare.state_dict().keys() == parse("cnn(width=4)", (1, 8, 8), 3)().state_dict().keys()


def test_models_without_maps_are_refused():
    made = SelfTeacher(("stages.0", "stages.1"))(parse("mlp(width=8)", (4,), 3))()
    with pytest.raises(SpaceError, match="use a model of maps"):
        made(torch.zeros(2, 4))
