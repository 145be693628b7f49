"""A training that was cut ends as without the cut, bit for bit; hidden keys change no weight's shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfdistill.errors import CheckpointError, NotFiniteError
from selfdistill.io.tensors import digest

pytest.importorskip("stable_baselines3")
from stable_baselines3.common.callbacks import BaseCallback

from selfdistill.control.environments import Environment
from selfdistill.control.rollout_log import dormant_share
from selfdistill.control.training import Arm, Place, Trained, train

FRAMES = "gym:selfdistill.control.environments:CartPoleFrames-v0"
CARTPOLE = Environment.of("gym:CartPole-v1")
SMALL = Arm(CARTPOLE, steps=500, environments=2, rollout=32, batch_size=32, epochs=2)


class Cut(BaseCallback):
    """Ends the process, as it were, in the middle of a rollout."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.steps:
            raise KeyboardInterrupt
        return True


class Counter(BaseCallback):
    """A callback with a state, which changes the training."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts = torch.zeros(1)

    def _on_rollout_end(self) -> None:
        self.rollouts += 1
        with torch.no_grad():
            self.model.policy.get_parameter("action_net.bias")[0] += 0.01 * float(self.rollouts)

    def settle(self) -> None:
        """Nothing is taken in."""

    def _on_step(self) -> bool:
        return True

    def state_tree(self) -> Any:
        return {"rollouts": self.rollouts.clone()}

    def load_tree(self, tree: Any) -> None:
        self.rollouts = tree["rollouts"]


def bits(trained: Trained) -> str:
    return digest(trained.policy.state_dict()) + digest(
        {str(i): s["exp_avg"] for i, s in trained.policy.optimizer.state_dict()["state"].items() if "exp_avg" in s}
    )


def cut(arm: Arm, folder: Path, steps: int, **options: Any) -> None:
    callbacks = [*options.pop("callbacks", []), Cut(steps)]
    with pytest.raises(KeyboardInterrupt):
        train(arm, Place(folder, save_steps=1, callbacks=callbacks, **options))


def equal_after(arm: Arm, folder: Path, steps: int) -> None:
    whole = train(arm, Place())
    cut(arm, folder, steps)
    resumed = train(arm, Place(folder, save_steps=1))
    assert bits(resumed) == bits(whole)
    assert resumed.history == whole.history
    assert (resumed.steps, resumed.updates) == (whole.steps, whole.updates)


@pytest.mark.parametrize("steps", [100, 333])
@pytest.mark.parametrize("engine", ["ppo", "a2c"])
def test_a_cut_in_an_episode_changes_no_bit(engine: str, steps: int, tmp_path: Path) -> None:
    equal_after(replace(SMALL, engine=engine), tmp_path, steps)


@pytest.mark.parametrize(
    "data",
    [
        "gym:LunarLander-v3",
        "gym:minigrid:MiniGrid-DoorKey-5x5-v0",
        "gym:Pendulum-v1",
        "gym:tests.control.worlds:Image-v0",
        "gym:tests.control.worlds:Several-v0",
    ],
)
def test_a_cut_changes_no_bit_elsewhere(data: str, tmp_path: Path) -> None:
    pytest.importorskip("minigrid" if "minigrid" in data else "Box2D" if "Lunar" in data else "gymnasium")
    equal_after(replace(SMALL, environment=Environment.of(data), steps=200), tmp_path, 150)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_twenty_cuts_change_no_bit(number: int, tmp_path: Path) -> None:
    equal_after(replace(SMALL, seed=number % 3, engine=("ppo", "a2c")[number % 2]), tmp_path, 65 + 21 * number)


def test_a_callback_goes_on_from_its_state(tmp_path: Path) -> None:
    whole = train(SMALL, Place(callbacks=[Counter()]))
    cut(SMALL, tmp_path, 333, callbacks=[Counter()])
    assert bits(train(SMALL, Place(tmp_path, save_steps=1, callbacks=[Counter()]))) == bits(whole)


def test_two_trainings_in_turn_are_paired() -> None:
    first = train(SMALL, Place())
    torch.rand(7)
    np.random.rand(5)
    assert bits(train(SMALL, Place())) == bits(first)
    assert bits(train(replace(SMALL, seed=1), Place())) != bits(first)


def test_where_an_environment_does_not_replay_the_next_episodes_begin(tmp_path: Path) -> None:
    lines: list[str] = []
    arm = replace(SMALL, environment=Environment.of("gym:tests.control.worlds:Unsteady-v0"), steps=200)
    cut(arm, tmp_path, 150)
    train(arm, Place(tmp_path, save_steps=1, warn=lines.append))
    assert "did not replay; the next ones begin" in lines[0]
    cut(arm, tmp_path / "told", 150)
    assert train(arm, Place(tmp_path / "told", save_steps=1, replays=False, warn=lines.append)).steps == 256
    assert len(lines) == 1


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    first = train(SMALL, Place(tmp_path))
    second = train(SMALL, Place(tmp_path, callbacks=[Cut(0)]))
    assert bits(first) == bits(second)
    assert second.history == first.history
    with pytest.raises(CheckpointError, match="another training"):
        train(replace(SMALL, lr=0.1), Place(tmp_path))


def test_a_weight_that_is_no_number_ends_the_training_in_one_line(tmp_path: Path) -> None:
    class Poison(Cut):
        def _on_rollout_end(self) -> None:
            if self.num_timesteps > 300:
                with torch.no_grad():
                    self.model.policy.get_parameter("value_net.bias").fill_(torch.nan)

    with pytest.raises(NotFiniteError, match="a weight is nan or infinite after"):
        train(SMALL, Place(tmp_path, save_steps=1, callbacks=[Poison(10**6)]))


def test_the_weights_of_a_policy_that_does_not_see_a_key_are_those_without_the_key() -> None:
    arm = replace(SMALL, environment=Environment.of(FRAMES, "state"), hidden=("state",), steps=64)
    model = arm.build(arm.vector())
    assert model.policy.mlp_extractor.policy_net[0].in_features == 4
    assert set(model.rollout_buffer.observation_space.spaces) == {"frames", "state"}  # type: ignore[attr-defined]


def test_the_log_has_the_vitals_of_each_rollout() -> None:
    seen: list[float] = []
    history = train(SMALL, Place(progress=lambda clock, figures: seen.append(clock.progress))).history
    assert [line["control"]["steps"] for line in history] == [64 * (i + 1) for i in range(8)]
    names = {"return", "length", "entropy", "value_loss", "explained_variance", "kl", "dormant"}
    assert names <= set(history[0]["control"])
    assert sum(line["control"]["episodes"] for line in history) > 5
    assert len(seen) == 8


def test_dormant_units_are_counted() -> None:
    policy = SMALL.build(SMALL.vector()).policy
    rows = torch.randn(64, 4)
    assert dormant_share(policy, rows) == 0.0
    with torch.no_grad():
        policy.get_parameter("mlp_extractor.policy_net.2.weight")[:16] = 0.0  # a quarter of one of four layers of 64
    assert dormant_share(policy, rows) == pytest.approx(1 / 16)
