"""GKD: L = mean_t JS_beta(q_t, p_t) on own answers with probability lambda, else on demonstrations.

Without another model the teacher q is the start model that has read the demonstration.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded, teacher: str | None = None, share: float = 0.5, beta: float = 0.5, max_tokens: int = 512
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    judge, optimizer = run.copy(model), run.optimizer(model)
    for number, rows in enumerate(run.batches()):
        examples = [run.example(i) for i in rows]
        asked = [run.render(e.messages) for e in examples]
        answers = [run.answer(e.demonstration) for e in examples]
        if run.uniform(0, number) <= share:
            answers = [y.ids for y in run.sample(asked)]
        tokens = []
        for e, prompt, y in zip(examples, asked, answers, strict=True):
            shown = run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))])
            p, q = run.log_probs(model, prompt, y), run.log_probs(judge, shown, y)
            m = torch.log(beta * q.exp() + (1 - beta) * p.exp())
            js = beta * q.exp() * (q - m) + (1 - beta) * p.exp() * (p - m)
            tokens.append(js.sum(-1) / (beta * (1 - beta)))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
