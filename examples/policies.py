"""PPO of stable-baselines3 on CartPole: a small policy alone, and one that a trained policy teaches at first.

python examples/policies.py --steps 20000
"""

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from selfdistill.control import SelfDistil, kickstart

SMALL = {"net_arch": [8, 8]}


def main(steps: int, episodes: int) -> None:
    rollout = min(1024, steps)
    teacher = PPO("MlpPolicy", "CartPole-v1", n_steps=rollout, seed=0).learn(steps)
    for name, callback in (("alone", None), ("taught", SelfDistil(kickstart(teacher)))):
        student = PPO("MlpPolicy", "CartPole-v1", n_steps=rollout, policy_kwargs=SMALL, seed=1)
        student.learn(steps // 2, callback=callback)
        mean, around = evaluate_policy(student, make_vec_env("CartPole-v1", seed=2), n_eval_episodes=episodes)
        print(f"{name:7} return {mean:5.0f} ± {around:.0f} over {episodes} episodes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=20)
    given = parser.parse_args()
    main(given.steps, given.episodes)
