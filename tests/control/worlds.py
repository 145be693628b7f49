"""Small environments with a fault or a need each, registered when this module is imported."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

COUNT = spaces.Box(0.0, 1.0, (2,), np.float32)


class World(gym.Env[Any, Any]):
    """Ten steps of random numbers; which fault it has is an argument."""

    action_space: spaces.Space[Any] = spaces.Discrete(2)
    observation_space: spaces.Space[Any] = COUNT

    def __init__(
        self,
        observation: spaces.Space[Any] = COUNT,
        action: spaces.Space[Any] | None = None,
        fault: str = "",
        render_mode: str | None = None,
    ) -> None:
        self.observation_space, self.action_space, self.fault = observation, action or spaces.Discrete(2), fault
        self.render_mode, self.step_number, self.left_behind = render_mode, 0, 0
        if fault == "autoreset":
            self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def _look(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        seen = self.observation_space.sample()
        if self.fault == "nan":
            seen = seen * np.float32("nan")
        if self.fault == "unsteady":
            self.left_behind += 1
            seen = np.full(2, self.left_behind / 1e6, np.float32)
        return seen

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.fault == "raises" and self.step_number == 3:
            raise ZeroDivisionError("of its own")
        self.step_number += 1
        reward = float("inf") if self.fault == "reward" else float(np.sum(action))
        return self._look(), reward, self.step_number >= 10, False, {}


class Doubled(gym.ObservationWrapper[Any, Any, Any]):
    """What a teacher sees: the observation twice."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (8,), np.float32)

    def observation(self, observation: Any) -> Any:
        return np.concatenate([observation, observation])


KINDS: dict[str, dict[str, Any]] = {
    "Plain": {},
    "Nan": {"fault": "nan"},
    "Reward": {"fault": "reward"},
    "Raises": {"fault": "raises"},
    "Unsteady": {"fault": "unsteady"},
    "Autoreset": {"fault": "autoreset"},
    "Text": {"observation": spaces.Text(5)},
    "Tuple": {"observation": spaces.Tuple((COUNT, COUNT))},
    "DictText": {"observation": spaces.Dict({"text": spaces.Text(5), "numbers": COUNT})},
    "Image": {"observation": spaces.Box(0, 255, (40, 40, 3), np.uint8)},
    "SmallImage": {"observation": spaces.Box(0, 255, (7, 7, 3), np.uint8)},
    "Unbounded": {"action": spaces.Box(-np.inf, np.inf, (2,), np.float32)},
    "Binary": {"action": spaces.MultiBinary(3)},
    "FromOne": {"action": spaces.Discrete(3, start=1)},
    "Several": {"action": spaces.MultiDiscrete([2, 3])},
    "Continuous": {"action": spaces.Box(-1.0, 1.0, (2,), np.float32)},
}

for name, options in KINDS.items():
    if f"{name}-v0" not in gym.registry:
        gym.register(f"{name}-v0", entry_point=f"{__name__}:World", kwargs=options)
