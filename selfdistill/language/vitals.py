"""Is the signal of a language model's teacher alive, and does it teach what it should? Asked of a few audit prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..step import Batch, Clock, Rows, Step
from ..tasks.prompts import Prompts
from .causal import Causal, completions, packed
from .contexts import Rollout
from .divergences import ForwardKL, Head, Source, divergence, log_probabilities
from .method import views
from .rollouts import Engine, Referee, Sampling, by_transformers, roll
from .terms import Distil

if TYPE_CHECKING:
    from .trainer import LanguageTrainer

#: Words of doubt; a teacher that has read the solution stops saying them (arXiv 2603.24472).
DOUBT = re.compile(r"\b(wait|hmm+|maybe|perhaps|actually|let me (re)?check|not sure|alternatively|i think)\b", re.I)
#: Tokens of style rather than of content, which carry much of the KL (OPSD, arXiv 2601.18734).
STYLE = re.compile(r"^\W*(wait|think|okay|so|well|now|let|me|first|hmm|maybe|alright|sure|the|following)?\W*$", re.I)
#: A student that speaks of what only its teacher read.
LEAK = re.compile(
    r"\b(as (shown |given |stated )?in the (reference|example|solution|demonstration)|following the example"
    r"|the (reference|given) (solution|answer|response)|(according to|based on) the (example|reference|hint))", re.I,
)  # fmt: skip
LOOKED_AT = 32  # prompts


def checked(data: Prompts) -> bool:
    """Can every row that is not taught be judged by a checker?"""
    rows = [data.rows[i] for part in (data.audit, data.test) for i in part.tolist()]
    rows = rows or [data.rows[i] for i in data.labelled.tolist()]
    return bool(rows) and all(row.checker is not None for row in rows)


@torch.no_grad()
def losses(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling, referee: Referee,
           engine: Engine = by_transformers) -> list[float]:  # fmt: skip
    """The loss of each row: 1 minus the reward of its greedy answer, or without checkers the mean NLL of a token of its
    demonstration, in nats."""
    from .contexts import rendered

    if not ids:
        return []
    prompts = [(i, rendered(model.tokenizer, data.rows[i].messages)) for i in ids]
    if checked(data):
        said = roll(model, prompts, sampling, (0, "greedy"), engine)
        return [1.0 - (referee(r, data.rows[r.example]).reward or 0.0) for r in said]
    found = list[float]()
    end = [model.tokenizer.eos_token_id] if model.tokenizer.eos_token_id is not None else []
    for i, prompt in prompts:
        text = data.rows[i].demonstration
        if text is None:
            continue
        x = packed([(prompt, [*model.tokenizer(text, add_special_tokens=False)["input_ids"], *end])])
        source, said_ids = read(model, x.to(next(model.parameters()).device))
        found.append(float(-log_probabilities(source, said_ids, vocabulary=model.vocabulary).mean()))
    return found


def length(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling) -> float:
    """Mean tokens of the greedy answers to some prompts."""
    from .contexts import rendered

    said = roll(model, [(i, rendered(model.tokenizer, data.rows[i].messages)) for i in ids], sampling, (0, "greedy"))
    return sum(len(r.ids) for r in said) / max(1, len(said))


def read(model: Causal, x: Tensor) -> tuple[Source, Tensor]:
    """What a model says at every completion token of some rows, and their ids; both in one row."""
    ids, real = completions(x)
    return model.source(model.look(x)[real]), ids[real]


def look(trainer: LanguageTrainer) -> dict[str, Any]:
    """How the teacher fares, how far the student went, and what its answers are like.

    ``accuracy`` and, after the context, ``teacher_accuracy``; ``kl`` of teacher and student and ``kl_to_start`` in nats
    a token; ``entropy`` of the student in nats; ``length`` in tokens; ``doubt``: words of uncertainty in a hundred;
    ``style``: share of the KL on tokens of style; ``leakage``: share of answers that speak of what was not shown.
    """
    ids = (trainer.data.audit if len(trainer.data.audit) else trainer.data.labelled)[:LOOKED_AT].tolist()
    method, sampling = trainer.method, trainer.method.sampling or trainer.greedy
    drawn = trainer.roll(ids, sampling, (trainer.settings.seed, "vitals", trainer.objective.clock.generation))
    answers = [r for r in drawn if r.ids]
    if not answers:
        return {}
    x = packed([(r.prompt, r.ids) for r in answers]).to(trainer.device)
    source, _ = read(trainer.model, x)
    words = sum(max(1, len(r.text.split())) for r in answers)
    found: dict[str, Any] = {
        "accuracy": _mean([r.reward for r in answers]),
        "length": sum(len(r.ids) for r in answers) / len(answers),
        "entropy": entropy(source, trainer.model.vocabulary),
        "doubt": 100 * sum(len(DOUBT.findall(r.text)) for r in answers) / words,
        "leakage": sum(bool(LEAK.search(r.text)) for r in answers) / len(answers),
        "kl_to_start": _to_start(trainer, x, source),
    }
    return found | _teacher(trainer, method.context, answers, ids)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def entropy(source: Source, vocabulary: int) -> float:
    """Mean entropy of a token in nats: log V - KL(p || uniform)."""
    first = source if isinstance(source, Tensor) else source.hidden
    uniform = Head(first.new_zeros(len(first), 1), first.new_zeros(vocabulary, 1))
    with torch.no_grad():
        far = divergence(uniform, source, ForwardKL(), vocabulary=vocabulary).values
    return math.log(vocabulary) - float(far.mean())


def _to_start(trainer: LanguageTrainer, x: Tensor, source: Source) -> float | None:
    """KL(student || start), where the start is at hand without loading it: under LoRA."""
    if not trainer.model.adapted:
        return None
    with trainer.model.without_adapter():
        start, _ = read(trainer.model, x)
    with torch.no_grad():
        return float(divergence(start, source, ForwardKL(), vocabulary=trainer.model.vocabulary).values.mean())


def _teacher(trainer: LanguageTrainer, context: Any, answers: Sequence[Rollout], ids: Sequence[int]) -> dict[str, Any]:
    """What the teacher says of the student's answers, and the student's own score with the context before it."""
    terms = {n: t for n, t in trainer.method.terms.items() if hasattr(t, "divergence")}
    if not terms:
        return {}
    name, term = next(iter(terms.items()))
    assert isinstance(term, Distil)
    made = views(trainer.method, trainer, answers)
    pairs, rows = made["context"]
    if not pairs:
        return {"context_share": 0.0}
    chosen = [answers[i] for i in rows.tolist()]
    x = packed([(r.prompt, r.ids) for r in chosen]).to(trainer.device)
    batch = Batch({"x": Rows(x), "context": Rows(packed(pairs).to(trainer.device), None, rows)})
    with trainer.model.asking():
        step = Step(trainer.model, batch, Clock(), fused=False, owner=trainer.model)
        state = trainer.objective._state(name, term.teacher)
        teacher = term.teacher.source(state, step, "context")
        source, said = read(trainer.model, x)
        values = divergence(source, teacher, ForwardKL(), vocabulary=trainer.model.vocabulary).values
    total = float(values.sum())
    styled = [bool(STYLE.match(trainer.tokenizer.decode([i]))) for i in said.tolist()]
    share = float(values[torch.tensor(styled, device=values.device)].sum()) / total if total > 0 else None
    told = trainer.roll(ids, trainer.method.sampling or trainer.greedy, (0, "told"), 1, context)
    return {
        "kl": float(values.mean()), "style": share, "context_share": len(pairs) / len(answers),
        "teacher_accuracy": _mean([r.reward for r in told]),
    }  # fmt: skip
