"""Labels that unlabelled rows are given: by the last generation, or from the distribution of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Given, Pool, Step, Target, Teacher, Term
from ..errors import RecipeError, SpaceError
from ..memory import Buffers, Table
from .memories import first_word, one_per_row


class _Chosen(Table):
    """Pseudo-labels by sample id, and the ids that this generation may draw."""

    ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class PseudoLabels(Teacher):
    """Labels for unlabelled rows by the last generation, chosen once at the start of a generation; own labels first.

    The clean view goes through the last generation in eval mode. Of each predicted class the most confident rows are
    taken, ``share`` (by generation, from the second on) of the pool divided by the classes; ``fill`` repeats them
    where a class has fewer, so that every class counts the same. Without ``balanced`` they are the most confident
    ``share`` of the pool, whatever their class. ``hard`` keeps the best class only. Generation 0 has no teacher and
    draws no unlabelled row.

    Raises:
        RecipeError: rows cannot fill up classes that are not balanced.
    """

    hard: bool = True
    shares: tuple[float, ...] = (1.0,)
    min_confidence: float = 0.0
    fill: bool = False
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.fill and not self.balanced:
            raise RecipeError("rows are repeated to balance classes: fill goes with balanced=True")

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        state = _Chosen()
        state.previous = (given.previous,)  # type: ignore[assignment]  # a tuple: referred to, not owned
        return state

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def admitted(self, state: nn.Module) -> Tensor | None:
        return cast(_Chosen, state).ids.cpu()  # rows are drawn where the data are

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        chosen, previous = cast(_Chosen, state), cast(Any, state).previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p = F.softmax(pool.look(previous, pool.unlabelled), dim=-1)
        confidence, best = p.max(-1)
        share = self.shares[min(pool.clock.generation - 1, len(self.shares) - 1)]
        groups = [best == c for c in range(p.shape[1])] if self.balanced else [torch.ones_like(best, dtype=torch.bool)]
        each = -int(-share * len(p) // len(groups))  # rows a class may have, rounded up
        picked = []
        for group in groups:
            rows = torch.nonzero(group & (confidence >= self.min_confidence)).squeeze(1)
            rows = rows[confidence[rows].argsort(descending=True, stable=True)][:each]
            if self.fill and 0 < len(rows) < each:
                rows = rows[torch.arange(each, device=rows.device) % len(rows)]
            picked.append(rows)
        rows = torch.cat(picked)
        chosen.write(pool.unlabelled, F.one_hot(best, p.shape[1]).float() if self.hard else p)
        chosen.ids = pool.unlabelled[rows]

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        pseudo, seen = cast(_Chosen, state).read(step.ids(term.view), classes)
        label, known = first_word(step, term, classes)
        return Target(torch.where(known[:, None], label, pseudo), "probabilities", known | seen)


class _Ranked(Buffers):
    """What was said of each unlabelled row, what it was aligned to, and the labels in their order."""

    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("labels", torch.zeros(0))
        self.said, self.aligned = Table(), Table()

    def align(self) -> None:
        """The value of rank r of N becomes the labels' quantile r / (N - 1), between two of them on a line."""
        ids = self.said.seen.nonzero().squeeze(1)
        if not len(ids) or not len(self.labels):
            return
        ranks = self.said.values[ids, 0].argsort(stable=True).argsort(stable=True).double()
        place = ranks / max(1, len(ids) - 1) * (len(self.labels) - 1)
        low = place.floor().long()
        labels = self.labels.double()
        high = (low + 1).clamp(max=len(labels) - 1)
        self.aligned.write(ids, (labels[low] + (place - low) * (labels[high] - labels[low])).unsqueeze(1))


@dataclass(frozen=True)
class Aligned(Teacher):
    """The student's own values, given the distribution of the labels (RDA of RankUp, Huang et al. 2024).

    What it says of each row is remembered; after every epoch the value of rank r among N becomes the quantile
    r / (N - 1) of the labels. So it learns the labels' distribution, and supposes that the rows share it. In the first
    epoch it says nothing.
    """

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _Ranked()

    def space(self, head: str) -> str:
        if head != "values":
            raise SpaceError(f"Aligned gives values the distribution of labels; the head {head!r} has none")
        return "values"

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        ranked: Any = state
        ranked.labels = pool.targets.float().sort().values.to(ranked.labels.device)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        value, seen = cast(_Ranked, state).aligned.read(step.ids(term.view), 1)
        return Target(value, "values", seen)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        ranked = cast(_Ranked, state)
        for step in (step for step in steps if step.rows(term.view)):
            ranked.said.write(step.ids(term.view), step.student(term.view, term.head)[..., :1])
        clock = steps[0].clock
        if (clock.step + 1) % clock.per_epoch == 0:
            ranked.align()
