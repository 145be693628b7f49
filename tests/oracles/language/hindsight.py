"""Hindsight: L = -mean_i mean_{t >= skip} sg(log q(y_t) - log p(y_t)) log p(y_t) on the answers of a log; q is the
student itself, told what the user said of the answer."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

TEMPLATE = (
    "{x}\n\nTo an earlier answer the user replied:\n{o}\n\nAnswer the request itself, better than that answer did."
)


def oracle(run: Recorded, skip: int = 2) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    for rows in run.batches():
        means = []
        for e in (run.example(i) for i in rows):
            ids = run.answer(e.wrong)
            told = run.render([("user", TEMPLATE.format(x=e.prompt, o=e.feedback))])
            p = of(run.log_probs(model, run.render(e.messages), ids), ids)
            q = of(run.log_probs(model, told, ids), ids)
            means.append(((p - q).detach() * p)[skip:].mean())
        step(optimizer, torch.stack(means).mean(), losses)
    return losses, model
