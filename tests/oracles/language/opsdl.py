"""OPSDL: L = -mean_t sg(log q(y_t) - log p(y_t)) log p(y_t), y drawn after the long text; q is the student itself after
the short one."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, max_tokens: int = 1024) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    for rows in run.batches():
        examples = [run.example(i) for i in rows]
        asked, tokens = [run.render(e.messages) for e in examples], []
        for e, prompt, y in zip(examples, asked, run.sample(asked), strict=True):
            p = of(run.log_probs(model, prompt, y.ids), y.ids)
            q = of(run.log_probs(model, run.render([("user", e.privileged_context)]), y.ids), y.ids)
            tokens.append((p - q).detach() * p)
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, model
