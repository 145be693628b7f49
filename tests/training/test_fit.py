"""The arguments of `fit`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import get_type_hints

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
