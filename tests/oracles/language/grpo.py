"""GRPO: L = -mean_t min(r A, clip(r, 1 - e, 1 + e) A), A = (reward - mean) / (std + 1e-4) over samples of a prompt."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, samples: int = 8, clip: float = 0.2, max_tokens: int = 512) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    for rows in run.batches():
        asked = [run.render(run.example(i).messages) for i in rows for _ in range(samples)]
        drawn = run.sample(asked)
        rewards = torch.tensor([float(run.right(y.text)) for y in drawn]).view(-1, samples)
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, unbiased=False, keepdim=True) + 1e-4)
        tokens = []
        for prompt, y, a in zip(asked, drawn, advantages.flatten(), strict=True):
            now = of(run.log_probs(model, prompt, y.ids), y.ids)
            ratio = torch.exp(now - now.detach())
            tokens.append(torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a))
        step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
