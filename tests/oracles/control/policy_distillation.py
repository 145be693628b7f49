"""Policy distillation: KL(t || p), -log p(argmax t) or |t - p|^2 on visited states; reward teaches the critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded,
    teacher: Any = None,
    states: str = "student",
    loss: str = "kl",
    temperature: float = 1.0,
    steps: int = 100,
) -> tuple[list[float], list[Network]]:
    student, losses = run.network(), list[float]()
    engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)

    def distance(x: Tensor) -> Tensor:
        with torch.no_grad():
            t = (run.teacher.logits(x) / temperature).log_softmax(1)
        log_p = student.log_p(x)
        rows: dict[str, Tensor] = {
            "kl": (t.exp() * (t - log_p)).sum(1),
            "nll": -log_p.gather(1, t.argmax(1, keepdim=True)).squeeze(1),
            "mse": (t.exp() - log_p.exp()).square().sum(1),
        }
        return rows[loss].mean()

    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            imitation = distance(batch.x)
            losses.append(imitation.item())
            run.step(engine, student, run.critic_loss(student, batch) + imitation)
        for x in rollout.drawn(steps):
            imitation = distance(x)
            losses.append(imitation.item())
            run.step(own, student, imitation)
    return losses, [student]
