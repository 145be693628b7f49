"""Will self-distillation help here? Asked of a few prompts before an hour is spent.

Before step 0: every prompt and context is made once, so that what does not fit says so there, with its line.

Do student and teacher read the same completion, after prompts that end alike? For terms on language models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.logits import Logits, dense
from ..errors import DataError
from ..losses.chunked.divergences import TokenDivergence
from . import evaluation
from .completions import Writer
from .contexts import LEAK, NoContext, Rollout
from .run import LanguageRun, spread

LEAST_KL = 1e-3  # nats a token, below which there is nothing to learn


MOST_LEAKS = 0.3  # share of told answers that speak of what the student has not read


def preflight(ready: LanguageRun, prompts: int = 32, device: torch.device | str = "cpu",
              tell: Callable[[str], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """Score the student, the student with the context, and the teacher on a few prompts, and say go or no-go.

    Go: with the context more prompts are solved (95 % interval over prompts above 0), the teacher differs from the
    student by more than `LEAST_KL`, and few of its answers speak of the context. Without checkers the first is not
    asked. A method without a context goes by whether some, and not all, prompts are solved. ``tell`` hears how far it
    is, now and then.

    Raises:
        DataError: the method has no teacher and no checker, so that there is nothing to ask.
    """
    data, method = ready.data, ready.method
    writer = Writer(method, data, seed=ready.settings["seed"], max_tokens=ready.max_tokens, hear=tell)
    writer.model = ready.build().to(device).train()
    writer.objective = method.bind(writer.model, vitals=False)
    ids, right, address = data.labelled[:prompts].tolist(), evaluation.checked(data), (writer.seed, "preflight")
    plain = writer.roll(ids, writer.greedy, address)
    found: dict[str, Any] = {"prompts": len(ids), "student": _side(plain)}
    name = next(iter(method.distils), None)
    context = method.context if name else getattr(method.source, "context", None)
    if context is not None and not isinstance(context, NoContext):
        shown = _shown(writer, ids, plain)
        tried = {r.example: r for r in plain}
        told = [r for r in writer.roll(shown, writer.greedy, address, 1, context, attempts=tried) if r.ids]
        found["student_with_context"] = _side(told) | {"shown": len(shown)}
        if right and told:
            mine = {r.example: r.reward or 0.0 for r in plain}
            gains = [(r.reward or 0.0) - mine[r.example] for r in told]
            mean, half = spread(gains)
            found["gap"] = {"mean": mean, "half": half, "prompts": len(gains)}
    if name:
        found["teacher"] = _compared(writer, name, plain)
    elif not right and context is None:
        raise DataError(f"{ready.expression} has no teacher and {data.name} no checkers: there is nothing to ask")
    go, why = _verdict(found, right)
    return {"method": ready.expression, "model": str(ready.build), **found, "go": go, "why": why}


def _shown(writer: Writer, ids: Sequence[int], plain: Sequence[Rollout]) -> list[int]:
    """The prompts for which the context has something to add, to the student's attempt where it reads one."""
    return [i for i, r in zip(ids, plain, strict=True) if writer.prompt(i, writer.method.context, r) != list(r.prompt)
            or writer.method.source.once]  # fmt: skip


def _side(rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Accuracy, length in tokens and share of answers that leak."""
    count = max(1, len(rollouts))
    known = [r.reward for r in rollouts if r.reward is not None]
    return {
        "accuracy": math.fsum(known) / len(known) if known else None,
        "length": sum(len(r.ids) for r in rollouts) / count,
        "leakage": sum(bool(LEAK.search(r.text)) for r in rollouts) / count,
    }


def _compared(writer: Writer, name: str, plain: Sequence[Rollout]) -> dict[str, Any]:
    """KL of the teacher's distributions and the student's on the student's answers, and how much of the teacher the
    support holds."""
    answers = [r for r in plain if r.ids]
    found = evaluation.opinion(writer, name, answers)
    if found is None:
        return {"judged": 0.0, "kl": None, "top_mass": None}
    loss = writer.method.distils[name].loss
    support = loss.support if isinstance(loss, TokenDivergence) else None
    k = min(support.k if support else 100, writer.model.vocabulary)
    share = len(found.rows) / len(answers)
    return {"judged": share, "kl": float(found.kl.mean()), "k": k, "top_mass": _top_mass(found.teacher, k)}


@torch.no_grad()
def _top_mass(source: Logits, k: int) -> float:
    """Probability that the k likeliest tokens have, on the mean over at most 256 tokens."""
    few = dense(source[:256] if isinstance(source, Tensor) else source._replace(hidden=source.hidden[:256]))
    return float(few.float().softmax(-1).topk(min(k, few.shape[-1]), -1).values.sum(-1).mean())


def _verdict(found: dict[str, Any], right: bool) -> tuple[bool, str]:
    gap, teacher, told = found.get("gap"), found.get("teacher"), found.get("student_with_context")
    if teacher and (teacher["kl"] is None or teacher["kl"] < LEAST_KL):
        seen = "judges no answer yet" if teacher["kl"] is None else f"differs by {teacher['kl']:.2g} nats a token"
        return False, f"the teacher {seen}: there is nothing to learn from it"
    if told and told["leakage"] > MOST_LEAKS:
        return (
            False,
            f"{told['leakage']:.0%} of the answers with the context speak of it, and so would the student",
        )
    if gap and gap["half"] is None:
        return False, f"{gap['prompts']} prompts are too few to show that the teacher knows more; take more --prompts"
    if gap:
        said = (
            f"{100 * gap['mean']:+.0f} ± {100 * gap['half']:.0f} points with the context, over {gap['prompts']} prompts"
        )
        if gap["mean"] - gap["half"] > 0:
            return True, f"the teacher knows more: {said}"
        return False, f"the teacher is not shown to know more: {said}; take more --prompts or a better context"
    solved = found["student"]["accuracy"]
    if right and solved is not None and not told:
        some = 0 < solved < 1
        return some, f"{solved:.0%} of the prompts are solved" + ("" if some else ": there is nothing to tell apart")
    return True, "nothing speaks against it; without checkers the accuracy is not known"


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{'':<24}{'right':>8}{'tokens':>8}{'leakage':>9}"]
    for name in ("student", "student_with_context"):
        if side := found.get(name):
            share = "-" if side["accuracy"] is None else f"{side['accuracy']:.0%}"
            lines.append(f"{name.replace('_', ' '):<24}{share:>8}{side['length']:>8.0f}{side['leakage']:>9.0%}")
    if (t := found.get("teacher")) and t["kl"] is not None:
        lines.append(f"teacher: {t['kl']:.3g} nats a token from the student; its {t['k']} likeliest tokens have "
                     f"{t['top_mass']:.1%}; it judges {t['judged']:.0%} of the answers")  # fmt: skip
    return "\n".join([*lines, f"{'GO' if found['go'] else 'NO-GO'}: {found['why']}"])
