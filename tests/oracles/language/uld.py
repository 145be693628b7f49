"""ULD: L = mean_t -log p(c_t) + w mean_c mean_t sum_i |p_t,(i) - q_t,(i)|, the t-th tokens of both sides compared."""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, of, step


def oracle(run: Recorded, teacher: str | None = None, weight: float = 1.5) -> tuple[list[float], Any]:
    model, losses, (judge, words) = run.model(), list[float](), run.other(str(teacher))
    optimizer = run.optimizer(model)
    for rows in run.batches():
        label, means = [], []
        for e in map(run.example, rows):
            prompt, said = run.render(e.messages), run.answer(e.demonstration)
            turns = [{"role": role, "content": content} for role, content in e.messages]
            text = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
            asked, theirs = (list(words(t, add_special_tokens=False)["input_ids"]) for t in (text, e.demonstration))
            theirs = [*theirs, words.eos_token_id]
            log_p, log_q = run.log_probs(model, prompt, said), run.log_probs(judge, asked, theirs, len(words))
            label.append(-of(log_p, said))
            distances = []
            for p, q in zip(log_p.exp(), log_q.exp(), strict=False):  # up to the end of the shorter side
                large, few = sorted(q.tolist(), reverse=True), p.sort(descending=True).values
                wanted = torch.tensor(large, dtype=torch.float64)
                distances.append((few - wanted[: len(few)]).abs().sum() + wanted[len(few) :].sum())
            means.append(torch.stack(distances).mean())
        step(optimizer, torch.cat(label).mean() + weight * torch.stack(means).mean(), losses)
    return losses, model
