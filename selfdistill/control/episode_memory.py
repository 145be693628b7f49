"""The memory of finished episodes: observations, actions, and the discounted return that followed each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.step import Rows
from ..io.checkpoint import Tree

FIELDS = ("x", "y", "returns")


class EpisodeMemory:
    """The last finished episodes of several environments.

    Args:
        capacity: environment steps that are kept; the oldest leave first.
        discount: of rewards, per step.
        environments: how many are filled side by side.
    """

    def __init__(self, capacity: int, discount: float, environments: int) -> None:
        self.capacity, self.discount = capacity, discount
        self._rows: dict[str, Tensor] = {}
        self._running: list[dict[str, Tensor]] = [{} for _ in range(environments)]

    def __len__(self) -> int:
        return len(self._rows["returns"]) if self._rows else 0

    def add(self, rollout: Any, ended: np.ndarray[Any, Any], x: Tensor, squashed: bool = False) -> None:
        """Take in a rollout of stable-baselines3.

        Args:
            rollout: its buffer, before the update: rewards and episode starts (steps, environments), and actions.
            ended: whether the episode of each environment ended with the last step.
            x: flat observations, (steps x environments, width), step by step.
            squashed: whether actions went through a tanh; those before it are stored, as the policy is normal there.
        """
        starts = np.concatenate([rollout.episode_starts[1:], np.asarray(ended)[None]]).astype(bool)
        steps, environments = starts.shape
        rewards = torch.as_tensor(rollout.rewards, dtype=torch.float32)
        actions = torch.as_tensor(rollout.actions).reshape(steps, environments, -1)
        actions = actions.clamp(-1.0 + 1e-6, 1.0 - 1e-6).atanh() if squashed else actions
        x = x.reshape(steps, environments, -1)
        finished: list[dict[str, Tensor]] = []
        for place in range(environments):
            before, begin = self._running[place], 0
            for end in np.flatnonzero(starts[:, place]).tolist():
                cut = slice(begin, end + 1)
                episode = _longer(before, x[cut, place], actions[cut, place], rewards[cut, place])
                finished.append(self._with_returns(episode))
                before, begin = {}, end + 1
            rest = slice(begin, steps)
            self._running[place] = _longer(before, x[rest, place], actions[rest, place], rewards[rest, place])

        if finished:
            kept = [self._rows, *finished] if self._rows else finished
            self._rows = {name: torch.cat([rows[name] for rows in kept])[-self.capacity :].clone() for name in FIELDS}

    def _with_returns(self, episode: Mapping[str, Tensor]) -> dict[str, Tensor]:
        rewards = episode["rewards"].double().numpy()
        returns, following = np.empty_like(rewards), 0.0
        for step in range(len(rewards) - 1, -1, -1):
            following = rewards[step] + self.discount * following
            returns[step] = following
        return {"x": episode["x"], "y": episode["y"], "returns": torch.as_tensor(returns, dtype=torch.float32)}

    def draw(self, count: int, draws: torch.Generator) -> Rows:
        """So many rows, drawn evenly with replacement; discrete actions of one dimension are (rows,)."""
        picked = torch.randint(len(self), (count,), generator=draws)
        x, y, returns = (self._rows[name][picked] for name in FIELDS)
        return Rows(
            x, y.squeeze(-1) if y.shape[-1] == 1 and not y.is_floating_point() else y, extra={"returns": returns}
        )

    def state_tree(self) -> Tree:
        """The memory as tensors."""
        return {"rows": dict(self._rows), "running": [dict(running) for running in self._running]}

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Take the memory from tensors."""
        self._rows, self._running = dict(tree["rows"]), [dict(running) for running in tree["running"]]


def _longer(episode: Mapping[str, Tensor], x: Tensor, y: Tensor, rewards: Tensor) -> dict[str, Tensor]:
    """An episode with more steps."""
    more = {"x": x, "y": y, "rewards": rewards}
    return {name: torch.cat([episode[name], rows]) if episode else rows.clone() for name, rows in more.items()}
