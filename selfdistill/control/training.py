"""One training of a policy by stable-baselines3, with exact checkpoints at the borders of rollouts.

What a rollout draws is addressed by the steps before it, and running episodes are played again, so that a run that was
cut ends bit for bit as without the cut. Where an environment does not replay, its episodes begin anew.
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage
from torch import nn

from .. import rng
from ..core.step import TrainingClock
from ..errors import NotFiniteError
from ..io import checkpoint
from ..io.schema import refuse_misfits
from ..io.tensors import Tree
from ..training import budget
from .environments import Addressed, Environment, same
from .rollout_log import RolloutLog, stateful
from .store import ENGINES, policy_arguments

Reporter = Callable[[TrainingClock, dict[str, float]], None]


@dataclass(frozen=True)
class Arm:
    """What decides a training of a policy; equal arms end bit for bit equal where the environment replays.

    ``steps`` are those of the environment; they are rounded up to whole rollouts. ``hidden`` are keys of the
    observation that the policy does not see, and ``net`` the sizes of its hidden layers (None: the usual ones).
    """

    environment: Environment
    steps: int
    seed: int = 0
    engine: str = "ppo"
    net: tuple[int, ...] | None = None
    hidden: tuple[str, ...] = ()
    environments: int = 8
    rollout: int = 128
    batch_size: int = 256
    epochs: int = 10
    lr: float = 1e-3
    clip: float = 0.5
    device: str = "cpu"

    @property
    def per_rollout(self) -> int:
        """Environment steps of a rollout."""
        return self.environments * self.rollout

    @property
    def rollouts(self) -> int:
        """Rollouts of the training."""
        return -(-self.steps // self.per_rollout)

    @property
    def per_epoch(self) -> int:
        """Optimizer steps of the engine's epoch over a rollout."""
        return -(-self.per_rollout // min(self.batch_size, self.per_rollout))

    @property
    def gradient_steps(self) -> int:
        """Optimizer steps of the engine in the training."""
        return self.epochs * self.per_epoch * self.rollouts if self.engine == "ppo" else self.rollouts

    def matched_epochs(self, updates: int) -> int:
        """Epochs with which the engine takes at least so many gradient steps; the usual ones where it has none."""
        return -(-updates // (self.per_epoch * self.rollouts)) if self.engine == "ppo" else self.epochs

    def vector(self) -> DummyVecEnv:
        """The environments, whose episodes have addressed seeds."""
        return DummyVecEnv([partial(self._copy, index) for index in range(self.environments)])

    def _copy(self, index: int) -> Addressed:
        return Addressed(self.environment.make(), self.seed, index)

    def build(self, vector: DummyVecEnv) -> OnPolicyAlgorithm:
        """The model of stable-baselines3, not trained yet."""
        policy, options = policy_arguments(vector.observation_space, self.hidden, self.net)
        settings: dict[str, Any] = {
            "n_steps": self.rollout,
            "learning_rate": self.lr,
            "gamma": 0.99,
            "ent_coef": 0.01,
            "max_grad_norm": self.clip,
            "gae_lambda": 0.95,
            "seed": self.seed % 2**32,
            "device": self.device,
            "policy_kwargs": options,
        }
        if self.engine == "ppo":
            settings |= {"batch_size": min(self.batch_size, self.per_rollout), "n_epochs": self.epochs}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a last batch that is smaller
            model = ENGINES[self.engine](policy, vector, **settings)
        model.set_logger(Logger(folder=None, output_formats=[]))
        return model


@dataclass
class Trained:
    """A finished training: its model, the lines of its log, its steps and its time."""

    model: OnPolicyAlgorithm
    history: list[dict[str, Any]]
    steps: int
    updates: int
    seconds: float

    @property
    def policy(self) -> ActorCriticPolicy:
        """The policy that was trained."""
        return self.model.policy


@dataclass
class Place:
    """Where a training is saved, how often, and who hears of it."""

    folder: Path | None = None
    save_seconds: float = 30.0
    save_steps: int | None = None
    replays: bool = True
    progress: Reporter | None = None
    warn: Callable[[str], None] = print
    callbacks: Sequence[BaseCallback] = field(default=())


class _SpentError(Exception):
    """The budget ends a training between two rollouts."""


class _Border(RolloutLog):
    """Writes the log and checkpoints between two rollouts, before any other callback, and seeds the next rollout."""

    def __init__(self, arm: Arm, vector: DummyVecEnv, place: Place) -> None:
        super().__init__(place.folder, place.callbacks)
        self.arm, self.vector, self.place = arm, vector, place
        meter = budget.active()
        self.allowance = None if meter is None else meter.allowance(place.folder, arm)
        self.seconds, self.begun, self.saved_at, self.saved_steps = 0.0, time.monotonic(), time.monotonic(), 0

    def _on_rollout_start(self) -> None:
        steps, ended = self.model.num_timesteps, bool(self.look)
        super()._on_rollout_start()
        if ended:
            overdue = time.monotonic() - self.saved_at >= self.place.save_seconds
            if steps - self.saved_steps >= self.place.save_steps if self.place.save_steps else overdue:
                self.save()
        if self.allowance is not None and (why := self.allowance.over(self.passes(), 0, 0.0)):
            self.save()
            raise _SpentError(f"{steps:,} steps of the environment in place of {self.arm.steps:,}: {why}")
        key = rng.seed(self.arm.seed, "rollout", steps)
        random.seed(key)
        np.random.seed(key % 2**32)  # stable-baselines3 draws from it
        torch.manual_seed(key)

    def passes(self) -> float:
        """The passes so far: a step of the environment counts 1, a row of a gradient step 3."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        return float(self.model.num_timesteps + 3 * gradient_steps(self.model) * self.arm.batch_size)

    def report(self, entry: dict[str, Any]) -> None:
        if self.place.progress:
            clock = TrainingClock(epoch=entry["epoch"], epochs=self.arm.rollouts, per_epoch=self.arm.per_rollout)
            value = entry["control"]["return"]
            figures = {} if value is None else {"return": value}
            self.place.progress(clock.at(min(entry["step"], clock.length) - 1), figures)

    def save(self) -> None:
        """Write a checkpoint.

        Raises:
            NotFiniteError: a weight is not a number; the last checkpoint stays.
        """
        folder, model = self.place.folder, self.model
        require_finite(model.policy, model.num_timesteps)
        if folder is None or self.log is None:
            return
        self.log.flush()
        seconds = self.seconds + time.monotonic() - self.begun
        checkpoint.write(
            folder / "checkpoints",
            {
                "policy": model.policy.state_dict(),
                "optimizer": model.policy.optimizer.state_dict(),
                "episodes": [env.position() for env in self.addressed()],
                "observation": _tree(model._last_obs),
                "starts": torch.from_numpy(np.asarray(model._last_episode_starts)),
                "callbacks": [one.state_tree() for one in stateful(self.place.callbacks)],
                "progress": {
                    "arm": repr(self.arm),
                    "steps": model.num_timesteps,
                    "updates": model._n_updates,
                    "seconds": seconds,
                    "log": self.log.to_tensor(),
                },
            },
        )
        self.saved_at, self.saved_steps = time.monotonic(), model.num_timesteps

    def addressed(self) -> list[Addressed]:
        """The environments of the training."""
        return [env for env in self.vector.envs if isinstance(env, Addressed)]


def _tree(observation: Any) -> Tree:
    """An observation of all environments as tensors."""
    if isinstance(observation, dict):
        return {key: torch.from_numpy(np.array(part)) for key, part in observation.items()}
    return torch.from_numpy(np.array(observation))


def require_finite(policy: nn.Module, steps: int) -> None:
    """Refuse to go on with a weight that is no number.

    Raises:
        NotFiniteError: there is one.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in policy.parameters()):
        raise NotFiniteError(
            f"a weight is nan or infinite after {steps} steps; nothing was saved over the last checkpoint; lower --lr"
        )


def train(arm: Arm, place: Place, begin: nn.Module | None = None) -> Trained:
    """Train a policy, from wherever it was cut.

    Args:
        arm: what decides the training.
        place: where it is saved, and what listens.
        begin: the policy whose weights it begins with; None for fresh ones.

    Raises:
        NotFiniteError: a weight, an observation or a reward is not finite.
        CheckpointError: no checkpoint is intact, or it is another training's.
    """
    vector = arm.vector()
    model = arm.build(vector)
    if begin is not None:
        model.policy.load_state_dict(begin.state_dict())
    border = _Border(arm, vector, place)
    if place.folder is not None:
        place.folder.mkdir(parents=True, exist_ok=True)
        restore(model, border)
    callbacks = CallbackList([border, *place.callbacks])
    if model.num_timesteps < arm.steps:
        try:  # the whole length is given, as schedules are by the share of it that is done
            left = arm.steps - model.num_timesteps
            model.learn(left, callbacks, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        except _SpentError as over:
            assert border.allowance is not None
            border.allowance.meter.cut(f"{border.allowance.key}: {over}".removeprefix(".: "))
            callbacks.on_training_end()
        except ValueError:  # what a distribution of nan raises
            require_finite(model.policy, model.num_timesteps)
            raise
        border.save()
    if border.allowance is not None:
        border.allowance.spend(border.passes())
    seconds = border.seconds + time.monotonic() - border.begun
    vector.close()
    return Trained(model, border.history, model.num_timesteps, gradient_steps(model), seconds)


def gradient_steps(model: OnPolicyAlgorithm) -> int:
    """The optimizer's steps so far."""
    if not isinstance(model, PPO):
        return model._n_updates
    return model._n_updates * -(-model.n_steps * model.n_envs // model.batch_size)


def restore(model: OnPolicyAlgorithm, border: _Border) -> None:
    """Go to the newest intact checkpoint, if there is one.

    Raises:
        CheckpointError: none is intact, or it belongs to another training.
    """
    place, log = border.place, border.log
    assert place.folder is not None
    assert log is not None
    newest = checkpoint.newest(place.folder / "checkpoints", warn=place.warn)
    if newest is None:
        log.path.unlink(missing_ok=True)
        return
    saved = checkpoint.read(newest)
    with refuse_misfits(newest, "start again in a new --out"):
        progress = saved["progress"]
        if progress["arm"] != repr(border.arm):
            raise ValueError("it is of another training")
        model.policy.load_state_dict(saved["policy"])
        model.policy.optimizer.load_state_dict(saved["optimizer"])
        model.num_timesteps, model._n_updates = progress["steps"], progress["updates"]
        model._update_current_progress_remaining(model.num_timesteps, border.arm.steps)
        border.seconds, border.saved_steps = progress["seconds"], model.num_timesteps
        border.history = log.restore(progress["log"].numpy().tobytes(), place.warn)
        for one, tree in zip(stateful(place.callbacks), saved["callbacks"], strict=True):
            one.load_tree(tree)
        _restore_episodes(model, border, saved)


def _restore_episodes(model: OnPolicyAlgorithm, border: _Border, saved: Mapping[str, Any]) -> None:
    """Play the running episodes again; begin the next ones where an environment does not replay."""
    envs, saved_episodes = border.addressed(), saved["episodes"]
    if border.place.replays:
        for number, (env, position) in enumerate(zip(envs, saved_episodes, strict=True)):
            border.vector._save_obs(number, env.go_to(position))
        observation: Any = border.vector._obs_from_buf()
        if isinstance(model.env, VecTransposeImage):
            observation = model.env.transpose_observations(observation)
        if same(_tree(observation), saved["observation"]):
            model._last_obs, model._last_episode_starts = observation, saved["starts"].numpy()
            return
        border.place.warn(f"{border.arm.environment}: a running episode did not replay; the next ones begin")
    for env, position in zip(envs, saved_episodes, strict=True):
        env.episode = position["episode"]
    assert model.env is not None
    model._last_obs = model.env.reset()  # type: ignore[assignment]
    model._last_episode_starts = np.ones(len(envs), dtype=bool)
