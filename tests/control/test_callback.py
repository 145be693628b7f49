"""The callback inside stable-baselines3: against a twin, against no callback, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from selfdistill.control import (
    SelfDistil,
    continued,
    dagger,
    kickstart,
    policy_distillation,
    privileged,
    restarted,
    self_imitation,
)
from selfdistill.control.callback import attach
from selfdistill.control.recipes import PolicyMethod
from selfdistill.control.teachers import hide
from selfdistill.core.parts import Term
from selfdistill.errors import DataError, RecipeError
from tests.control.common import (
    KEYS,
    PICTURE,
    PLAIN,
    ROLLOUT,
    Twin,
    distance,
    environments,
    make,
    registered,
    sharp,
    trained,
    weights,
)

LSTM: dict[str, Any] = {"policy": "MlpLstmPolicy", "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 6}}
GSDE: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"net_arch": [8], "squash_output": True}}


def constant(weight: float, steps: int = 0, recipe: PolicyMethod | None = None) -> PolicyMethod:
    """Kickstarting with a constant weight, and without extra steps as the twin does it."""
    recipe = recipe or kickstart(steps=steps)
    assert recipe.method is not None
    terms = {n: replace(t, weight=weight) for n, t in recipe.method.terms.items() if isinstance(t, Term)}
    return replace(recipe, method=replace(recipe.method, terms=terms))


SPACES: dict[str, Callable[[], Any]] = {
    "cartpole": partial(registered, "CartPole-v1"),
    "pendulum": partial(registered, "Pendulum-v1"),
    "several": lambda: environments(action=spaces.MultiDiscrete([2, 4, 3])),
    "binary": lambda: environments(action=spaces.MultiBinary(3)),
    "keys": lambda: environments(KEYS),
    "numbered": lambda: environments(spaces.Discrete(5)),
    "matrix": lambda: environments(PLAIN, spaces.Box(-1.0, 1.0, (2, 2))),
}

# ---- the term --------------------------------------------------------------------------------------------------------


def compare_with_twin(build: Callable[[], Any], teacher: Any) -> None:
    ours, twin, plain = (
        weights(trained(build, callback))
        for callback in (SelfDistil(constant(0.7), teacher), Twin(teacher, 0.7), None)
    )
    assert distance(ours, twin) < 1e-6
    assert distance(ours, plain) > 1e-3


@pytest.mark.parametrize(
    ("world", "algorithm"),
    [*((world, PPO) for world in SPACES), ("cartpole", A2C), ("pendulum", A2C), ("keys", A2C)],
)
def test_the_term_is_its_twin_of_torch_distributions(world: str, algorithm: type[Any]) -> None:
    build = lambda: make(SPACES[world](), algorithm, learning_rate=3e-3)
    compare_with_twin(build, sharp(SPACES[world](), algorithm))


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4, 3]), spaces.MultiBinary(2)])
def test_where_actions_are_masked_teacher_and_student_choose_among_the_others(action: Any) -> None:
    build = lambda: make(environments(action=action), MaskablePPO, learning_rate=3e-3)
    compare_with_twin(build, sharp(environments(action=action), MaskablePPO))


class RecurrentTwin(Twin):
    """A twin that leaves padding out."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        buffer = self.model.rollout_buffer  # type: ignore[union-attr]
        get = buffer.get

        def noting(*given: Any) -> Any:
            for sample in get(*given):
                self.mask = sample.mask > 1e-8
                yield sample

        vars(buffer)["get"] = noting

    def divergence(self, teacher: Any, student: Any) -> torch.Tensor:
        return super().divergence(teacher, student)[self.mask]


def test_a_recurrent_policy_learns_from_a_teacher_of_single_states() -> None:
    teacher, build = sharp(environments()), lambda: make(environments(), RecurrentPPO, learning_rate=3e-3, **LSTM)

    class Of(RecurrentTwin):
        def _on_training_start(self) -> None:
            whole = self.teacher.policy.get_distribution
            self.teacher = type("Teacher", (), {"policy": type("Policy", (), {"get_distribution": staticmethod(whole)})})
            super()._on_training_start()

    ours, twin, plain = (
        weights(trained(build, callback))
        for callback in (SelfDistil(constant(0.7), teacher), Of(teacher, 0.7), None)
    )
    assert distance(ours, twin) < 1e-6
    assert distance(ours, plain) > 1e-3


def test_a_privileged_teacher_sees_what_its_student_does_not() -> None:
    teacher = sharp(environments(KEYS))
    build = lambda: make(environments(KEYS), learning_rate=3e-3, policy_kwargs={"net_arch": [8], **hide("state")})
    ours, twin = (
        weights(trained(build, callback))
        for callback in (SelfDistil(constant(0.7, recipe=privileged(steps=0)), teacher), Twin(teacher, 0.7))
    )
    assert distance(ours, twin) < 1e-6


@pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO, RecurrentPPO])
@pytest.mark.parametrize(
    "method", [constant(0.0, steps=5), restarted(), continued(), kickstart(release=0.0)], ids=lambda m: repr(m)[14:40]
)
def test_without_weight_the_training_is_that_of_the_algorithm_to_the_bit(
    algorithm: type[Any], method: PolicyMethod
) -> None:
    options = LSTM if algorithm is RecurrentPPO else {}
    build = lambda: make(environments(), algorithm, **options)
    teacher = sharp(environments())
    ours, plain = (weights(trained(build, one, 2)) for one in (SelfDistil(method, teacher), None))
    assert distance(ours, plain) == 0.0


def test_an_attached_loss_has_the_gradient_of_a_sum() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, requires_grad=True)
    carrier, scalar = weight.sigmoid().log(), weight.square().sum()
    (explicit,) = torch.autograd.grad(2.0 * carrier.mean() + scalar, weight, retain_graph=True)
    attached = attach(carrier, scalar)
    assert torch.equal(attached, carrier)
    (gradient,) = torch.autograd.grad(2.0 * attached.mean(), weight)
    torch.testing.assert_close(gradient, explicit, atol=0.0, rtol=1e-6)


def test_an_attached_loss_counts_where_nothing_else_of_the_carrier_does() -> None:
    weight = torch.randn(3, requires_grad=True)
    attached = attach(torch.zeros(4), weight.square().sum())
    (0.0 * attached).mean().backward()
    assert torch.equal(weight.grad, 2.0 * weight) if weight.grad is not None else False


@pytest.mark.parametrize("world", SPACES)
def test_a_copy_of_its_teacher_has_nothing_to_learn(world: str) -> None:
    model = make(SPACES[world]())
    callback = SelfDistil(constant(1.0), model)
    gradients: list[torch.Tensor] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            sample = next(iter(copy.deepcopy(buffer).get(16)))
            actions = sample.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else sample.actions
            _, log_prob, _ = model.policy.evaluate_actions(sample.observations, actions)
            (0.0 * log_prob).sum().backward()
            gradients.extend(p.grad for p in model.policy.parameters() if p.grad is not None)
            model.policy.zero_grad()

    model.learn(ROLLOUT, callback=[callback, Look()])
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6
