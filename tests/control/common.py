"""Tiny environments of every space, models on them, and the twin: kickstarting by torch.distributions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

ENVIRONMENTS = 2
STEPS = 16  # of a rollout, per environment
ROLLOUT = ENVIRONMENTS * STEPS

PLAIN = spaces.Box(-1.0, 1.0, (3,))
KEYS = spaces.Dict({"frames": spaces.Box(-1.0, 1.0, (2, 2)), "place": spaces.Discrete(3), "state": PLAIN})
PICTURE = spaces.Box(0, 255, (1, 36, 36), np.uint8)


class Walk(gymnasium.Env[Any, Any]):
    """Observations that are drawn, and a reward for low action numbers; episodes of seven steps."""

    def __init__(self, observation: spaces.Space[Any] = PLAIN, action: spaces.Space[Any] | None = None) -> None:
        self.observation_space, self.action_space = observation, action or spaces.Discrete(3)
        self.step_number = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.step_number = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.step_number += 1
        reward = -float(np.abs(action).sum()) + 0.1 * self.step_number
        return self.observation_space.sample(), reward, self.step_number == 7, False, {}

    def action_masks(self) -> np.ndarray[Any, Any]:
        """For MaskablePPO: one action of the last dimension is forbidden, another at each step."""
        space: Any = self.action_space
        counts = {
            "Discrete": lambda: [space.n],
            "MultiDiscrete": lambda: space.nvec,
            "MultiBinary": lambda: [2] * space.n,
        }
        *free, last = counts[type(space).__name__]()
        return np.concatenate([np.ones(sum(free)), np.arange(last) != self.step_number % last]).astype(bool)


def environments(observation: spaces.Space[Any] = PLAIN, action: spaces.Space[Any] | None = None) -> DummyVecEnv:
    """Two walks side by side."""
    return DummyVecEnv([lambda: Walk(observation, action)] * ENVIRONMENTS)


def registered(name: str) -> DummyVecEnv:
    """Two environments of gymnasium side by side."""
    return DummyVecEnv([lambda: gymnasium.make(name)] * ENVIRONMENTS)


def make(env: Any, algorithm: type[Any] = PPO, seed: int = 0, policy: str = "", **options: Any) -> Any:
    """A small model; PPO takes 2 epochs of 2 minibatches."""
    options = {"policy_kwargs": {"net_arch": [8]}, "n_steps": STEPS, "device": "cpu", **options}
    if algorithm is not A2C:
        options = {"batch_size": 16, "n_epochs": 2, **options}
    keys = isinstance(env.observation_space, spaces.Dict)
    return algorithm(policy or ("MultiInputPolicy" if keys else "MlpPolicy"), env, seed=seed, **options)


def sharp(env: Any, algorithm: type[Any] = PPO, seed: int = 1, **options: Any) -> Any:
    """A teacher that is sure of what it does."""
    teacher = make(env, algorithm, seed, **options)
    with torch.no_grad():
        teacher.policy.action_net.weight.mul_(100.0)
    return teacher


def weights(model: BaseAlgorithm) -> dict[str, Tensor]:
    """A copy of the weights of a policy."""
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """The largest difference of two policies' weights."""
    assert some.keys() == others.keys()
    return max(float((value - others[name]).abs().max()) for name, value in some.items())


def trained(build: Callable[[], Any], callback: Any, rollouts: int = 4) -> Any:
    """A model that has learned; made here, so that equal seeds give equal draws."""
    model = build()
    model.learn(rollouts * model.n_steps * model.n_envs, callback=callback)
    return model


class _Rider(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, carrier: Tensor, rider: Tensor) -> Tensor:
        return carrier.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones(())


class Twin(BaseCallback):
    """Kickstarting with a constant weight, by `torch.distributions.kl_divergence`, without the extra steps.

    Args:
        teacher: an SB3 model.
        weight: of the divergence.
        see: what the teacher sees of an observation.
    """

    def __init__(
        self, teacher: Any, weight: float, see: Callable[[Any], Any] = lambda observation: observation
    ) -> None:
        super().__init__()
        self.teacher, self.weight, self.see = teacher, weight, see

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        policy: Any = self.model.policy
        whole, make_distribution = policy.evaluate_actions, policy._get_action_dist_from_latent
        made: list[Any] = []

        def remember(latent: Tensor) -> Any:
            made.append(make_distribution(latent))
            return made[-1]

        def evaluate(observation: Any, actions: Tensor, *rest: Any, **named: Any) -> Any:
            policy._get_action_dist_from_latent = remember
            values, log_prob, entropy = whole(observation, actions, *rest, **named)
            policy._get_action_dist_from_latent = make_distribution
            with torch.no_grad():
                teacher = self.teacher.policy.get_distribution(self.see(observation), **named)
            theirs, ours = (vars(d).get("distributions") or d.distribution for d in (teacher, made.pop()))
            divergence = self.divergence(theirs, ours)
            return values, _Rider.apply(log_prob, self.weight * divergence.mean()), entropy

        policy.evaluate_actions = evaluate

    def divergence(self, teacher: Any, student: Any) -> Tensor:
        """Of each row."""
        if isinstance(student, list):
            return torch.stack([self.divergence(t, s) for t, s in zip(teacher, student, strict=True)]).sum(0)
        if isinstance(student, Categorical):  # a masked one has no divergence of its own
            teacher, student = Categorical(logits=teacher.logits), Categorical(logits=student.logits)
        divergence = kl_divergence(teacher, student)
        return divergence if divergence.dim() == 1 else divergence.sum(1)
