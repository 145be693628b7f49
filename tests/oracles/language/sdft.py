"""SDFT: L = mean_i mean_{t >= skip} KL(q_t || p_t) on y ~ p(. | x); q is the student's average, which has read c."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded, rate: float = 0.01, skip: int = 3, turns: bool = False, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked = [run.render(e.messages) for e in examples]
        means = []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            if turns:
                shown = [*e.messages, ("assistant", e.demonstration), e.messages[-1]]
            else:
                shown = [("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))]
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(teacher, run.render(shown), y.ids)
            kl = (q.exp() * (q - p)).sum(-1)[skip:]
            if len(kl):
                means.append(kl.mean())
        step(optimizer, torch.stack(means).mean(), losses)
        with torch.no_grad():
            for average, w in zip(teacher.parameters(), model.parameters(), strict=True):
                average.lerp_(w, rate)
    return losses, model
