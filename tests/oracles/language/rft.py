"""RFT: L = -mean_t log p(y_t | x, y_<t) over the distinct right ones among k samples of each prompt."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, samples: int = 8, temperature: float = 0.7, max_tokens: int = 512) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    asked = [run.render(run.example(i).messages) for i in run.taught for _ in range(samples)]
    pairs = list[tuple[list[int], list[int]]]()
    for prompt, y in zip(asked, run.sample(asked), strict=True):
        if run.nonempty(y) and run.right(y.text) and (prompt, y.ids) not in pairs:
            pairs.append((prompt, y.ids))
    for rows in run.batches():
        tokens = [of(run.log_probs(model, *pairs[i]), pairs[i][1]) for i in rows]
        step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
