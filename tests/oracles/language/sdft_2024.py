"""SDFT 2024: rewrite each demonstration, y ~ p_0(. | x, c); keep c where y is wrong; L = -mean_t log p(y_t)."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

TEMPLATE = (
    "Below are an instruction that describes a task along with a reference answer. Using the reference answer as a "
    "guide, write your own response.\n\n### Instruction:\n{x}\n\n### Reference Answer:\n{c}\n\n### Response:"
)


def oracle(run: Recorded, max_tokens: int = 512) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    examples = [run.example(i) for i in run.taught]
    shown = [run.render([("user", TEMPLATE.format(x=e.prompt, c=e.demonstration))]) for e in examples]
    kept = [
        (run.render(e.messages), y.ids if run.nonempty(y) and run.right(y.text) else run.answer(e.demonstration))
        for e, y in zip(examples, run.sample(shown), strict=True)
    ]
    for rows in run.batches():
        tokens = [of(run.log_probs(model, *kept[i]), kept[i][1]) for i in rows]
        step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
