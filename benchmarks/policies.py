"""Policies: what a teacher gains inside PPO of stable-baselines3, against controls at equal cost.

    python -m benchmarks.policies privileged --seeds 10 --out runs/privileged.jsonl
    python -m benchmarks.policies kickstart --seeds 10 --out runs/kickstart.jsonl
    python -m benchmarks.policies privileged --world NAME --seeds 5 --out runs/NAME.jsonl
    python -m benchmarks.policies cost

Each seed trains a teacher, and then every arm from the same fresh start: the method, a restart, a restart with as many
gradient steps as the method takes with its extra ones, and, where it can, the teacher going on. A seed adds a line to
``--out``; given again, the command goes on where it was cut. Returns are those of 50 fresh episodes with actions drawn
from the policy, and greedy ones beside them. Seeds pair all arms; intervals are 95 % bootstrap intervals of the paired
differences.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule

from selfdistill.control import PolicyMethod, SelfDistil, hide, kickstart, privileged
from selfdistill.control.environments import FRAMES_ID
from selfdistill.evaluation.statistics import interquartile_mean, probability_of_improvement

ENVIRONMENTS, ROLLOUT, BATCH, EPOCHS, EPISODES = 8, 128, 256, 10, 50


@dataclass(frozen=True)
class World:
    """An environment, the steps of teacher and students, and the key that the teacher alone sees."""

    make: Callable[[], gym.Env[Any, Any]]
    teacher_steps: int
    steps: int
    sees: str | None = None
    net: tuple[int, ...] = (64, 64)
    options: tuple[tuple[str, Any], ...] = ()
    teacher_epochs: int = EPOCHS
    constant: bool = False


class HiddenVelocities(gym.ObservationWrapper[Any, Any, Any]):
    """The whole observation as ``state``, and the numbers of two successive observations without velocities."""

    def __init__(self, env: gym.Env[Any, Any], places: tuple[int, ...]) -> None:
        super().__init__(env)
        self.places, self.before = list(places), np.zeros(len(places), np.float32)
        box = gym.spaces.Box(-np.inf, np.inf, (2 * len(places),), np.float32)
        self.observation_space = gym.spaces.Dict({"frames": box, "state": env.observation_space})

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode; its first frame comes twice."""
        state, info = self.env.reset(**options)
        self.before = np.asarray(state[self.places], np.float32)
        return self.observation(state), info

    def observation(self, state: Any) -> dict[str, Any]:
        """Both views of a state."""
        now = np.asarray(state[self.places], np.float32)
        frames, self.before = np.concatenate([now, self.before]), now
        return {"frames": frames, "state": state}


def lunar_lander() -> gym.Env[Any, Any]:
    """LunarLander as it is; it needs the package box2d."""
    return gym.make("LunarLander-v3")


def lunar_lander_frames() -> gym.Env[Any, Any]:
    """LunarLander without its velocities: positions, angle and the contact of the legs."""
    return HiddenVelocities(gym.make("LunarLander-v3"), (0, 1, 4, 6, 7))


def acrobot() -> gym.Env[Any, Any]:
    """Acrobot without its velocities."""
    return HiddenVelocities(gym.make("Acrobot-v1"), (0, 1, 2, 3))


def cart_pole() -> gym.Env[Any, Any]:
    """CartPole as it is."""
    return gym.make("CartPole-v1")


def cart_pole_frames() -> gym.Env[Any, Any]:
    """CartPole seen by two successive frames of positions."""
    return gym.make(FRAMES_ID)


WORLDS = {
    "cartpole-frames": World(cart_pole_frames, 20_480, 20_480, "state"),
    "cartpole": World(cart_pole, 12_288, 24_576),
    "lunar": World(lunar_lander, 102_400, 51_200, options=(("gamma", 0.999),)),
    "lunar-frames": World(lunar_lander_frames, 102_400, 102_400, "state", options=(("gamma", 0.999),)),
    "acrobot": World(acrobot, 61_440, 61_440, "state"),
}


class Curve(BaseCallback):
    """The returns of training episodes, by the rollout in which they ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = list[tuple[int, float]]()

    def _on_step(self) -> bool:
        self.ends += [(self.num_timesteps, info["episode"]["r"]) for info in self.locals["infos"] if "episode" in info]
        return True

    def by_rollout(self, steps: int) -> list[float]:
        """The mean return of each rollout's episodes; that of the rollout before where none ended."""
        size, curve = ENVIRONMENTS * ROLLOUT, list[float]()
        for end in range(size, steps + 1, size):
            returns = [value for at, value in self.ends if end - size < at <= end]
            curve.append(float(np.mean(returns)) if returns else curve[-1] if curve else float("nan"))
        return curve


def build(world: World, seed: int, epochs: int = EPOCHS, hidden: bool = False) -> PPO:
    """A fresh PPO, whose learning rate falls to 0 unless it is to be constant; a seed decides the rest."""
    environments = make_vec_env(world.make, ENVIRONMENTS, seed=seed)
    rate = 1e-3 if world.constant else LinearSchedule(1e-3, 0.0, 1.0)
    options: dict[str, Any] = {"net_arch": list(world.net)} | (hide(world.sees) if hidden and world.sees else {})
    return PPO(
        "MultiInputPolicy" if world.sees else "MlpPolicy", environments, n_steps=ROLLOUT, batch_size=BATCH,
        n_epochs=epochs, learning_rate=rate, ent_coef=0.01, seed=seed, device="cpu",
        policy_kwargs=options, **dict(world.options),
    )  # fmt: skip


def score(world: World, model: PPO) -> dict[str, float]:
    """Mean returns of fresh episodes, the same for every arm: of drawn actions, and of the most probable ones."""
    means = dict[str, float]()
    for name, greedy in (("sampled", False), ("greedy", True)):
        torch.manual_seed(0)
        environments = make_vec_env(world.make, ENVIRONMENTS, seed=77_777)
        mean, _ = evaluate_policy(model, environments, EPISODES, deterministic=greedy, warn=False)
        means[name] = float(np.mean(mean))
    return means


def train(world: World, model: PPO, steps: int, method: SelfDistil | None = None) -> dict[str, Any]:
    """An arm: scores, curve, gradient steps and CPU seconds."""
    curve, begin, clock = Curve(), model.num_timesteps, time.process_time()
    model.learn(steps, callback=[curve, *([method] if method else [])], reset_num_timesteps=not begin)
    seconds, extra = time.process_time() - clock, method.extra_steps if method else 0
    gradient = model.n_epochs * -(-ENVIRONMENTS * ROLLOUT // BATCH) * (steps // (ENVIRONMENTS * ROLLOUT)) + extra
    ends = [(at - begin, value) for at, value in curve.ends]
    curve.ends = ends
    return {**score(world, model), "curve": curve.by_rollout(steps), "gradient": gradient, "cpu": seconds}


def matched_epochs(world: World, gradient: int) -> int:
    """Epochs with which plain PPO takes at least so many gradient steps."""
    per_epoch = -(-ENVIRONMENTS * ROLLOUT // BATCH) * (world.steps // (ENVIRONMENTS * ROLLOUT))
    return -(-gradient // per_epoch)


def run_seed(world: World, recipe: Callable[[Any], PolicyMethod], seed: int) -> dict[str, Any]:
    """Teacher and arms of a seed; two models are built and trained in turn, as both draw from global generators."""
    teacher = build(world, seed, world.teacher_epochs)
    arms = {"teacher": train(world, teacher, world.teacher_steps)}
    if not world.sees:
        continued = copy.deepcopy(teacher.policy.state_dict())
    fresh = seed + 1000
    arms["method"] = train(world, build(world, fresh, hidden=True), world.steps, SelfDistil(recipe(teacher)))
    arms["restarted"] = train(world, build(world, fresh, hidden=True), world.steps)
    epochs = matched_epochs(world, arms["method"]["gradient"])
    arms["restarted, matched"] = train(world, build(world, fresh, epochs, hidden=True), world.steps)
    if not world.sees:
        model = build(world, fresh)
        model.policy.load_state_dict(continued)
        arms["continued"] = train(world, model, world.steps)
    return {"seed": seed, "arms": arms}


def steps_to(curve: list[float], goal: float) -> int:
    """Environment steps until a rollout's mean return reaches the goal; all of them if none does."""
    size = ENVIRONMENTS * ROLLOUT
    return next((size * (i + 1) for i, value in enumerate(curve) if value >= goal), size * len(curve))


def goal_of(record: dict[str, Any]) -> float:
    """95 % of the teacher's return; of a negative one 105 %."""
    value = record["arms"]["teacher"]["sampled"]
    return float(value - 0.05 * abs(value))


def interval(differences: list[float]) -> str:
    """A mean with its 95 % bootstrap interval."""
    source, values = np.random.default_rng(0), np.asarray(differences)
    means = values[source.integers(0, len(values), (10_000, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():+.0f} [{low:+.0f}, {high:+.0f}]"


def table(records: list[dict[str, Any]]) -> list[str]:
    """The arms, and the method's paired difference to each."""
    head = ["arm", "return, sampled (mean; IQM)", "greedy", "steps to 95 % of the teacher", "gradient steps", "CPU s"]
    lines = [f"| {' | '.join(head)} | method minus it, sampled | greedy | steps | P(method better) |"]
    lines.append("|" + "---|" * 10)
    for name in records[0]["arms"]:
        arms, own = [r["arms"][name] for r in records], [r["arms"]["method"] for r in records]
        reach = [steps_to(arm["curve"], goal_of(r)) for arm, r in zip(arms, records, strict=True)]
        ours = [steps_to(arm["curve"], goal_of(r)) for arm, r in zip(own, records, strict=True)]
        sampled = [arm["sampled"] for arm in arms]
        cells = [
            name, f"{np.mean(sampled):.0f}; {interquartile_mean(sampled):.0f}",
            f"{np.mean([arm['greedy'] for arm in arms]):.0f}", f"{np.mean(reach):.0f}",
            f"{np.mean([arm['gradient'] for arm in arms]):.0f}", f"{np.mean([arm['cpu'] for arm in arms]):.1f}",
        ]  # fmt: skip
        if name in ("method",):
            lines.append(f"| {' | '.join(cells)} | | | | |")
            continue
        for key in ("sampled", "greedy"):
            cells.append(interval([a[key] - b[key] for a, b in zip(own, arms, strict=True)]))
        cells.append(interval([float(a - b) for a, b in zip(ours, reach, strict=True)]))
        cells.append(f"{probability_of_improvement([arm['sampled'] for arm in own], sampled):.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cost(repeats: int = 5) -> str:
    """The CPU time of `kickstart` inside PPO over that of PPO alone: the median of interleaved pairs."""
    world, ratios = WORLDS["cartpole"], []
    teacher = build(world, 0)
    teacher.learn(2048)
    for seed in range(repeats):
        clock = [time.process_time()]
        for method in (None, SelfDistil(kickstart(teacher))):
            build(world, seed).learn(world.steps, callback=method)
            clock.append(time.process_time())
        ratios.append((clock[2] - clock[1]) / (clock[1] - clock[0]))
    return f"CPU of kickstart() over PPO alone, {repeats} pairs: median {np.median(ratios):.2f}, {np.round(ratios, 2)}"


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["privileged", "kickstart", "cost"])
    parser.add_argument("--world", choices=sorted(WORLDS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--teacher-epochs", type=int, default=EPOCHS, help="4 make a weaker teacher")
    parser.add_argument("--constant", action="store_true", help="a constant learning rate, for all arms")
    parser.add_argument("--out", type=Path, default=Path("runs/policies.jsonl"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "cost":
        print(cost())
        return
    usual = {"privileged": "cartpole-frames", "kickstart": "cartpole"}[options.what]
    world = WORLDS[options.world or usual]
    world = replace(world, teacher_epochs=options.teacher_epochs, constant=options.constant)
    recipe = (lambda teacher: privileged(teacher, world.sees)) if world.sees else kickstart
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    records = [json.loads(line) for line in lines]
    for seed in range(options.first, options.first + options.seeds):
        if all(record["seed"] != seed for record in records):
            records.append(run_seed(world, recipe, seed))
            with options.out.open("a") as file:
                file.write(json.dumps(records[-1]) + "\n")
            arms = records[-1]["arms"]
            print(
                f"seed {seed}: " + ", ".join(f"{name} {arm['sampled']:.0f}" for name, arm in arms.items()), flush=True
            )
    print("\n".join(table(records)))


if __name__ == "__main__":
    main()
