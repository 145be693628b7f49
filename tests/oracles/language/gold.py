"""GOLD: at each span of text where tokens of both sides end, JS_b on shared tokens and sorted probabilities on others.

P_g is the probability of the span's tokens, but for the last one, times the distribution of the last one.
"""

from __future__ import annotations

from typing import Any

import torch

from tests.language.replay import Recorded, step

STOP = 1  # the student's token that ends an answer
SPECIAL = 5  # the student's first tokens, which are no text


def shared_ids(run: Recorded, words: Any) -> dict[int, int]:
    """The teacher's id of each token of the student that both have: letters, <pad>, and the ends of an answer."""
    own, found = run.started.tokenizer.get_vocab(), {0: words.convert_tokens_to_ids("<pad>"), STOP: words.eos_token_id}
    for i in range(len(words)):
        text = words.decode([i])
        if text in own and own[text] >= SPECIAL:
            found[own[text]] = i
    return found


def read(run: Recorded, words: Any, ids: list[int]) -> tuple[list[int], list[int], list[int]]:
    """A completion in the teacher's tokens, and where the tokens of student and teacher end."""
    said = next((n for n, i in enumerate(ids) if i < SPECIAL), len(ids))
    text = "".join(run.started.tokenizer.decode([i]) for i in ids[:said])
    found = words(text, add_special_tokens=False, return_offsets_mapping=True)
    theirs, ends = list(found["input_ids"]), [end for _, end in found["offset_mapping"]]
    mine = list(range(1, said + 1))
    if said < len(ids) and ids[said] == STOP:
        theirs, ends, mine = [*theirs, words.eos_token_id], [*ends, said + 1], [*mine, said + 1]
    return theirs, mine, ends


def prompt_of(words: Any, messages: Any) -> list[int]:
    """Messages in the teacher's template."""
    turns = [{"role": role, "content": content} for role, content in messages]
    text = words.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    return list(words(text, add_special_tokens=False)["input_ids"])


def sorted_distance(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """sum_i |p_(i) - q_(i)|, of one span."""
    rows = [torch.cat([x.sort(descending=True).values, torch.zeros(500)])[:500] for x in (p, q)]
    return (rows[0] - rows[1]).abs().sum()


def merged(log_p: torch.Tensor, ids: list[int], tokens: list[int]) -> torch.Tensor:
    """The probabilities of a span with any last token."""
    *before, last = tokens
    return log_p[last].exp() * torch.stack([log_p[t, ids[t]].exp() for t in before] or [torch.tensor(1.0)]).prod()


def oracle(
    run: Recorded,
    teacher: str | None = None,
    share: float = 0.5,
    beta: float = 0.5,
    matched: float | None = None,
    max_tokens: int = 512,
) -> tuple[list[float], Any]:
    model, losses, (judge, words) = run.model(), list[float](), run.other(str(teacher))
    optimizer, pairs = run.optimizer(model), shared_ids(run, words)
    own = [i for i in range(run.started.vocabulary) if i not in pairs]
    rest = [i for i in range(len(words)) if i not in pairs.values()]
    weight = len(pairs) / len(words) if matched is None else matched
    for number, rows in enumerate(run.batches()):
        examples, means = [run.example(i) for i in rows], []
        asked = [run.render(e.messages) for e in examples]
        answers = [run.answer(e.demonstration) for e in examples]
        if run.uniform(0, number) <= share:
            answers = [y.ids for y in run.sample(asked)]
        for e, prompt, ids in zip(examples, asked, answers, strict=True):
            theirs, mine_ends, their_ends = read(run, words, ids)
            spans, start = [], 0
            if theirs:
                log_p = run.log_probs(model, prompt, ids)
                log_q = run.log_probs(judge, prompt_of(words, e.messages), theirs, len(words))
            for end in sorted({*mine_ends} & {*their_ends}):
                p = merged(log_p, ids, [t for t, place in enumerate(mine_ends) if start < place <= end])
                q = merged(log_q, theirs, [t for t, place in enumerate(their_ends) if start < place <= end])
                a, b, start = p[[*pairs]].clamp(min=1e-8), q[[*pairs.values()]].clamp(min=1e-8), end
                m = beta * b + (1 - beta) * a
                js = beta * b * (b / m).log() + (1 - beta) * a * (a / m).log()
                spans.append(weight * js.sum() + (1 - weight) * sorted_distance(p[own], q[rest]))
            means += [torch.stack(spans).mean()] if spans else []
        step(optimizer, torch.stack(means).mean(), losses)
    return losses, model
