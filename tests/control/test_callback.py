"""The callback inside stable-baselines3: against a twin, against no callback, and what it leaves behind."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, PPO

from selfdistill.control import SelfDistil, kickstart, restarted
from selfdistill.control.recipes import PolicyMethod
from tests.control.common import KEYS, PLAIN, Twin, distance, environments, make, registered, sharp, trained, weights


def constant(weight: float) -> PolicyMethod:
    """Kickstarting with a constant weight and without extra steps, as the twin does it."""
    recipe = kickstart(steps=0)
    assert recipe.method is not None
    term = recipe.method.terms["teacher"]
    from dataclasses import replace

    method = replace(recipe.method, terms={"teacher": replace(term, weight=weight)})
    return replace(recipe, method=method)


SPACES: dict[str, Any] = {
    "cartpole": partial(registered, "CartPole-v1"),
    "pendulum": partial(registered, "Pendulum-v1"),
    "MultiDiscrete": lambda: environments(action=spaces.MultiDiscrete([2, 4, 3])),
    "MultiBinary": lambda: environments(action=spaces.MultiBinary(3)),
    "Dict": lambda: environments(KEYS),
    "Discrete": lambda: environments(spaces.Discrete(5)),
    "matrix": lambda: environments(PLAIN, spaces.Box(-1.0, 1.0, (2, 2))),
}


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("world", SPACES)
def test_the_term_is_its_twin_of_torch_distributions(world: str, algorithm: type[Any]) -> None:
    build = lambda: make(SPACES[world](), algorithm, learning_rate=3e-3)
    teacher = sharp(SPACES[world](), algorithm)
    ours, twin, plain = (
        weights(trained(build, callback))
        for callback in (SelfDistil(constant(0.7), teacher), Twin(teacher, 0.7), None)
    )
    assert distance(ours, twin) < 1e-6
    assert distance(ours, plain) > 1e-3
