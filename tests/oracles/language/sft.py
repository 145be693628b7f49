"""SFT: L = -mean_t log p(c_t | x, c_<t) over the tokens of the demonstrations c."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, epochs: int = 1) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    for rows in run.batches():
        tokens = []
        for i in rows:
            prompt, c = run.render(run.example(i).messages), run.answer(run.example(i).demonstration)
            tokens.append(of(run.log_probs(model, prompt, c), c))
        step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
