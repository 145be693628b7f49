"""The log of a policy's training: a line a rollout, with returns, entropy, errors of the value and dormant units.

`ScriptLog` writes it for a training script of one's own, as a folder that `selfdistill report` draws.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from ..errors import DataError
from ..io.files import FORMAT
from ..io.run_record import SCRIPT, versions, write_record
from ..io.tensors import Tree
from ..training.state import MetricsLog

DORMANT = 0.025  # of a layer's mean activation, below which a unit is dormant (Sokar et al., ICML 2023)
LOOKED = 256  # observations that the vitals look at


class Stateful(Protocol):
    """A callback whose state belongs into checkpoints."""

    def settle(self) -> None:
        """Take in the update that has ended, and log its figures."""

    def state_tree(self) -> Tree:
        """All that an exact resume needs."""

    def load_tree(self, tree: Tree) -> None:
        """Take it back, before the training goes on."""


class RolloutLog(BaseCallback):
    """Logs each rollout together with the update that follows it.

    Args:
        folder: of ``metrics.jsonl``; None for none.
        callbacks: those with figures of their own, which they log when they settle.
    """

    def __init__(self, folder: Path | None, callbacks: Sequence[BaseCallback] = ()) -> None:
        super().__init__()
        self.log = MetricsLog(folder) if folder else None
        self.callbacks = callbacks
        self.history: list[dict[str, Any]] = []
        self.episodes: list[dict[str, Any]] = []
        self.look: dict[str, float] = {}

    def _on_step(self) -> bool:
        self.episodes += [info["episode"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, OnPolicyAlgorithm)
        rows: Any = self.model.rollout_buffer.observations
        rows = (
            {k: v.reshape(-1, *v.shape[2:])[:LOOKED] for k, v in rows.items()}
            if isinstance(rows, dict)
            else (rows.reshape(-1, *rows.shape[2:])[:LOOKED])
        )
        self.look = {"dormant": dormant_share(self.model.policy, obs_as_tensor(rows, self.model.device))}

    def _on_rollout_start(self) -> None:
        if self.look:
            self._end_rollout(self.model.num_timesteps)

    def _on_training_end(self) -> None:
        if self.look:
            self._end_rollout(self.model.num_timesteps)

    def _end_rollout(self, steps: int) -> None:
        """Log the rollout and the update that have just ended."""
        for one in stateful(self.callbacks):
            one.settle()
        values, done = self.logger.name_to_value, len(self.history) + 1
        control: dict[str, Any] = {
            "steps": steps,
            "episodes": len(self.episodes),
            "return": float(np.mean([e["r"] for e in self.episodes])) if self.episodes else None,
            "length": float(np.mean([e["l"] for e in self.episodes])) if self.episodes else None,
            "entropy": -float(values["train/entropy_loss"]),
            "value_loss": float(values["train/value_loss"]),
            "explained_variance": _finite(values.get("train/explained_variance", np.nan)),
            "kl": _finite(values.get("train/approx_kl", np.nan)),
            **self.look,
            **{name.partition("/")[2]: _finite(v) for name, v in values.items() if name.startswith("distil/")},
        }
        loss = float(values.get("train/loss", values.get("train/policy_loss", 0.0)))
        entry = {"generation": 0, "epoch": done - 1, "step": steps, "loss": loss, "terms": {}, "control": control}
        self.history.append(entry)
        if self.log:
            self.log.append(entry)
        self.report(entry)
        self.episodes, self.look = [], {}

    def report(self, entry: dict[str, Any]) -> None:
        """Tell a line of the log to whoever follows the training."""


class ScriptLog(RolloutLog):
    """The log of a training script of one's own; ``selfdistill report FOLDER`` draws it, `vitals` reads it.

    Args:
        folder: a new folder.
        method: the recipe in words.
        callback: the callback whose figures are logged.

    Raises:
        DataError: the folder holds something.
    """

    def __init__(self, folder: Path, method: str, callback: BaseCallback) -> None:
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder} holds something; give SelfDistil another out=")
        super().__init__(folder, [callback])
        self.folder, self.method = folder, method

    def _on_training_start(self) -> None:
        algorithm = self.model
        assert isinstance(algorithm, OnPolicyAlgorithm)
        self.folder.mkdir(parents=True, exist_ok=True)
        kind, policy = type(algorithm).__name__, type(algorithm.policy).__name__
        packages = ("gymnasium", "stable-baselines3")
        write_record(
            self.folder / "run.json",
            {
                "format": FORMAT,
                "kind": "control",
                "request": {"data": SCRIPT, "seed": algorithm.seed or 0, "training": {}},
                "method": self.method,
                "model": f"{kind}, {policy}",
                "settings": {
                    "environments": algorithm.n_envs,
                    "batch_size": algorithm.n_steps * algorithm.n_envs,
                    "versions": {name: version(name) for name in packages},
                },
                "data": {
                    "name": _name(algorithm),
                    "task": "control",
                    "rows": {"steps": int(algorithm._total_timesteps), "test": 0},
                    "classes": [],
                    "noise": 0.0,
                    "fingerprint": "script",
                },
                "command": sys.argv,
                "versions": versions(),
                "threads": torch.get_num_threads(),
            },
        )


def _name(algorithm: OnPolicyAlgorithm) -> str:
    """The id of the environment, or its class."""
    env = algorithm.get_env()
    specs = [] if env is None else [one for one in env.get_attr("spec") if one is not None]
    return specs[0].id if specs else "an environment of one's own"


def stateful(callbacks: Sequence[Any]) -> list[Stateful]:
    """The callbacks that have a state to save."""
    return [one for one in callbacks if hasattr(one, "state_tree")]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def dormant_share(policy: ActorCriticPolicy, observations: Any) -> float:
    """The share of hidden units whose mean activation is at most a fortieth of their layer's.

    Args:
        policy: the policy.
        observations: tensors of several rows, as the policy takes them.
    """
    outputs: list[Tensor] = []
    kinds = (policy.activation_fn, nn.ReLU)
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for module in policy.modules()
        if isinstance(module, kinds)
    ]
    try:
        with torch.no_grad():
            policy.predict_values(observations)
            policy.get_distribution(observations)
    finally:
        for hook in hooks:
            hook.remove()
    sizes = [output.abs().flatten(2).mean((0, 2)) if output.dim() > 2 else output.abs().mean(0) for output in outputs]
    units = sum(len(size) for size in sizes)
    return sum(int((size <= DORMANT * size.mean()).sum()) for size in sizes) / units if units else 0.0
