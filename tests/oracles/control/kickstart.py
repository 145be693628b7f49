"""Kickstarting: L = L_engine + max(0, 1 - t / release) [w KL(t || p) + v (V_t - V)^2].

After each update round(steps max(0, 1 - t / release)) steps are taken on the terms alone, by an Adam of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded,
    teacher: Any = None,
    weight: float = 1.0,
    release: float = 0.25,
    steps: int = 100,
    temperature: float = 1.0,
    value: float = 0.0,
    warm_up: int = 0,
) -> tuple[list[float], list[Network]]:
    student, losses = run.network(), list[float]()
    engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)

    def distance(x: Tensor) -> Tensor:
        with torch.no_grad():
            t, v = (run.teacher.logits(x) / temperature).log_softmax(1), run.teacher.value(x)
        kl = (t.exp() * (t - student.log_p(x))).sum(1).mean()
        loss: Tensor = weight * kl + value * (v - student.value(x)).square().mean()
        return loss

    for rollout in run.trainings[0].rollouts:
        for done, batch in rollout.minibatches():
            loss = max(0.0, 1.0 - done / release) * distance(batch.x)
            losses.append(loss.item())
            reward = run.critic_loss(student, batch)
            if rollout.number >= warm_up:
                reward = reward + run.actor_loss(student, batch)
            run.step(engine, student, reward + loss)
        share = max(0.0, 1.0 - rollout.end / release)
        for x in rollout.drawn(steps * share):
            loss = distance(x)
            losses.append(share * loss.item())
            run.step(own, student, loss)
    return losses, [student]
