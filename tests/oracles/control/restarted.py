"""The control from the start: L = L_engine. Where it is matched, the engine has more epochs, and the same loop."""

from __future__ import annotations

from tests.control.replay import Network, Recorded


def oracle(run: Recorded, matched: bool = False) -> tuple[list[float], list[Network]]:
    student = run.network()
    engine = run.adam(student)
    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            run.step(engine, student, run.ppo(student, batch))
    return [], [student]
