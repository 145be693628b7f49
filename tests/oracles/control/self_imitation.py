"""Self-imitation: after each update steps on w [-log p(a|s) clip(R - V(s), 0, 1) + v max(R - V(s), 0)^2 / 2]."""

from __future__ import annotations

import torch

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded, weight: float = 0.1, steps: int = 10, rows: int = 512, value: float = 0.01
) -> tuple[list[float], list[Network]]:
    student, losses = run.network(), list[float]()
    engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)
    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            run.step(engine, student, run.ppo(student, batch))
        for x, actions, returns in rollout.drawn(steps):
            assert len(x) == rows
            surplus = returns - student.value(x)
            nll = -student.log_p(x).gather(1, actions[:, None]).squeeze(1)
            loss = nll * surplus.detach().clamp(0.0, 1.0) + value * 0.5 * surplus.clamp(min=0.0).square()
            losses.append(weight * loss.mean().item())
            run.step(own, student, weight * loss.mean())
    return losses, [student]
