"""Is the signal of a language model's teacher alive, and does it teach what it should? Asked of a few audit prompts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..core import distributed
from ..core.logits import Source
from ..core.step import Batch, Clock, Forward, ForwardPlan, Passes, Rows
from ..data.prompts import Prompts
from ..losses.chunked.definitions import ForwardKL
from ..losses.chunked.divergences import divergence, entropies, log_probabilities
from ..models.causal_lm import Causal, completions, packed
from .completions import views
from .contexts import Context, Rollout, completed, rendered
from .sampling import Engine, Referee, Sampling, Waiting, by_transformers, roll

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


def answered(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling, referee: Referee,
             engine: Engine = by_transformers) -> list[Rollout]:  # fmt: skip
    """What a model says to some rows, checked where a checker is."""
    prompts = [(i, rendered(model.tokenizer, data.rows[i].messages)) for i in ids]
    return [referee(r, data.rows[r.example]) for r in roll(model, prompts, sampling, (0, "greedy"), engine)]


def wrong(answers: Sequence[Rollout]) -> list[float]:
    """The loss of each checked answer: 1 minus its reward."""
    return [1.0 - (r.reward or 0.0) for r in answers]


@torch.no_grad()
def unlikely(model: Causal, data: Prompts, ids: Iterable[int]) -> list[float]:
    """The mean NLL of a token of the demonstration, in nats, of each row that has one."""
    found = list[float]()
    for row in (data.rows[i] for i in ids):
        if row.demonstration is None:
            continue
        prompt, said = rendered(model.tokenizer, row.messages), completed(model.tokenizer, row.demonstration)
        source, said_ids = read(model, packed([(prompt, said)]).to(next(model.parameters()).device))
        found.append(float(-log_probabilities(source, said_ids, vocabulary=model.vocabulary).mean()))
    return found


def losses(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling, referee: Referee,
           engine: Engine = by_transformers) -> list[float]:  # fmt: skip
    """The loss of each row: 1 minus the reward of its answer or, where rows have no checkers, the NLL of its
    demonstration."""
    if checked(data):
        return wrong(answered(model, data, ids, sampling, referee, engine))
    return unlikely(model, data, engine.each(ids) if isinstance(engine, Waiting) else ids)


def figures(judged: dict[str, Any], right: bool) -> dict[str, float]:
    """Means of losses by row: accuracy (or NLL, unless ``right``), and accuracy on the suite where there is one."""
    mean = math.fsum(judged["losses"]) / max(1, len(judged["losses"]))
    kept = {"kept": 1 - math.fsum(s) / len(s)} if (s := judged.get("suite")) else {}
    return {"accuracy" if right else "nll": 1 - mean if right else mean, **kept}


def judged(trainer: LanguageTrainer) -> dict[str, Any]:
    """Losses on the audit rows and on the suite, of the model as it is."""
    data, suite = trainer.data, trainer.suite
    who = f"generation {trainer.objective.clock.generation}" if trainer.before else "the model before"
    wait = trainer.waiting(f"{who} answers", len(data.audit) + (0 if suite is None else len(suite.test)))
    how = (trainer.greedy, trainer.referee, wait)
    with distributed.whole(trainer.model):
        found: dict[str, Any] = {"losses": losses(trainer.model, data, data.audit.tolist(), *how)}
        if suite is not None:
            found["suite"] = losses(trainer.model, suite, suite.test.tolist(), *how)
    trainer.passes += Passes(evaluation=sum(map(len, found.values())))
    return found


def read(model: Causal, x: Tensor) -> tuple[Source, Tensor]:
    """What a model says at every completion token of some rows, and their ids; both in one row."""
    ids, real = completions(x)
    return model.says(x), ids[real]


def look(trainer: LanguageTrainer) -> dict[str, Any]:
    """How the teacher fares, how far the student went, and what its answers are like.

    ``accuracy``, and ``teacher_accuracy`` of the same weights with the context before them; ``kl`` of teacher and
    student and ``kl_to_start`` in nats a token; ``entropy`` of the student in nats; ``length`` in tokens; ``doubt``:
    words of uncertainty in a hundred; ``style``: share of the KL on tokens of style; ``leakage``: share of answers that
    speak of what was not shown.
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
        "entropy": float(entropies(source, trainer.model.vocabulary).mean()),
        "doubt": 100 * sum(len(DOUBT.findall(r.text)) for r in answers) / words,
        "leakage": sum(bool(LEAK.search(r.text)) for r in answers) / len(answers),
        "kl_to_start": _to_start(trainer, x, source),
    }
    return found | _teacher(trainer, method.context, answers, ids)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _to_start(trainer: LanguageTrainer, x: Tensor, source: Source) -> float | None:
    """KL(student || start), where the start is at hand without loading it: under LoRA."""
    if not trainer.model.adapted:
        return None
    with trainer.model.without_adapter():
        start, _ = read(trainer.model, x)
    with torch.no_grad():
        return float(divergence(start, source, ForwardKL(), vocabulary=trainer.model.vocabulary).values.mean())


class Opinion(NamedTuple):
    """A teacher of some answers: the rows that it judges, what it says and the KL from the student token by token, and
    the tokens' ids; all of the rows judged, in one row."""

    rows: list[int]
    teacher: Source
    kl: Tensor
    ids: Tensor


@torch.no_grad()
def opinion(trainer: LanguageTrainer, name: str, answers: Sequence[Rollout]) -> Opinion | None:
    """What the teacher of a term says of the student's answers; None where its context adds to none of them."""
    pairs, rows = views(trainer.method, trainer, answers)["context"]
    if not pairs:
        return None
    chosen = [answers[i] for i in rows.tolist()]
    x = packed([(r.prompt, r.ids) for r in chosen]).to(trainer.device)
    batch = Batch({"x": Rows(x), "context": Rows(packed(pairs).to(trainer.device), None, rows)})
    term = trainer.method.distils[name]
    with trainer.model.asking():
        step = Forward(trainer.model, batch, Clock(), ForwardPlan(fused=False)).run()
        teacher = term.teacher.source(trainer.objective.state_of(name, term.teacher), step, "context")
        source, ids = read(trainer.model, x)
        kl = divergence(source, teacher, ForwardKL(), vocabulary=trainer.model.vocabulary).values
    return Opinion(rows.tolist(), teacher, kl, ids)


def _teacher(
    trainer: LanguageTrainer, context: Context, answers: Sequence[Rollout], ids: Sequence[int]
) -> dict[str, Any]:
    """What the teacher says of the student's answers, and the student's own score with the context before it."""
    name = next(iter(trainer.method.distils), None)
    if name is None:
        return {}
    found = opinion(trainer, name, answers)
    if found is None:
        return {"context_share": 0.0}
    total = float(found.kl.sum())
    styled = [bool(STYLE.match(trainer.tokenizer.decode([i]))) for i in found.ids.tolist()]
    share = float(found.kl[torch.tensor(styled, device=found.kl.device)].sum()) / total if total > 0 else None
    told = trainer.roll(ids, trainer.method.sampling or trainer.greedy, (0, "told"), 1, context)
    return {
        "kl": float(found.kl.mean()), "style": share, "context_share": len(found.rows) / len(answers),
        "teacher_accuracy": _mean([r.reward for r in told]),
    }  # fmt: skip
