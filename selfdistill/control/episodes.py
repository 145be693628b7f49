"""Fresh episodes of a policy: their returns for audits and tests, and the frames of one.

Seeds are addressed by the run and the use of the episodes, so that policies are compared on the same episodes, and none
of them was trained on. Episodes are played in blocks of a fixed size: what an episode draws depends on its block alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from .. import rng
from ..evaluation.statistics import interquartile_mean, interval, rows_needed
from .environments import OWN, Environment, episode_seed

BLOCK = 16  # episodes that are played side by side
LONGEST = 10_000  # steps after which an episode is cut, where its environment sets no limit
PILOT, MOST = 48, 400  # episodes that are always played, and the most that are planned
VISIBLE = 0.1  # of the mean return: the change that a planned test shall show


@dataclass(frozen=True)
class Episodes:
    """Episodes that were played: seed, return and length of each; ``cut`` of them had no end."""

    seeds: tuple[int, ...]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    cut: int = 0

    def __add__(self, others: Episodes) -> Episodes:
        return Episodes(
            self.seeds + others.seeds,
            np.concatenate([self.returns, others.returns]),
            np.concatenate([self.lengths, others.lengths]),
            self.cut + others.cut,
        )

    def figures(self) -> dict[str, float | None]:
        """Mean return with half of its 95 % interval (Student), interquartile mean, and mean length."""
        mean, half = interval(self.returns.tolist())
        return {
            "return": mean,
            "half": half if np.isfinite(half) else None,
            "iqm": interquartile_mean(self.returns),
            "length": float(self.lengths.mean()),
        }


@dataclass(frozen=True)
class Player:
    """How episodes are played: the environment, the run's seed, and whether actions are the most probable ones."""

    environment: Environment
    run: int
    greedy: bool = True

    def play(self, policy: BasePolicy, use: str, count: int, first: int = 0) -> Episodes:
        """Play episodes of a use, from a number on; ``first`` is a multiple of `BLOCK`.

        Args:
            policy: a policy of stable-baselines3.
            use: ``audit`` or ``test``.
            count: how many.
            first: the number of the first one.
        """
        assert first % BLOCK == 0
        envs = [self.environment.make() for _ in range(BLOCK)]
        parts = []
        for start in range(first, first + count, BLOCK):
            seeds = [episode_seed(self.run, use, number) for number in range(start, start + BLOCK)]
            with torch.random.fork_rng(devices=[]):
                rng.reseed(torch.device("cpu"), self.run, "acts", use, start)
                parts.append(self._block(policy, envs, seeds, min(BLOCK, first + count - start)))
        for env in envs:
            env.close()
        total = parts[0]
        for part in parts[1:]:
            total += part
        return total

    def _block(self, policy: BasePolicy, envs: Sequence[Any], seeds: Sequence[int], count: int) -> Episodes:
        rows = [env.reset(seed=seed)[0] for env, seed in zip(envs, seeds, strict=True)]
        returns, lengths, running = np.zeros(count), np.zeros(count, dtype=np.int64), set(range(count))
        while running and lengths.max() < LONGEST:
            actions, _ = policy.predict(stacked(rows, policy.observation_space), deterministic=self.greedy)
            for i in tuple(running):
                rows[i], reward, terminated, truncated, _ = envs[i].step(actions[i])
                returns[i] += float(reward)
                lengths[i] += 1
                if terminated or truncated:
                    running.remove(i)
        return Episodes(tuple(seeds[:count]), returns, lengths, len(running))

    def frames(self, policy: BasePolicy, use: str, number: int, most: int = LONGEST) -> list[NDArray[np.uint8]]:
        """The pictures of an episode, (height, width, 3) each; none where the environment draws none.

        Raises:
            DataError: a package that draws them is missing.
        """
        env = self.environment.make(render=True)
        pictures = []
        try:
            row, _ = env.reset(seed=episode_seed(self.run, use, number))
            for _ in range(most):
                pictures.append(env.render())
                actions, _ = policy.predict(stacked([row], policy.observation_space), deterministic=self.greedy)
                row, _, terminated, truncated, _ = env.step(actions[0])
                if terminated or truncated:
                    break
        finally:
            env.close()
        return [np.asarray(picture, dtype=np.uint8) for picture in pictures if picture is not None]


def stacked(rows: Sequence[Any], space: spaces.Space[Any]) -> Any:
    """Observations as one batch of what a policy's space has; a policy of a Dict reads a single one as its own key."""
    if isinstance(space, spaces.Dict):
        return {
            key: np.stack([np.asarray(row[key] if isinstance(row, dict) else row) for row in rows])
            for key in space.spaces
            if isinstance(rows[0], dict) or key == OWN
        }
    return np.stack([np.asarray(row) for row in rows])


def play_test(player: Player, policies: Sequence[BasePolicy], count: int | None) -> list[Episodes]:
    """Play the same test episodes with each policy; where no number is given, it is planned by the spread of a pilot.

    Args:
        player: how they are played.
        policies: the first one is compared with the others.
        count: of episodes.
    """
    played = [player.play(policy, "test", count or PILOT) for policy in policies]
    if count is not None:
        return played
    first = played[0].returns
    rest = [first - other.returns for other in played[1:]] or [first]
    spread = max(float(np.std(differences, ddof=1)) for differences in rest)
    visible = max(VISIBLE * abs(float(first.mean())), 1e-9)
    more = min(MOST, rows_needed(spread, visible)) - PILOT
    if more <= 0:
        return played
    return [own + player.play(policy, "test", more, PILOT) for own, policy in zip(played, policies, strict=True)]
