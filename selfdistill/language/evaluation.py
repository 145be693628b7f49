"""Language models evaluated: on audit rows and prior tasks, by vitals of the teacher, and by checks before step 0."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import distributed
from ..core.logits import Logits, picked
from ..core.step import Batch, Forward, ForwardPlan, Passes, TrainingClock
from ..data.prompts import Prompts
from ..errors import DataError, VitalsError
from ..losses.chunked.definitions import ForwardKL
from ..losses.chunked.divergences import divergence, entropies, log_probabilities
from ..models.causal_lm import Causal, check_length, completion_rows, completions, packed
from ..teachers import CurrentStudent, External
from ..terms.spans import SpanTerm
from ..training.state import Evaluation
from .completions import CONTEXT, Writer, views
from .contexts import LEAK, Context, NoContext, Rollout, completed, paired, rendered
from .prompt_check import possible_rollouts
from .sampling import Engine, RewardCheckers, Sampling, WritingProgress, by_transformers, roll

#: Words of doubt; a teacher that has read the solution stops saying them (arXiv 2603.24472).
DOUBT = re.compile(r"\b(wait|hmm+|maybe|perhaps|actually|let me (re)?check|not sure|alternatively|i think)\b", re.I)


#: Tokens of style rather than of content, which carry much of the KL (OPSD, arXiv 2601.18734).
STYLE = re.compile(r"^\W*(wait|think|okay|so|well|now|let|me|first|hmm|maybe|alright|sure|the|following)?\W*$", re.I)


LOOKED_AT = 32  # prompts


def checked(data: Prompts) -> bool:
    """Can every row that is not taught be judged by a checker?"""
    rows = [data.rows[i] for part in (data.audit, data.test) for i in part.tolist()]
    rows = rows or [data.rows[i] for i in data.labelled.tolist()]
    return bool(rows) and all(row.checker is not None for row in rows)


def answered(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling, referee: RewardCheckers,
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


def losses(model: Causal, data: Prompts, ids: Sequence[int], sampling: Sampling, referee: RewardCheckers,
           engine: Engine = by_transformers) -> list[float]:  # fmt: skip
    """The loss of each row: 1 minus the reward of its answer or, where rows have no checkers, the NLL of its
    demonstration."""
    if checked(data):
        return wrong(answered(model, data, ids, sampling, referee, engine))
    return unlikely(model, data, engine.each(ids) if isinstance(engine, WritingProgress) else ids)


def figures(judged: dict[str, Any], right: bool) -> dict[str, float]:
    """Means of losses by row: accuracy (or NLL, unless ``right``), and accuracy on the suite where there is one."""
    mean = math.fsum(judged["losses"]) / max(1, len(judged["losses"]))
    kept = {"kept": 1 - math.fsum(s) / len(s)} if (s := judged.get("suite")) else {}
    return {"accuracy" if right else "nll": 1 - mean if right else mean, **kept}


def evaluate(writer: Writer, suite: Prompts | None, who: str, ids: Sequence[int] | None = None) -> Evaluation:
    """Losses of the writer's model on the audit rows and on prior tasks, with their means.

    Args:
        writer: who answers.
        suite: prior tasks, whose test rows are asked.
        who: its name, for messages of progress.
        ids: of rows in the place of the audit rows.
    """
    data, model = writer.data, writer.model
    asked = data.audit.tolist() if ids is None else ids
    wait = writer.waiting(f"{who} answers", len(asked) + (0 if suite is None else len(suite.test)))
    how = (writer.greedy, writer.referee, wait)
    with distributed.whole(model):
        by_row: dict[str, Any] = {"losses": losses(model, data, asked, *how)}
        if suite is not None:
            by_row["suite"] = losses(model, suite, suite.test.tolist(), *how)
    passes = Passes(evaluation=sum(map(len, by_row.values())))
    return Evaluation(figures(by_row, checked(data)), by_row["losses"], by_row.get("suite", []), passes)


def evaluate_best(writer: Writer, suite: Prompts | None, who: str) -> tuple[Evaluation, dict[str, float]]:
    """The evaluation of the writer's model where it is one; of peers that of the best on the audit rows, which answers
    from here on. Among equals it is the first.

    Args:
        writer: who answers.
        suite: prior tasks; of peers the chosen one alone is asked them.
        who: its name, for messages of progress.

    Returns:
        The evaluation, whose passes are those of all, and of peers the mean loss of each candidate.
    """
    names = writer.model.candidates
    if len(names) == 1:
        return evaluate(writer, suite, who), {}
    found = list[Evaluation]()
    for number, name in enumerate(names):
        writer.model.choose(number)
        found.append(evaluate(writer, None, f"{who}, {name},"))
    means = [math.fsum(one.losses) / max(1, len(one.losses)) for one in found]
    best = min(range(len(names)), key=means.__getitem__)
    writer.model.choose(best)
    passes = sum((one.passes for one in found), Passes())
    chosen = replace(found[best], passes=passes)
    if suite is not None:
        prior = evaluate(writer, suite, f"{who}, {names[best]},", [])
        metrics = {**chosen.metrics, "kept": prior.metrics["kept"]}
        chosen = replace(chosen, metrics=metrics, guard=prior.guard, passes=passes + prior.passes)
    return chosen, dict(zip(names, means, strict=True))


def read(model: Causal, x: Tensor) -> tuple[Logits, Tensor]:
    """What a model says at every completion token of some rows, and their ids; both in one row."""
    ids, real = completions(x)
    return model.completion_logits(x), ids[real]


def measure(writer: Writer) -> dict[str, Any]:
    """How the teacher fares, how far the student went, and what its answers are like.

    ``accuracy``, and ``teacher_accuracy`` of the same weights with the context before them; ``kl`` of teacher and
    student and ``kl_to_start`` in nats a token; ``entropy`` of the student in nats; ``length`` in tokens; ``doubt``:
    words of uncertainty in a hundred; ``style``: share of the KL on tokens of style, ``styled``: their share of all
    tokens; ``leakage``: share of answers that speak of what was not shown.
    """
    data = writer.data
    ids = (data.audit if len(data.audit) else data.labelled)[:LOOKED_AT].tolist()
    method, sampling = writer.method, writer.method.sampling or writer.greedy
    drawn = writer.roll(ids, sampling, (writer.seed, "vitals", writer.objective.clock.generation))
    answers = [r for r in drawn if r.ids]
    if not answers:
        return {}
    x = packed([(r.prompt, r.ids) for r in answers]).to(writer.device)
    source, _ = read(writer.model, x)
    words = sum(max(1, len(r.text.split())) for r in answers)
    found: dict[str, Any] = {
        "accuracy": _mean([r.reward for r in answers]),
        "length": sum(len(r.ids) for r in answers) / len(answers),
        "entropy": float(entropies(source).mean()),
        "doubt": 100 * sum(len(DOUBT.findall(r.text)) for r in answers) / words,
        "leakage": sum(bool(LEAK.search(r.text)) for r in answers) / len(answers),
        "kl_to_start": _to_start(writer, x, source),
    }
    return found | _teacher(writer, method.context, answers, ids)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def _to_start(writer: Writer, x: Tensor, source: Logits) -> float | None:
    """KL(student || start), where the start is at hand without loading it: under LoRA."""
    if not writer.model.has_adapter:
        return None
    with writer.model.without_adapter():
        start, _ = read(writer.model, x)
    with torch.no_grad():
        return float(divergence(start, source, ForwardKL(), vocabulary=writer.model.vocabulary).values.mean())


class TeacherJudgement(NamedTuple):
    """A teacher of some answers: the rows that it judges, what it says and the KL from the student token by token, and
    the tokens' ids; all of the rows judged, in one row."""

    rows: list[int]
    teacher: Logits
    kl: Tensor
    ids: Tensor


@torch.no_grad()
def opinion(writer: Writer, name: str, answers: Sequence[Rollout]) -> TeacherJudgement | None:
    """What the teacher of a term says of the student's answers; None where its context adds to none of them."""
    pairs, rows = views(writer, answers)["context"]
    if not pairs:
        return None
    chosen = [answers[i] for i in rows.tolist()]
    read = completion_rows(pairs)._replace(align=torch.arange(len(rows)))
    batch = Batch({"x": completion_rows([(r.prompt, r.ids) for r in chosen]), CONTEXT: read})
    batch = Batch({name: view.to(writer.device) for name, view in batch.items()})
    mask, term = batch["x"].extra["mask"], writer.method.distils[name]
    assert term.teacher is not None
    with writer.model.inference():
        forward = Forward(
            writer.model, batch, TrainingClock(), ForwardPlan(*writer.method.student_views(), fused=False)
        ).run()
        target = term.teacher.target(writer.objective.state_of(name, term.teacher), forward, term)
        source, teacher = (picked(logits, mask) for logits in (forward.student("x"), target.value))
        kl = divergence(source, teacher, ForwardKL()).values
    return TeacherJudgement(rows.tolist(), teacher, kl, forward.labels("x")[mask])


def _teacher(writer: Writer, context: Context, answers: Sequence[Rollout], ids: Sequence[int]) -> dict[str, Any]:
    """What the teacher says of the student's answers, and the student's own score with the context before it."""
    name = next(iter(writer.method.distils), None)
    if name is None:
        return {}
    found = opinion(writer, name, answers)
    if found is None:
        return {"context_share": 0.0}
    total = float(found.kl.sum())
    styled = [bool(STYLE.match(writer.tokenizer.decode([i]))) for i in found.ids.tolist()]
    share = float(found.kl[torch.tensor(styled, device=found.kl.device)].sum()) / total if total > 0 else None
    told = writer.roll(ids, writer.method.sampling or writer.greedy, (0, "told"), 1, context)
    return {
        "kl": float(found.kl.mean()), "style": share, "styled": sum(styled) / len(styled),
        "context_share": len(found.rows) / len(answers),
        "teacher_accuracy": _mean([r.reward for r in told]),
    }  # fmt: skip


# ---- before step 0 -----------------------------------------------------------------------------------


def check_teachers(writer: Writer, warn: Callable[[str], None]) -> None:
    """Can the teacher say anything that the student does not?

    Raises:
        VitalsError: it is the student itself and reads nothing more, so that the loss is 0 whatever it says.
    """
    for name, term in writer.method.distils.items():
        contexts = [c for c in (writer.method.context, writer.method.against) if c is not None]
        if isinstance(term.teacher, External) or any(_adds(writer, context) for context in contexts):
            continue
        if isinstance(term.teacher, CurrentStudent):
            raise VitalsError(
                "teacher-is-student",
                f"teacher-is-student: term {name!r} is taught by the student itself, and its context adds nothing to "
                f"any of {len(writer.data.labelled)} prompts, so there is nothing to learn; give one that does",
            )
        warn(
            f"warning: the context of term {name!r} adds nothing to any of {len(writer.data.labelled)} prompts: its "
            "teacher differs from the student by its weights alone"
        )


def check_other_prompts(writer: Writer) -> None:
    """Make the prompts of a teacher with a tokenizer of its own, of all rows that teach.

    Raises:
        DataError: its chat template refuses one, or one fills its context.
    """
    for name, term in writer.method.terms.items():
        if isinstance(term, SpanTerm):
            (teacher,) = writer.objective.state_of(name, term.teacher).module.student
            for i in writer.data.labelled.tolist():
                where = f"{writer.data.name}:{writer.data.rows[i].line}"
                try:
                    prompt = rendered(teacher.tokenizer, writer.data.rows[i].messages)
                except DataError as error:
                    raise DataError(f"{where}: what the teacher {term.teacher} reads: {error}") from error
                check_length(prompt, teacher, 1, f"{where}: what the teacher reads")


def _adds(writer: Writer, context: Context) -> bool:
    """Is there a row for which it makes another prompt than the student's?"""
    reader = writer.model.reader
    if isinstance(context, NoContext) and reader.teacher_template is None:
        return False
    for i in writer.data.labelled.tolist():
        row = writer.data.rows[i]
        plain = rendered(writer.tokenizer, row.messages)
        made = [
            paired(writer.tokenizer, context, row, rollouts, 0, reader.teacher_template)
            for rollouts in possible_rollouts(reader, writer.method, writer.data, i, plain)
        ]
        if any(prompt is not None and prompt != plain for prompt in made):
            return True
    return False
