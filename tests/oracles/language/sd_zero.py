"""SD-Zero: L = mean_t KL(p_t || q_t) over q's k most probable tokens and the rest, y ~ p(. | x); q is the start model
that has read the attempt y and whether it was right."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

RIGHT, WRONG = "That is right. Say it again in other words.", "That is wrong. Correct it."


def bucketed(log_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of some tokens, and of all others together."""
    chosen = log_p.gather(-1, ids)
    rest = torch.log1p(-chosen.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-12))
    return torch.cat([chosen, rest], -1) if ids.shape[-1] < log_p.shape[-1] else chosen


def oracle(run: Recorded, k: int = 64, max_tokens: int = 1024) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    judge, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked, tokens = [run.render(e.messages) for e in examples], []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            if not y.text.strip():
                continue
            told = [*e.messages, ("assistant", y.text), ("user", RIGHT if run.right(y.text) else WRONG)]
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(judge, run.render(told), y.ids)
            top = q.topk(min(k, q.shape[-1]), -1).indices
            p, q = bucketed(p, top), bucketed(q, top)
            tokens.append((p.exp() * (p - q)).sum(-1))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
