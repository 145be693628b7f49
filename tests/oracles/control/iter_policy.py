"""ITER: a policy acts and learns; a fresh one learns from the same rollouts and, less and less, from the policy.

L = L_engine(acting) + L_engine(fresh) + (1 - t) [KL(pi_acting || pi_fresh) + v (V_acting - V_fresh)^2]
"""

from __future__ import annotations

import torch

from tests.control.replay import Network, Recorded


def oracle(
    run: Recorded, generations: int = 2, first: float = 0.5, value: float = 0.5
) -> tuple[list[float], list[Network]]:
    losses, acting = list[float](), run.network()
    trained, engine = [acting], run.adam(acting)
    for rollout in run.trainings[0].rollouts:
        for _, batch in rollout.minibatches():
            run.step(engine, acting, run.ppo(acting, batch))

    for phase in range(1, generations):
        beside, before = run.trainings[2 * phase - 1], run.trainings[2 * phase]
        acting, fresh = acting.copy(), run.network(2 * phase - 1)
        engine, own = run.adam(acting), run.adam(fresh)
        for rollout, copied in zip(before.rollouts, beside.rollouts, strict=True):
            for done, batch in copied.minibatches():
                with torch.no_grad():
                    t, v = acting.log_p(batch.x), acting.value(batch.x)
                kl = (t.exp() * (t - fresh.log_p(batch.x))).sum(1).mean()
                loss = (1.0 - done) * (kl + value * (v - fresh.value(batch.x)).square().mean())
                losses.append(loss.item())
                run.step(own, fresh, run.ppo(fresh, batch) + loss)
            for _, batch in rollout.minibatches():
                run.step(engine, acting, run.ppo(acting, batch))
        trained += [fresh, acting]
        acting = fresh
    return losses, trained
