"""SRPO: a wrong attempt with a right sibling learns by JS from the student's average that has read the sibling, each
token weighed by exp(-b H) over the mean of that; all others learn by GRPO; the sum goes over the number of tokens."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

CLOSING = "{x}\n\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."


def bucketed(log_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of some tokens, and of all others together."""
    chosen = log_p.gather(-1, ids)
    rest = torch.log1p(-chosen.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-12))
    return torch.cat([chosen, rest], -1) if ids.shape[-1] < log_p.shape[-1] else chosen


def oracle(
    run: Recorded, samples: int = 8, rate: float = 0.01, beta: float = 1.0, k: int = 100, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        asked = [run.render(run.example(i).messages) for i in rows for _ in range(samples)]
        attempts, number = run.sample(asked), 0
        distances, entropies, gains = list[torch.Tensor](), list[torch.Tensor](), list[torch.Tensor]()
        for n, (prompt, y) in enumerate(zip(asked, attempts, strict=True)):
            e, begin = run.example(rows[n // samples]), n - n % samples
            number += len(y.ids)
            p = run.log_probs(model, prompt, y.ids)
            rewards = torch.tensor([float(run.right(o.text)) for o in attempts[begin : begin + samples]])
            solved = [m for m in range(begin, begin + samples) if m != n and run.right(attempts[m].text)]
            if run.right(y.text) or not solved:
                advantage = (rewards[n % samples] - rewards.mean()) / (rewards.std(unbiased=False) + 1e-4)
                gains.append(torch.exp(of(p, y.ids) - of(p, y.ids).detach()) * advantage)
                continue
            text = CLOSING.format(x=e.prompt, solution=attempts[solved[0]].text.strip())
            with torch.no_grad():
                q = run.log_probs(teacher, run.render([("user", text)]), y.ids)
            entropies.append(-(q.exp() * q).sum(-1))
            top = p.topk(min(k, p.shape[-1]), -1).indices
            p, q = bucketed(p, top), bucketed(q, top)
            m = torch.log((p.exp() + q.exp()) / 2)
            distances.append(2 * (q.exp() * (q - m) + p.exp() * (p - m)).sum(-1))
        loss = -torch.cat(gains).sum() / number if gains else torch.zeros((), dtype=torch.float64)
        if distances:
            weight = torch.exp(-beta * torch.cat(entropies))
            loss = loss + (weight / weight.mean() * torch.cat(distances)).sum() / number
        step(optimizer, loss, losses)
        with torch.no_grad():
            for average, w in zip(teacher.parameters(), model.parameters(), strict=True):
                average.lerp_(w, rate)
    return losses, model
