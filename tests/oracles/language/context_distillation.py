"""Context distillation: y ~ p_0(. | c, x) once; L = mean_t KL(p_0(. | c, x, y_<t) || p_t), or -mean_t log p(y_t)."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

TEMPLATE = (
    "{x}\n\nThis is an example for a response to the question:\n{c}\n\n"
    "Now answer with a response of your own, including the thinking process."
)


def oracle(
    run: Recorded, instruction: str | None = None, hard: bool = False, max_tokens: int = 512
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    asked, shown = [], []
    for e in (run.example(i) for i in run.taught):
        asked.append(run.render(e.messages))
        context = [("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))]
        shown.append(run.render(context if instruction is None else [("system", instruction), *e.messages]))
    drawn = zip(asked, shown, run.sample(shown), strict=True)
    kept = [(prompt, read, y.ids) for prompt, read, y in drawn if run.nonempty(y)]
    for rows in run.batches():
        tokens = []
        for prompt, read, y in (kept[i] for i in rows):
            p, q = run.log_probs(model, prompt, y), run.log_probs(teacher, read, y)
            tokens.append(-of(p, y) if hard else (q.exp() * (q - p)).sum(-1))
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
