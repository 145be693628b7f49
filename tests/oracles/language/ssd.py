"""Simple self-distillation: y ~ truncate(p_0(. | x)^(1/T)), drawn once; L = -mean_t log p(y_t | x, y_<t)."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(
    run: Recorded, temperature: float = 1.6, top_k: int = 20, top_p: float = 0.8, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    asked = [run.render(run.example(i).messages) for i in run.taught]
    kept = [(prompt, y.ids) for prompt, y in zip(asked, run.sample(asked), strict=True) if run.nonempty(y)]
    for rows in run.batches():
        tokens = [of(run.log_probs(model, *kept[i]), kept[i][1]) for i in rows]
        step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
