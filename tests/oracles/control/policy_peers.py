"""Peers: M policies learn apart, and the product learns L_engine + w(t) KL(mean_m pi_m || pi)."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded, members: int = 3, release: float = 0.25, steps: int = 100
) -> tuple[list[float], list[Network]]:
    losses, peers = list[float](), [run.network(member) for member in range(members)]
    for peer, training in zip(peers, run.trainings, strict=False):
        engine = run.adam(peer)
        for rollout in training.rollouts:
            for _, batch in rollout.minibatches():
                run.step(engine, peer, run.ppo(peer, batch))

    product = run.network(members)
    engine, own = run.adam(product), torch.optim.Adam(product.parameters(), 1e-3)

    def divergence(x: Tensor) -> Tensor:
        with torch.no_grad():
            t = torch.stack([peer.log_p(x).exp() for peer in peers]).mean(0)
        return (t * (t.log() - product.log_p(x))).sum(1).mean()

    for rollout in run.trainings[members].rollouts:
        for done, batch in rollout.minibatches():
            loss = max(0.0, 1.0 - done / release) * divergence(batch.x)
            losses.append(loss.item())
            run.step(engine, product, run.ppo(product, batch) + loss)
        share = max(0.0, 1.0 - rollout.end / release)
        for x in rollout.drawn(steps * share):
            loss = divergence(x)
            losses.append(share * loss.item())
            run.step(own, product, loss)
    return losses, [*peers, product]
