"""LSM: L = mean_t KL(P_t || Q_t), both softmaxes over the teacher's top k tokens alone; y is drawn with top p."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded, teacher: str | None = None, k: int = 32, top_p: float = 0.9, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    judge, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked, tokens = [run.render(e.messages) for e in examples], []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            shown = run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))])
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(judge, shown, y.ids)
            best, ids = q.topk(min(k, q.shape[-1]), -1)
            mine, theirs = torch.log_softmax(p.gather(-1, ids), -1), torch.log_softmax(best, -1)
            tokens.append((mine.exp() * (mine - theirs)).sum(-1))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
