"""EOPD: -sg(log q(y) - log p(y)) log p(y), and where q has an entropy above h also a times sum q log(q / p) over its
top k tokens; without another model q is the start model that has read the demonstration."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded,
    teacher: str | None = None,
    entropy: float = 0.8,
    weight: float = 1.0,
    k: int = 16,
    max_tokens: int = 1024,
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    judge, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked, tokens = [run.render(e.messages) for e in examples], []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            shown = run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))])
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(judge, shown, y.ids)
            gap = (of(q, y.ids) - of(p, y.ids)).detach()
            unsure = (-(q.exp() * q).sum(-1) > entropy).double()
            best, ids = q.topk(min(k, q.shape[-1]), -1)
            cover = (best.exp() * (best - p.gather(-1, ids))).sum(-1)
            tokens.append(-gap * of(p, y.ids) + weight * unsure * cover)
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
