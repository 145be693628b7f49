"""On-policy context distillation: L = mean_t KL(p_t || q_t), y ~ p(. | x); q is the start model with the context."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def bucketed(log_p: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of some tokens, and of all others together."""
    chosen = log_p.gather(-1, ids)
    rest = torch.log1p(-chosen.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-12))
    return torch.cat([chosen, rest], -1) if ids.shape[-1] < log_p.shape[-1] else chosen


def oracle(
    run: Recorded, instruction: str | None = None, k: int = 100, max_tokens: int = 512
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked = [run.render(e.messages) for e in examples]
        tokens = []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            shown = [("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))]
            if instruction is not None:
                shown = [("system", instruction), *e.messages]
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(teacher, run.render(shown), y.ids)
            top = p.topk(min(k, p.shape[-1]), -1).indices
            p, q = bucketed(p, top), bucketed(q, top)
            tokens.append((p.exp() * (p - q)).sum(-1))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
