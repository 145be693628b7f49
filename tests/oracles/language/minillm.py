"""MiniLLM: L = mean_t w_t [KL(p_t || q_t) - R_t log p(y_t)], y drawn from a q + (1 - a) p, w_t = p(y_t) / m(y_t) <= 2.

R_t is the mean of log q(y_s) - log p(y_s) over the later tokens s; without another model q has read the demonstration.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded, teacher: str | None = None, share: float = 0.2, max_tokens: int = 512
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    judge, optimizer = run.copy(model), run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked = [run.render(e.messages) for e in examples]
        tokens = []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            shown = run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))])
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(judge, shown, y.ids)
            now, gap = of(p, y.ids), (of(q, y.ids) - of(p, y.ids)).detach()
            later = [gap[t + 1 :].mean() if t + 1 < len(gap) else gap.new_zeros(()) for t in range(len(gap))]
            weight = torch.ones_like(gap) if y.log_m is None else torch.exp(now.detach() - y.log_m).clamp(max=2.0)
            tokens.append(weight * ((p.exp() * (p - q)).sum(-1) - torch.stack(later) * now))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
