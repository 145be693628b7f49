"""Test episodes are fresh, addressed and paired, and their number follows from their spread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("stable_baselines3")
from selfdistill.control import episodes
from selfdistill.control.environments import Environment, episode_seed
from selfdistill.control.episodes import Player, play_test
from tests.control.test_training import CARTPOLE, SMALL

POLICY = SMALL.build(SMALL.vector()).policy


@pytest.mark.parametrize("greedy", [True, False])
def test_an_episode_does_not_depend_on_how_many_are_played(greedy: bool) -> None:
    player = Player(CARTPOLE, 3, greedy)
    whole = player.play(POLICY, "test", 20)
    assert np.array_equal(whole.returns[:5], player.play(POLICY, "test", 5).returns)
    assert np.array_equal(whole.returns[16:], player.play(POLICY, "test", 4, first=16).returns)
    assert whole.seeds == tuple(episode_seed(3, "test", n) for n in range(20))
    assert np.array_equal(whole.returns, whole.lengths)  # a reward of 1 a step


def test_audits_and_runs_have_episodes_of_their_own() -> None:
    player = Player(CARTPOLE, 3)
    assert not set(player.play(POLICY, "test", 5).seeds) & set(player.play(POLICY, "audit", 5).seeds)
    assert Player(CARTPOLE, 4).play(POLICY, "test", 5).seeds != player.play(POLICY, "test", 5).seeds


def test_a_policy_ties_itself_on_the_same_episodes() -> None:
    first, second = play_test(Player(CARTPOLE, 0, greedy=False), [POLICY, POLICY], 6)
    assert np.array_equal(first.returns, second.returns)


def test_more_episodes_are_planned_where_returns_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "PILOT", 16)
    monkeypatch.setattr(episodes, "MOST", 40)
    (spread,) = play_test(Player(CARTPOLE, 0, greedy=False), [POLICY], None)
    assert len(spread.returns) == 40
    steady = Player(Environment.of("gym:tests.control.worlds:Plain-v0"), 0)
    arm = replace(SMALL, environment=steady.environment)
    (even,) = play_test(steady, [arm.build(arm.vector()).policy], None)
    assert len(even.returns) <= 40


def test_an_episode_without_an_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes, "LONGEST", 5)
    played = Player(CARTPOLE, 0).play(POLICY, "test", 3)
    assert played.cut == 3
    assert played.lengths.tolist() == [5, 5, 5]
