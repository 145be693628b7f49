"""The arguments of `fit`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_type_hints

import pytest
from torch import nn

from selfdistill.errors import DataError
from selfdistill.training.fit import fit
from selfdistill.training.settings import Settings

OWN = {"build", "data", "method", "out", "resume", "external", "device", "watch", "progress", "warn", "tell"}


def test_fit_takes_every_field_of_the_settings_with_its_type_and_default() -> None:
    """An editor completes `fit(epochs=`; whoever adds a field to `Settings` adds it here too."""
    parameters, types = inspect.signature(fit).parameters, get_type_hints(Settings)
    own = {name: p for name, p in parameters.items() if name not in OWN}
    assert list(own) == [field.name for field in fields(Settings)]
    for field in fields(Settings):
        assert own[field.name].kind is inspect.Parameter.KEYWORD_ONLY
        assert own[field.name].default == field.default, field.name
        assert get_type_hints(fit)[field.name] == types[field.name], field.name


def test_rates_fall_from_the_last_layer_to_the_first() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 2))
    model[0].weight.requires_grad_(False)
    optimizer = Settings(lr=0.1, layer_decay=0.5).make_optimizer(model)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    expected = {"0.bias": 0.025, "2.0.weight": 0.05, "2.1.bias": 0.05, "3.weight": 0.1}
    named = dict(model.named_parameters())
    assert {name: rates[id(named[name])] for name in expected} == pytest.approx(expected)
    assert id(named["0.weight"]) not in rates
    assert len(Settings(lr=0.1).make_optimizer(model).param_groups) == 1
    with pytest.raises(DataError, match="layer decay is above 0"):
        Settings(layer_decay=0.0)
