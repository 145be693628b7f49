"""OPSD: L = mean_t sum_v min(q_v (log q_v - log p_v), c) on own solutions; q is the start model given the reference."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

TEMPLATE = (
    "{x}\n\nHere is a reference solution to this problem:\n{c}\n\nAfter understanding the reference solution, now "
    "articulate your own step-by-step reasoning to solve the problem."
)


def oracle(run: Recorded, clip: float = 0.05, max_tokens: int = 1024) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked = [run.render(e.messages) for e in examples]
        tokens = []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            shown = run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))])
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(teacher, shown, y.ids)
            tokens.append((q.exp() * (q - p)).clamp(max=clip).sum(-1))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
