"""The control that goes on: L = L_engine, from the weights of the teacher."""

from __future__ import annotations

from typing import Any

from tests.control.replay import Network, Recorded


def oracle(run: Recorded, teacher: Any = None) -> tuple[list[float], list[Network]]:
    student = run.teacher.copy()
    engine = run.adam(student)
    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            run.step(engine, student, run.ppo(student, batch))
    return [], [student]
