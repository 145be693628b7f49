"""A privileged teacher: L = L_engine + w(t) KL(pi_t(.|s, o) || p(.|o)), w(t) = w max(0, 1 - t / release).

The student sees the observation without the keys ``sees``. After each update round(steps w(t) / w) steps are taken on
the divergence alone, by an Adam of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded,
    teacher: Any = None,
    sees: str = "state",
    weight: float = 1.0,
    release: float = 0.5,
    steps: int = 100,
    temperature: float = 0.5,
    warm_up: int = 0,
) -> tuple[list[float], list[Network]]:
    student, losses = run.network(), list[float]()
    engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)

    def visible(x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: part for key, part in x.items() if key not in sees.split(",")}

    def divergence(x: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            t = (run.teacher.logits(x) / temperature).log_softmax(1)
        loss: Tensor = weight * (t.exp() * (t - student.log_p(visible(x)))).sum(1).mean()
        return loss

    for rollout in run.trainings[0].rollouts:
        for done, batch in rollout.minibatches():
            loss = max(0.0, 1.0 - done / release) * divergence(batch.x)
            losses.append(loss.item())
            batch.x = visible(batch.x)
            reward = run.critic_loss(student, batch)
            if rollout.number >= warm_up:
                reward = reward + run.actor_loss(student, batch)
            run.step(engine, student, reward + loss)
        share = max(0.0, 1.0 - rollout.end / release)
        for x in rollout.drawn(steps * share):
            loss = divergence(x)
            losses.append(share * loss.item())
            run.step(own, student, loss)
    return losses, [student]
