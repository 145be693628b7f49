"""OPSDC: L = mean_i mean_t KL(p_t || q_t), q is a copy of the student, made every M steps, that is told to be brief."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

CONCISE = "Answer concisely and correctly: nothing beside the point, and no step that the answer does not need."


def oracle(
    run: Recorded, instruction: str = CONCISE, every: int = 50, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    teacher, optimizer = run.copy(model), run.optimizer(model)
    for number, rows in enumerate(run.batches(), 1):
        asked = [run.render(run.example(i).messages) for i in rows]
        means = []
        for i, prompt, y in zip(rows, asked, run.sample(asked), strict=True):
            shown = run.render([("user", instruction + "\n\n" + run.example(i).prompt)])
            p, q = run.log_probs(model, prompt, y.ids), run.log_probs(teacher, shown, y.ids)
            means.append((p.exp() * (p - q)).sum(-1).mean())
        step(optimizer, torch.stack(means).mean(), losses)
        if number % every == 0:
            teacher = run.copy(model)
    return losses, model
