"""What the terms of a recipe read of completions, and what they divide by where that is known without a pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.step import Batch
from ..models.causal_lm import completion_rows
from ..terms.spans import SPANS
from .completions import AGAINST, CONTEXT, Language, Writer, views
from .contexts import Rollout


def completion_batch(writer: Writer, rollouts: Sequence[Rollout], device: torch.device) -> tuple[Batch, int]:
    """Completions as the views of a batch.

    Args:
        writer: Who reads them, and by which method.
        rollouts: The completions, those of an example together.
        device: Where the batch goes.

    Returns:
        The batch, and how many teacher's prompts were too long to be read.
    """
    seen = views(writer, rollouts)
    extra = {"reward": seen["rewards"], "group": seen["examples"]}
    extra |= {"tutored": torch.tensor([r.tutored for r in rollouts])}
    extra |= {"trusted": torch.tensor([r.trusted for r in rollouts])}
    if rollouts and all(r.log_probs is not None for r in rollouts):
        log_probs = [torch.tensor(r.log_probs) for r in rollouts]
        extra["log_prob"] = nn.utils.rnn.pad_sequence(log_probs, batch_first=True)
    extra |= {"span": seen["student_spans"]} if SPANS in seen else {}
    batch = Batch({"x": completion_rows(seen["x"], seen["examples"], **extra)})
    for name in (CONTEXT, AGAINST):
        if name in seen:
            batch[name] = completion_rows(seen[name][0])._replace(align=seen[name][1])
    if SPANS in seen:
        pairs, rows = seen[SPANS]
        align = torch.tensor(rows, dtype=torch.int64)
        batch[SPANS] = completion_rows(pairs, span=seen["teacher_spans"])._replace(align=align)
    if "other" in seen:
        batch["other"] = completion_rows(seen["other"], seen["examples"])
    return Batch({name: rows.to(device) for name, rows in batch.items()}), seen["unread"]


def separable(method: Language) -> bool:
    """Whether the loss of a step is the sum over any parts of its completions.

    Args:
        method: The recipe.

    >>> from selfdistill.language.recipes import sft
    >>> separable(sft())
    True
    """
    return all(term.separable for term in method.terms.values())


def known_counts(method: Language, batches: Sequence[Batch]) -> dict[str, Tensor] | None:
    """The count of each term over all micro-batches and processes, where the batches tell it.

    Args:
        method: The recipe.
        batches: The micro-batches of this process.

    Returns:
        The counts by term; None where a pass is needed to know one.
    """
    if not separable(method):
        return None
    found = dict[str, Tensor]()
    for name, term in method.terms.items():
        each = [count for count in map(term.count_of, batches) if count is not None]
        if len(each) < len(batches):
            return None
        found[name] = distributed.add(torch.stack(each).sum())
    return found
