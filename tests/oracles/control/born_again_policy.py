"""Born-again policies: generation k learns L_engine + w(t) KL(pi_{k-1} || pi_k), w(t) = max(0, 1 - t / release)."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded, generations: int = 2, release: float = 0.25, steps: int = 100
) -> tuple[list[float], list[Network]]:
    losses, trained = list[float](), list[Network]()

    def divergence(x: Tensor, student: Network) -> Tensor:
        with torch.no_grad():
            t = trained[-1].log_p(x)
        return (t.exp() * (t - student.log_p(x))).sum(1).mean()

    for generation in range(generations):
        student = run.network(generation)
        engine, own = run.adam(student), torch.optim.Adam(student.parameters(), 1e-3)
        for rollout in run.trainings[generation].rollouts:
            for done, batch in rollout.minibatches():
                loss = run.ppo(student, batch)
                if generation:
                    term = max(0.0, 1.0 - done / release) * divergence(batch.x, student)
                    losses.append(term.item())
                    loss = loss + term
                run.step(engine, student, loss)
            share = max(0.0, 1.0 - rollout.end / release) if generation else 0.0
            for x in rollout.drawn(steps * share):
                term = divergence(x, student)
                losses.append(share * term.item())
                run.step(own, student, term)
        trained.append(student)
    return losses, trained
