"""DAgger: -log p(argmax t) on all states that were visited; the teacher acts with probability max(0, 1 - t / share)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded, teacher: Any = None, share: float = 0.25, steps: int = 100
) -> tuple[list[float], list[Network]]:
    student, losses = run.network(), list[float]()
    engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)

    def imitation(x: Tensor) -> Tensor:
        with torch.no_grad():
            expert = run.teacher.logits(x).argmax(1, keepdim=True)
        return -student.log_p(x).gather(1, expert).mean()

    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            loss = imitation(batch.x)
            losses.append(loss.item())
            run.step(engine, student, run.critic_loss(student, batch) + loss)
        for x in rollout.drawn(steps):
            loss = imitation(x)
            losses.append(loss.item())
            run.step(own, student, loss)
    return losses, [student]
