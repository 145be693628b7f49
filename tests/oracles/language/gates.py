"""GATES: cross-entropy on what the tutor, who has read the document, says in the majority of k answers, where at least
m agree; and there a times -clip(log q(u) - log p(u)) log p(u) of the student's own answers u, q the tutor."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

DOCUMENT = "Document:\n{c}\n\nQuestion: {x}"


def oracle(
    run: Recorded, samples: int = 8, agree: int = 4, on: float = 0.1, clip: float = 5.0, max_tokens: int = 1024
) -> tuple[list[float], Any]:
    model, losses = run.model(), list[float]()
    optimizer = run.optimizer(model)
    for rows in run.batches():
        plain = [run.render(run.example(i).messages) for i in rows]
        shown = []
        for i in rows:
            e = run.example(i)
            shown.append(run.render([("user", DOCUMENT.format(x=e.prompt, c=e.demonstration))]))
        told = run.sample([prompt for prompt in shown for _ in range(samples)])
        likely, learnt = list[torch.Tensor](), list[int]()
        for n, prompt in enumerate(plain):
            answers = told[n * samples : (n + 1) * samples]
            said = [" ".join(y.text.split()).lower().rstrip(".") for y in answers]
            best = max(dict.fromkeys(said), key=lambda one: said.count(one) if one else 0)
            if not best or said.count(best) < agree:
                continue
            learnt.append(n)
            for y, text in zip(answers, said, strict=True):
                if text == best:
                    likely.append(of(run.log_probs(model, prompt, y.ids), y.ids))
        loss = -torch.cat(likely).mean() if likely else sum(w.sum() * 0.0 for w in model.parameters())
        if on and learnt:
            own, gains = run.sample([plain[n] for n in learnt for _ in range(samples)]), []
            for number, u in enumerate(own):
                n = learnt[number // samples]
                p = of(run.log_probs(model, plain[n], u.ids), u.ids)
                q = of(run.log_probs(model, shown[n], u.ids), u.ids)
                gains.append((q - p).detach().clamp(-clip, clip) * p)
            loss = loss - on * torch.cat(gains).mean()
        step(optimizer, loss, losses)
    return losses, model
