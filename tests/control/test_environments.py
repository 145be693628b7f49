"""Environments are made by id with one line a fault, and their episodes replay from addressed seeds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from selfdistill.errors import DataError, NotFiniteError, SelfdistillError

pytest.importorskip("stable_baselines3")
from gymnasium import spaces

from selfdistill.control.environments import USES, Addressed, Environment, episode_seed, replays, same

FRAMES = "gym:selfdistill.control.environments:CartPoleFrames-v0"
HERE = "gym:tests.control.worlds:"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("gym:Cartpole-v1", "gymnasium knows no environment 'Cartpole-v1'; nearest: CartPole-v"),
        ("gym:CartPole-v9", "nearest: CartPole-v0, CartPole-v1"),
        ("gym:Nope/Foo-v0", "environments of other packages: gym:module:ID"),
        ("gym:Taxi-v3", "is deprecated: .*Taxi-v4"),
        ("gym:nomodule:Foo-v0", "there is no module 'nomodule', installed or in the current folder"),
        ("gym:phys2d/CartPole-v1", r"needs the package jax; install it \(pip install jax\)"),
        ("gym:", "cannot be made"),
        (f"{HERE}Foo-v0", "tests.control.worlds registers no environment 'Foo-v0'"),
        (f"{HERE}Text-v0", "an observation of Text.* is not served"),
        (f"{HERE}Tuple-v0", "an observation of Tuple.* is not served"),
        (f"{HERE}Unbounded-v0", "its actions have no finite bounds"),
        (f"{HERE}Binary-v0", r"actions of MultiBinary\(3\) are not served"),
        (f"{HERE}FromOne-v0", r"actions of Discrete\(3, start=1\) are not served"),
        (f"{HERE}Autoreset-v0", r"resets itself \(autoreset mode NEXT_STEP\)"),
        (f"{HERE}Nan-v0", "an observation is not finite"),
        (f"{HERE}Reward-v0", "a reward is not finite"),
        (f"{HERE}Raises-v0", r"fails at step 4 of an episode from seed \d+ \(ZeroDivisionError: of its own\)"),
    ],
)
def test_a_fault_is_one_line_before_training(data: str, words: str) -> None:
    with pytest.raises(SelfdistillError, match=words) as raised:
        replays(Environment.of(data), 0)
    assert "\n" not in str(raised.value)


def test_parts_that_no_policy_reads_are_left_out_and_small_images_become_vectors() -> None:
    env = Environment.of(f"{HERE}DictText-v0").make()
    assert env.get_wrapper_attr("left_out") == ("text",)
    assert isinstance(env.observation_space, spaces.Dict)
    assert list(env.reset(seed=0)[0]) == ["numbers"]
    small = Environment.of(f"{HERE}SmallImage-v0").make()
    assert small.observation_space.shape == (147,)
    assert small.reset(seed=0)[0] in small.observation_space


def test_seeds_of_two_uses_are_never_equal() -> None:
    seeds = {use: {episode_seed(run, use, n) for run in range(5) for n in range(200)} for use in USES}
    assert [len(one) for one in seeds.values()] == [1000] * 3
    assert len(set.union(*seeds.values())) == 3000
    assert all(seed < 2**31 for seed in seeds["test"])


@pytest.mark.parametrize("data", ["gym:CartPole-v1", "gym:Pendulum-v1", FRAMES, f"{HERE}Plain-v0"])
def test_an_episode_replays(data: str) -> None:
    environment = Environment.of(data)
    assert replays(environment, 0)
    first, second = (Addressed(environment.make(), 3, 1) for _ in range(2))
    second.reset()
    second.step(second.action_space.sample())
    first.action_space.seed(0)
    for _ in range(2):
        observation, _ = first.reset()
    for _ in range(7):
        observation = first.step(first.action_space.sample())[0]
    assert same(observation, second.go_to(first.position()))
    action = first.action_space.sample()
    assert same(first.step(action)[0], second.step(action)[0])


def test_an_environment_that_keeps_something_does_not_replay() -> None:
    assert not replays(Environment.of(f"{HERE}Unsteady-v0"), 0)


def test_a_fault_within_an_episode_names_its_seed() -> None:
    env = Addressed(Environment.of(f"{HERE}Raises-v0").make(), 0, 0)
    env.reset()
    for _ in range(3):
        env.step(0)
    with pytest.raises(DataError, match=f"fails at step 4 of an episode from seed {episode_seed(0, 'training', 0, 0)}"):
        env.step(0)
    env = Addressed(Environment.of(f"{HERE}Reward-v0").make(), 0, 0)
    env.reset()
    with pytest.raises(NotFiniteError, match=re.escape(f"{HERE}Reward-v0: a reward is not finite")):
        env.step(0)


@pytest.mark.parametrize(
    ("data", "sees", "hidden"),
    [
        (FRAMES, "state", ("state",)),
        (FRAMES, None, ()),
        ("gym:CartPole-v1", "tests.control.worlds:Doubled", ("teacher",)),
    ],
)
def test_what_the_teacher_alone_sees(data: str, sees: str | None, hidden: tuple[str, ...]) -> None:
    environment = Environment.of(data, sees)
    env = environment.make()
    assert environment.hidden(env.observation_space) == hidden
    assert env.reset(seed=0)[0] in env.observation_space


@pytest.mark.parametrize(
    ("data", "sees", "words"),
    [
        (FRAMES, "stat", "no key 'stat'; nearest: state"),
        (FRAMES, "state,frames", "leaves the student no key"),
        ("gym:CartPole-v1", "state", "has no key 'state'; give --sees module:Class"),
        ("gym:CartPole-v1", "tests.control.worlds:World", "is no gymnasium.ObservationWrapper"),
        ("gym:CartPole-v1", "tests.control.worlds:Trebled", "no function 'Trebled'"),
    ],
)
def test_a_view_that_is_none_is_refused(data: str, sees: str, words: str) -> None:
    environment = Environment.of(data, sees)
    with pytest.raises(SelfdistillError, match=words):
        environment.hidden(environment.make().observation_space)


def test_frames_are_positions_now_and_before() -> None:
    env = Environment.of(FRAMES).make()
    first, _ = env.reset(seed=0)
    second = env.step(1)[0]
    assert np.array_equal(first["frames"], first["state"][[0, 2, 0, 2]])
    assert np.array_equal(second["frames"], np.concatenate([second["state"][[0, 2]], first["state"][[0, 2]]]))
