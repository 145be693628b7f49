"""A saved policy is safetensors and JSON, loads alone, and becomes a model of stable-baselines3 again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from selfdistill.errors import CheckpointError, DataError

pytest.importorskip("stable_baselines3")
import gymnasium as gym
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from selfdistill.control.environments import Environment
from selfdistill.control.store import describe_space, load_policy, read_space, save_policy, to_sb3
from selfdistill.control.training import Place, train
from tests.control.test_training import FRAMES, SMALL

SPACES = [
    spaces.Discrete(3),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(4),
    spaces.Box(0, 255, (3, 36, 36), np.uint8),
    spaces.Box(np.array([-np.inf, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Dict({"b": spaces.Box(-1.0, 1.0, (2,)), "a": spaces.Discrete(2)}),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_space_reads_back(space: spaces.Space[object]) -> None:
    assert read_space(describe_space(space)) == space


@pytest.mark.parametrize(
    ("data", "sees"),
    [
        ("gym:CartPole-v1", None),
        ("gym:Pendulum-v1", None),
        (FRAMES, "state"),
        ("gym:CartPole-v1", "tests.control.worlds:Doubled"),
        ("gym:tests.control.worlds:Image-v0", None),
    ],
)
def test_a_model_made_of_a_saved_policy_chooses_the_same_actions(data: str, sees: str | None, tmp_path: Path) -> None:
    environment = Environment.of(data, sees)
    env = environment.make()
    arm = replace(
        SMALL,
        environment=environment,
        steps=64,
        hidden=environment.hidden(env.observation_space),
        net=None if "Image" in data else (8, 8),
    )
    model = train(arm, Place()).model
    save_policy(tmp_path, model, environment, arm.hidden)
    assert {path.name for path in tmp_path.iterdir()} == {"policy.safetensors", "config.json"}
    plain = gym.make("CartPole-v1") if sees and ":" in sees else environment.make()
    again = to_sb3(tmp_path, plain)
    policy = load_policy(tmp_path)
    for seed in range(5):
        whole, own = env.reset(seed=seed)[0], plain.reset(seed=seed)[0]
        seen = {"observation": own} if sees and ":" in sees else own
        expected = model.predict(whole, deterministic=True)[0]
        assert np.array_equal(again.predict(seen, deterministic=True)[0], expected)
        visible = {k: v for k, v in whole.items() if k not in arm.hidden} if isinstance(whole, dict) else whole
        assert np.array_equal(policy.predict(visible, deterministic=True)[0], expected)


def test_statistics_of_a_normaliser_are_tensors(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(128)
    save_policy(tmp_path, model)
    again = to_sb3(tmp_path, gym.make("CartPole-v1"))
    normalizer, rows = again.get_vec_normalize_env(), np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    assert normalizer is not None
    assert np.allclose(np.asarray(normalizer.normalize_obs(rows)), np.asarray(env.normalize_obs(rows)))
    assert not normalizer.training


def test_another_environment_is_refused(tmp_path: Path) -> None:
    save_policy(tmp_path, SMALL.build(SMALL.vector()), SMALL.environment)
    with pytest.raises(DataError, match="trained on observations of"):
        to_sb3(tmp_path, gym.make("Pendulum-v1"))


@pytest.mark.parametrize(
    ("old", "new"),
    [('"Tanh"', '"Softmax"'), ('"ppo"', '"sac"'), ('"MlpPolicy"', '"os.system"'), ('"n": 2', '"n": 3'), ("{", "")],
)
def test_a_changed_config_is_refused(old: str, new: str, tmp_path: Path) -> None:
    save_policy(tmp_path, SMALL.build(SMALL.vector()), SMALL.environment)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(CheckpointError):
        load_policy(tmp_path)
    with pytest.raises(CheckpointError, match="holds no policy"):
        load_policy(tmp_path / "nowhere")


def test_loading_draws_no_number(tmp_path: Path) -> None:
    save_policy(tmp_path, SMALL.build(SMALL.vector()), SMALL.environment)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    load_policy(tmp_path)
    assert torch.equal(torch.rand(2), expected)
