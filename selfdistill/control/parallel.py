"""A student that is trained on the rollouts of its teacher, while the teacher acts and learns on (ITER)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import obs_as_tensor

from ..io.checkpoint import Tree
from .actors import Actor, ObservationLayout, copy_policy
from .callback import SelfDistil
from .recipes import PolicyMethod

CHUNK = 4096  # observations whose values are asked for at once


class ParallelStudent(BaseCallback):
    """Trains a student on each rollout of the algorithm that it is a callback of, before that algorithm's own update.

    The student is an algorithm of its own, which updates itself by its own ``train()``. Its rollout buffer gets what
    the teacher did, with the student's values: its advantages are its own, and its ratio is against the policy that
    acted. The recipe's terms ride on that update.

    Args:
        method: the recipe; its `Generation` is the policy that acts.
        student: a fresh algorithm with the same environments and rollouts.
    """

    def __init__(self, method: PolicyMethod, student: OnPolicyAlgorithm) -> None:
        super().__init__()
        self.student, self.method = student, method
        self._saved: Mapping[str, Any] | None = None

    def _on_training_start(self) -> None:
        teacher, student = self.model, self.student
        assert isinstance(teacher, OnPolicyAlgorithm)
        self._start = teacher.num_timesteps
        self._acting = copy_policy(teacher.policy)
        layout = ObservationLayout.of(teacher.observation_space)
        self.distil = SelfDistil(self.method, previous=Actor(self._acting, layout, values=True))
        if self._saved is not None:
            self._start = self._saved["start"]
            self.distil.load_tree(self._saved["distil"])
        student._total_timesteps = teacher._total_timesteps - self._start
        student.num_timesteps = teacher.num_timesteps - self._start
        self.distil.init_callback(student)
        self.distil.on_training_start({}, {})

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.distil.on_rollout_start()

    @torch.no_grad()
    def _fill(self) -> None:
        """The student's buffer, from the teacher's rollout."""
        assert isinstance(self.model, OnPolicyAlgorithm)
        theirs, own, policy = self.model.rollout_buffer, self.student.rollout_buffer, self.student.policy
        own.reset()
        if isinstance(theirs, DictRolloutBuffer) and isinstance(own, DictRolloutBuffer):
            own.observations = {key: part.copy() for key, part in theirs.observations.items()}
            rows: Any = {key: part.reshape(-1, *part.shape[2:]) for key, part in theirs.observations.items()}
        else:
            own.observations = theirs.observations.copy()
            rows = theirs.observations.reshape(-1, *theirs.observations.shape[2:])
        own.actions, own.log_probs = theirs.actions.copy(), theirs.log_probs.copy()
        own.rewards, own.episode_starts = theirs.rewards.copy(), theirs.episode_starts.copy()
        own.values = np.concatenate(
            [policy.predict_values(obs_as_tensor(part, self.student.device)).cpu().numpy() for part in _chunks(rows)]
        ).reshape(own.rewards.shape)
        own.pos, own.full = own.buffer_size, True
        last = policy.predict_values(obs_as_tensor(self.locals["new_obs"], self.student.device))
        RolloutBuffer.compute_returns_and_advantage(own, last, self.locals["dones"])

    def _on_rollout_end(self) -> None:
        student, teacher = self.student, self.model
        self._acting.load_state_dict(teacher.policy.state_dict())
        student.num_timesteps = teacher.num_timesteps - self._start
        student._update_current_progress_remaining(student.num_timesteps, student._total_timesteps)
        self._fill()
        self.distil.on_rollout_end()
        student.train()

    def _on_training_end(self) -> None:
        self.distil.on_training_end()

    def settle(self) -> None:
        """Take in the student's update, and log its figures beside those of the policy that acts."""
        self.distil.settle()
        self.distil.record(self.logger)

    def state_tree(self) -> Tree:
        """What a resumed training needs of the student, between two rollouts."""
        return {
            "start": self._start,
            "policy": self.student.policy.state_dict(),
            "optimizer": self.student.policy.optimizer.state_dict(),
            "updates": self.student._n_updates,
            "distil": self.distil.state_tree(),
        }

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Take the student's state now, and that of its terms when training starts."""
        self._saved, student = tree, self.student
        student.policy.load_state_dict(tree["policy"])
        student.policy.optimizer.load_state_dict(tree["optimizer"])
        student._n_updates = tree["updates"]


def _chunks(rows: Any) -> list[Any]:
    """Observations in parts."""
    count = len(next(iter(rows.values()))) if isinstance(rows, dict) else len(rows)
    cuts = [slice(begin, begin + CHUNK) for begin in range(0, count, CHUNK)]
    if isinstance(rows, dict):
        return [{key: part[cut] for key, part in rows.items()} for cut in cuts]
    return [rows[cut] for cut in cuts]
