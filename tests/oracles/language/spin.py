"""SPIN: L = mean log(1 + exp(-lam (log p(c) / p_k(c) - log p(y) / p_k(y)))); the last generation p_k wrote y."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, lam: float = 0.1, generations: int = 3, max_tokens: int = 256) -> tuple[list[float], Any]:
    losses, model = list[float](), run.model()
    asked = [run.render(run.example(i).messages) for i in run.taught]
    for generation in range(generations):
        last, optimizer = run.copy(model), run.optimizer(model)
        drawn = zip(run.taught, asked, run.sample(asked), strict=True)
        pairs = [(run.answer(run.example(i).demonstration), prompt, y.ids) for i, prompt, y in drawn if run.nonempty(y)]
        for rows in run.batches(generation):
            parts = []
            for c, prompt, y in (pairs[i] for i in rows):
                ratio = [
                    (of(run.log_probs(model, prompt, ids), ids) - of(run.log_probs(last, prompt, ids), ids)).sum()
                    for ids in (c, y)
                ]
                parts.append(torch.log1p(torch.exp(-lam * (ratio[0] - ratio[1]))))
            step(optimizer, torch.stack(parts).mean(), losses)
    return losses, model
