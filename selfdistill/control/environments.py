"""Environments of gymnasium: made by their id, checked before training, and reset by addressed seeds.

An episode starts from a seed that is a function of its address (run, use, environment, number), and its actions are
remembered while it runs. So a run that was cut restores its episodes by playing them again.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from .. import rng
from ..errors import DataError, NotFiniteError, RecipeError, SelfdistillError
from ..io.expressions import nearest, one_line
from ..io.run_record import ENVIRONMENT
from ..models.registry import function_of, load_module

OWN, TEACHER = "observation", "teacher"  # keys of an observation whose teacher's view is a wrapper's
USES = ("training", "audit", "test")  # of seeds: no two uses ever share one
SMALLEST = 36  # pixels of an image that the convolutions of stable-baselines3 can read
TRIALS, CHECKED = 4, 12  # episodes and steps of the trial before training
FRAMES_ID = "CartPoleFrames-v0"

Env = gym.Env[Any, Any]


def episode_seed(run: int, use: str, *address: int) -> int:
    """The seed of an episode; seeds of two uses are never equal, nor are (mostly) those of ``audit 1`` and ``audit 2``.

    >>> episode_seed(0, "test", 3) % 3, episode_seed(0, "test", 3) == episode_seed(0, "test", 4)
    (2, False)
    """
    return rng.seed(run, "episode", use, *address) % (2**31 // 3) * 3 + USES.index(use.partition(" ")[0])


@dataclass(frozen=True)
class Environment:
    """An environment by its id.

    Args:
        module: what registers it when it is imported; empty for one of gymnasium's own.
        id: as gymnasium knows it.
        sees: what the teacher alone sees: keys of a Dict observation, comma-separated, or ``module:Class`` of a
            `gymnasium.ObservationWrapper`.
    """

    module: str
    id: str
    sees: str | None = None

    @classmethod
    def of(cls, data: str, sees: str | None = None) -> Environment:
        """The environment that ``gym:ID`` or ``gym:module:ID`` names."""
        module, _, name = data.removeprefix(ENVIRONMENT).rpartition(":")
        return cls(module, name, sees)

    def __str__(self) -> str:
        return f"{ENVIRONMENT}{self.module}:{self.id}" if self.module else f"{ENVIRONMENT}{self.id}"

    def code(self) -> list[tuple[str, str]]:
        """The modules that are run for it, each with a name in it; those of this package are left out."""
        wrapper = self.sees.rpartition(":")[::2] if self.sees and ":" in self.sees else ("", "")
        named = [(self.module, self.id), (wrapper[0], wrapper[1])]
        return [
            (place, name) for place, name in named if place and place.partition(".")[0] != __name__.partition(".")[0]
        ]

    def make(self, render: bool = False) -> Env:
        """A copy of the environment with the spaces that policies are trained on.

        Raises:
            DataError: there is none of this id, a package is missing, or it cannot be served.
        """
        if render:  # pictures need no screen, and pygame greets on the standard output
            for name, value in (("SDL_VIDEODRIVER", "dummy"), ("PYGAME_HIDE_SUPPORT_PROMPT", "1")):
                os.environ.setdefault(name, value)
        env = _made(self, "rgb_array" if render else None)
        _refuse_autoreset(self, env)
        if self.sees is not None and ":" in self.sees:
            env = _with_wrapper(env, self.sees)
        return Served(env, str(self))

    def hidden(self, space: spaces.Space[Any]) -> tuple[str, ...]:
        """The keys of an observation that the student does not see.

        Raises:
            DataError: a key is none of the observation's, or the student would see nothing.
        """
        if self.sees is None:
            return ()
        if ":" in self.sees:
            return (TEACHER,)
        if not isinstance(space, spaces.Dict):
            raise DataError(
                f"{self}: the observation is one {type(space).__name__} and has no key {self.sees!r}; give --sees "
                "module:Class of an ObservationWrapper whose view is the teacher's"
            )
        keys = tuple(key.strip() for key in self.sees.split(","))
        for key in keys:
            if key not in space.spaces:
                close = nearest(key, list(space.spaces))
                raise DataError(
                    f"{self}: the observation has no key {key!r}; "
                    + (f"nearest: {close}" if close else f"its keys: {', '.join(space.spaces)}")
                )
        if not set(space.spaces) - set(keys):
            raise DataError(f"{self}: --sees {self.sees} leaves the student no key; leave one of them out")
        return keys


def _made(environment: Environment, render_mode: str | None) -> Env:
    """The environment as gymnasium makes it; every fault in one line."""
    try:
        if environment.module:
            module = load_module(environment.module)
            if environment.id not in gym.registry and callable(vars(module).get("register_envs")):
                vars(module)["register_envs"]()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return gym.make(environment.id, render_mode=render_mode, disable_env_checker=True)
    except RecipeError as error:  # of the module
        raise DataError(f"{environment}: {error}") from error
    except gym.error.DeprecatedEnv as error:
        raise DataError(f"{environment} is deprecated: {one_line(error)}") from error
    except gym.error.UnregisteredEnv as error:
        raise DataError(_unknown(environment)) from error
    except gym.error.DependencyNotInstalled as error:
        raise DataError(f"{environment} needs a package that is not installed: {one_line(error)}") from error
    except ModuleNotFoundError as error:
        raise DataError(
            f"{environment} needs the package {error.name}; install it (pip install {error.name})"
        ) from error
    except Exception as error:  # an environment may raise whatever it likes
        raise DataError(f"{environment} cannot be made ({type(error).__name__}: {one_line(error)})") from error


def _unknown(environment: Environment) -> str:
    """What to say of an id that is not registered."""
    name = environment.id.rpartition("/")[2]
    same = [known for known in gym.registry if known.rpartition("-v")[0] == environment.id.rpartition("-v")[0]]
    close = ", ".join(same) or nearest(environment.id, list(gym.registry)) or nearest(name, list(gym.registry))
    where = f"{environment.module} registers no environment" if environment.module else "gymnasium knows no environment"
    other = "; environments of other packages: gym:module:ID, as gym:minigrid:MiniGrid-Empty-5x5-v0"
    return f"{where} {environment.id!r}{f'; nearest: {close}' if close else ''}{'' if environment.module else other}"


def _refuse_autoreset(environment: Environment, env: Any) -> None:
    """Refuse what is no single environment that its caller resets."""
    mode = (env.metadata or {}).get("autoreset_mode")
    layer = env
    while isinstance(layer, gym.Wrapper):
        mode = "SAME_STEP" if isinstance(layer, gym.wrappers.Autoreset) else mode
        layer = layer.env
    if isinstance(env.unwrapped, gym.vector.VectorEnv):
        raise DataError(f"{environment} is a vector of environments; give the id of a single one")
    if mode is not None:
        name = mode.name if isinstance(mode, Enum) else mode
        raise DataError(
            f"{environment} resets itself (autoreset mode {name}), which is not handled; give an environment that is "
            "reset by its caller"
        )


class _TwoViews(gym.ObservationWrapper[Any, Any, Any]):
    """An observation beside the one of a wrapper, which the teacher alone sees."""

    def __init__(self, env: Env, view: gym.ObservationWrapper[Any, Any, Any]) -> None:
        super().__init__(env)
        self.view = view
        self.observation_space = spaces.Dict({OWN: env.observation_space, TEACHER: view.observation_space})

    def observation(self, observation: Any) -> Any:
        return {OWN: observation, TEACHER: self.view.observation(observation)}


def _with_wrapper(env: Env, spec: str) -> Env:
    wrapper = function_of(spec)
    if not (isinstance(wrapper, type) and issubclass(wrapper, gym.ObservationWrapper)):
        raise DataError(f"--sees {spec} is no gymnasium.ObservationWrapper; give one, or keys of the observation")
    try:
        return _TwoViews(env, wrapper(env))
    except Exception as error:  # the wrapper's own
        raise DataError(f"--sees {spec} cannot be made ({type(error).__name__}: {one_line(error)})") from error


class Served(gym.ObservationWrapper[Any, Any, Any]):
    """An environment in the spaces that policies are trained on; it refuses all others.

    Parts of a Dict observation that no policy reads, such as texts, are left out, and images that are too small for
    convolutions become vectors.

    Raises:
        DataError: observations or actions of this kind are not served.
    """

    def __init__(self, env: Env, name: str) -> None:
        super().__init__(env)
        self.name, space = name, env.observation_space
        self.seed: int | None = None
        self.steps = 0
        self.left_out: tuple[str, ...] = ()
        _require_actions(name, env.action_space)
        if isinstance(space, spaces.Dict):
            parts = {key: _served(part) for key, part in space.spaces.items()}
            self.left_out = tuple(key for key, part in parts.items() if part is None)
            self.observation_space = spaces.Dict({key: part for key, part in parts.items() if part is not None})
            served = bool(self.observation_space.spaces)
        else:
            self.observation_space = _served(space) or space
            served = _served(space) is not None
        if not served:
            raise DataError(
                f"{name}: an observation of {one_line(space, 60)} is not served; give Box, Discrete (from 0), "
                "MultiDiscrete, MultiBinary or a Dict of these, by a gymnasium.ObservationWrapper"
            )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode.

        Raises:
            DataError: the environment fails.
        """
        self.seed, self.steps = seed, 0
        with self._named():
            return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step.

        Raises:
            DataError: the environment fails.
        """
        self.steps += 1
        with self._named():
            return super().step(action)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Whatever an environment raises becomes one line, with the episode in which it happens."""
        try:
            yield
        except SelfdistillError:
            raise
        except Exception as error:
            where = f"step {self.steps} of an episode from seed {self.seed}"
            raise DataError(f"{self.name} fails at {where} ({type(error).__name__}: {one_line(error)})") from error

    def observation(self, observation: Any) -> Any:
        """The observation without texts, small images as vectors.

        Raises:
            NotFiniteError: a number of it is none.
        """
        if isinstance(self.observation_space, spaces.Dict):
            return {key: self._part(observation[key], part, key) for key, part in self.observation_space.spaces.items()}
        return self._part(observation, self.observation_space)

    def _part(self, value: Any, space: spaces.Space[Any], key: str = "") -> Any:
        value = np.asarray(value)
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise NotFiniteError(f"{self.name}: an observation{f' {key!r}' if key else ''} is not finite")
        return value.reshape(space.shape) if isinstance(space, spaces.Box) else value


def _served(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """The space that a policy reads an observation in, or one of its keys; None if there is none."""
    if isinstance(space, spaces.Box):
        if space.dtype == np.uint8 and len(space.shape) == 3 and sorted(space.shape)[1] < SMALLEST:
            return spaces.Box(space.low.ravel(), space.high.ravel(), dtype=np.uint8)
        return space
    if isinstance(space, spaces.Discrete):
        return space if space.start == 0 else None
    if isinstance(space, spaces.MultiBinary):
        return space if len(space.shape) == 1 else None
    if isinstance(space, spaces.MultiDiscrete):
        return space if len(space.shape) == 1 and not np.any(space.start) else None
    return None


def _require_actions(name: str, space: spaces.Space[Any]) -> None:
    """Refuse actions that have no head."""
    served = isinstance(space, spaces.Discrete) and space.start == 0
    if isinstance(space, spaces.Box):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise DataError(f"{name}: its actions have no finite bounds; wrap it by gymnasium.wrappers.RescaleAction")
        served = space.dtype is not None and space.dtype.kind == "f"
    if isinstance(space, spaces.MultiDiscrete):
        served = len(space.shape) == 1 and not np.any(space.start)
    if served:
        return
    raise DataError(
        f"{name}: actions of {one_line(space, 60)} are not served; give Discrete or MultiDiscrete (from 0) or a Box of "
        "real numbers, by a gymnasium.ActionWrapper"
    )


class Addressed(gym.Wrapper[Any, Any, Any, Any]):
    """Every episode starts from its addressed seed, and its actions are remembered until it ends.

    Args:
        env: the environment.
        run: the run's seed.
        index: which of the environments that are trained on it is.
    """

    def __init__(self, env: Env, run: int, index: int) -> None:
        super().__init__(env)
        self.run, self.index, self.episode = run, index, -1
        self.actions: list[Any] = []
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; a given seed is ignored."""
        self.episode, self.actions, self.total = self.episode + 1, [], 0.0
        return self.env.reset(seed=self._seed(), options=options)

    def _seed(self) -> int:
        return episode_seed(self.run, "training", self.index, self.episode)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step; the last one of an episode tells its return and length in ``info["episode"]``.

        Raises:
            NotFiniteError: an observation or the reward is not finite.
        """
        self.actions.append(np.array(action))
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        if not np.isfinite(self.total):
            raise NotFiniteError(f"{self.get_wrapper_attr('name')}: a reward is not finite")
        if terminated or truncated:
            info = {**info, "episode": {"r": self.total, "l": len(self.actions), "t": 0.0}}
        return observation, reward, terminated, truncated, info

    def position(self) -> dict[str, Any]:
        """Where the running episode is: its number and its actions so far."""
        actions = torch.from_numpy(np.stack(self.actions)) if self.actions else None
        return {"episode": self.episode, "actions": actions}

    def go_to(self, position: Mapping[str, Any]) -> Any:
        """Play an episode again up to a position, and return its last observation."""
        self.episode = position["episode"] - 1
        observation, _ = self.reset()
        for action in () if position["actions"] is None else position["actions"].numpy():
            observation = self.step(action)[0]
        return observation


def same(a: Any, b: Any) -> bool:
    """Whether two observations are equal bit for bit."""
    if isinstance(a, Mapping):
        return all(same(a[key], b[key]) for key in a)
    return np.array_equal(np.asarray(a), np.asarray(b))


def replays(environment: Environment, seed: int) -> bool:
    """Whether an episode that is played again from its seed is the same; asked of two copies, for a few steps.

    Raises:
        DataError: the environment fails while it is played.
        NotFiniteError: an observation or a reward is not finite.
    """
    first, second = environment.make(), environment.make()
    try:
        first.action_space.seed(seed % 2**31)
        for episode in range(TRIALS):
            second.reset(seed=episode_seed(seed, "training", 1, episode))  # what it leaves behind must not matter
            second.step(first.action_space.sample())
            start = episode_seed(seed, "training", 2, episode)
            pairs = [(first.reset(seed=start)[0], second.reset(seed=start)[0])]
            for _ in range(CHECKED):
                action = first.action_space.sample()
                ours, theirs = first.step(action), second.step(action)
                if not np.isfinite(float(ours[1])):
                    raise NotFiniteError(f"{environment}: a reward is not finite")
                pairs += [(ours[0], theirs[0]), (ours[1], theirs[1])]
                if ours[2] or ours[3] or theirs[2] or theirs[3]:
                    break
            if not all(same(a, b) for a, b in pairs):
                return False
        return True
    except SelfdistillError:
        raise
    except Exception as error:  # an environment may raise whatever it likes
        raise DataError(
            f"{environment} fails while it is played ({type(error).__name__}: {one_line(error)})"
        ) from error
    finally:
        first.close()
        second.close()


class CartPoleFrames(gym.ObservationWrapper[Any, Any, Any]):
    """CartPole whose student sees positions alone: those of two frames, from which it must infer the velocities.

    The observation has the keys ``state`` (all four numbers) and ``frames`` (cart position and pole angle now and one
    step before).
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(CartPoleEnv(render_mode=render_mode))
        state = self.env.observation_space
        assert isinstance(state, spaces.Box)
        half = [0, 2, 0, 2]
        frames = spaces.Box(state.low[half], state.high[half], dtype=np.float32)
        self.observation_space = spaces.Dict({"frames": frames, "state": state})
        self.before: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode: both frames are the first one."""
        self.before = None
        return super().reset(seed=seed, options=options)

    def observation(self, observation: Any) -> Any:
        now = observation[[0, 2]]
        frames = np.concatenate([now, now if self.before is None else self.before])
        self.before = now
        return {"frames": frames, "state": observation}


if FRAMES_ID not in gym.registry:
    gym.register(FRAMES_ID, entry_point=f"{__name__}:CartPoleFrames", max_episode_steps=500)
