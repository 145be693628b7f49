"""STaR: keep own reasoning that was right; where it was wrong, reason again with a hint; train p_0 on it; repeat."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step

HINT = "{x}\n\nHint: the answer is {answer}. Explain step by step how to arrive at it."


def oracle(run: Recorded, generations: int = 3, max_tokens: int = 512) -> tuple[list[float], Any]:
    losses, model = list[float](), run.model()
    examples = [run.example(i) for i in run.taught]
    asked = [run.render(e.messages) for e in examples]
    for generation in range(generations):
        drawn = run.sample(asked)
        kept = {n: y.ids for n, y in enumerate(drawn) if run.nonempty(y) and run.right(y.text)}
        missing = [n for n in range(len(asked)) if n not in kept]
        hints = [run.render([("user", HINT.format(x=examples[n].prompt, answer=examples[n].answer))]) for n in missing]
        for n, y in zip(missing, run.sample(hints) if missing else [], strict=True):
            if run.nonempty(y) and run.right(y.text):
                kept[n] = y.ids
        pairs = [(asked[n], kept[n]) for n in sorted(kept)]
        model = run.model()
        optimizer = run.optimizer(model)
        for rows in run.batches(generation):
            tokens = [of(run.log_probs(model, *pairs[i]), pairs[i][1]) for i in rows]
            step(optimizer, -torch.cat(tokens).mean(), losses)
    return losses, model
