"""The memory of finished episodes, against returns computed by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from selfdistill.control import SelfDistil, self_imitation
from selfdistill.control.episode_memory import EpisodeMemory
from tests.control.common import environments, make


def rollout(rewards: Any, starts: Any) -> Any:
    """A rollout whose observation and action are the number of the step."""
    rewards, starts = np.asarray(rewards, np.float32), np.asarray(starts)
    numbers = np.arange(rewards.size).reshape(*rewards.shape, 1)
    return SimpleNamespace(rewards=rewards, episode_starts=starts, actions=numbers)


def x_of(one: Any, offset: int = 0) -> torch.Tensor:
    return torch.as_tensor(one.actions.reshape(-1, 1) + offset).float()


def content(memory: EpisodeMemory) -> list[tuple[float, int, float]]:
    rows = memory.state_tree()["rows"]
    return [
        (float(x), int(y), round(float(g), 5))
        for x, y, g in zip(rows["x"][:, 0], rows["y"][:, 0], rows["returns"], strict=True)
    ]


def test_returns_are_discounted_and_episodes_go_across_rollouts() -> None:
    memory = EpisodeMemory(99, 0.5, 2)
    first = rollout([[1, 10], [2, 20], [4, 40]], [[1, 1], [0, 0], [1, 0]])
    memory.add(first, np.array([False, False]), x_of(first))
    assert content(memory) == [(0.0, 0, 2.0), (2.0, 2, 2.0)]  # environment 0, steps 1 and 2
    second = rollout([[8, 80], [16, 160]], [[0, 0], [1, 1]])
    memory.add(second, np.array([True, False]), x_of(second, 100))
    assert content(memory)[2:] == [
        (4.0, 4, 8.0), (100.0, 0, 8.0),  # 4 + 8 / 2, 8
        (102.0, 2, 16.0),
        (1.0, 1, 40.0), (3.0, 3, 60.0), (5.0, 5, 80.0), (101.0, 1, 80.0),
    ]  # fmt: skip


def test_the_oldest_steps_leave_first_and_draws_are_of_an_address() -> None:
    memory = EpisodeMemory(3, 0.9, 1)
    for place in range(3):
        one = rollout([[1], [1]], [[1], [0]])
        memory.add(one, np.array([True]), x_of(one, 10 * place))
    assert [x for x, _, _ in content(memory)] == [11.0, 20.0, 21.0]
    drawn = [memory.draw(8, torch.Generator().manual_seed(4)).x for _ in range(2)]
    assert torch.equal(*drawn)
    many = memory.draw(3000, torch.Generator().manual_seed(5))
    counts = [int((many.x == x).sum()) for x in (11.0, 20.0, 21.0)]
    assert all(900 < count < 1100 for count in counts)
    assert many.y is not None
    assert many.y.shape == (3000,)


def test_a_memory_goes_on_from_its_state() -> None:
    whole, cut = EpisodeMemory(9, 0.5, 1), EpisodeMemory(9, 0.5, 1)
    begun, ended = rollout([[1], [2]], [[1], [0]]), rollout([[3], [4]], [[0], [0]])
    for memory in (whole, cut):
        memory.add(begun, np.array([False]), x_of(begun))
    again = EpisodeMemory(9, 0.5, 1)
    again.load_tree(cut.state_tree())
    for memory in (whole, again):
        memory.add(ended, np.array([True]), x_of(ended))
    assert content(whole) == content(again) == [(0.0, 0, 3.25), (1.0, 1, 4.5), (0.0, 0, 5.0), (1.0, 1, 4.0)]


@pytest.mark.parametrize(
    "action",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2), spaces.Box(-9, 9, (2, 2))],
    ids=str,
)
def test_the_memory_of_a_training_holds_what_was_done(action: Any) -> None:
    model = make(environments(action=action), gamma=0.9)
    callback = SelfDistil(self_imitation(steps=3))
    model.learn(96, callback=callback)
    assert callback.extra_steps == 9
    assert len(callback._memory) == 2 * 42  # six episodes of seven steps in each environment
    batch = callback._memory.draw(64, torch.Generator().manual_seed(0))
    reward = lambda actions: -actions.abs().flatten(1).sum(1)
    rows = callback._memory.state_tree()["rows"]
    last = torch.arange(6, 84, 7)
    torch.testing.assert_close(rows["returns"][last], reward(rows["y"][last].float()) + 0.7, atol=1e-4, rtol=0.0)
    assert bool(batch.extra["returns"].isfinite().all())


def test_squashed_actions_are_stored_before_the_tanh() -> None:
    options: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"net_arch": [8], "squash_output": True}}
    model = make(environments(action=spaces.Box(-2.0, 2.0, (2,))), **options)
    callback = SelfDistil(self_imitation(steps=1))
    model.learn(32, callback=callback)
    buffer, rows = model.rollout_buffer, callback._memory.state_tree()["rows"]
    assert np.abs(buffer.actions).max() <= 1.0
    stored = buffer.actions.reshape(-1, 2)[: len(rows["y"])]
    np.testing.assert_allclose(np.sort(rows["y"].tanh().numpy(), 0)[0], np.sort(stored, 0)[0], atol=0.3)
    assert float(rows["y"].abs().max()) > 0.0
