"""Pseudo-labels that later generations inherit: the data of repeated self-training.

A generation inherits the labels of the last *accepted* one, so labels that a rejected generation added are dropped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core.memory import Inherited, SampleMemory
from ..core.outputs import one_distribution
from ..core.parts import BaseTerm, BindArgs, GenerationData, Teacher
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError, SpaceError

KEEPS = ("accumulate", "replace", "anchor")


class PseudoLabelStore(SampleMemory, Inherited):
    """Pseudo-labels by sample id, and the ids to draw from; ``stays`` if later generations inherit the labels."""

    ids: Tensor

    def __init__(self, previous: nn.Module | None, stays: bool) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.previous, self.stays = (previous,), stays  # a tuple: referred to, not owned

    def labelled(self) -> Tensor:
        """The ids (rows,) that have a pseudo-label."""
        return self.keys

    def carry(self) -> dict[str, Tensor]:
        """The ids (rows,) and labels (rows, classes) that later generations inherit, on the CPU."""
        ids = self.labelled()
        return {"ids": ids.cpu(), "labels": self.stored.cpu()} if self.stays and len(ids) else {}

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the pseudo-labels of an earlier generation."""
        self.write(tensors["ids"], tensors["labels"])


def fresh_rows(pool: GenerationData, fresh: int) -> Tensor:
    """The unlabelled ids (rows,) that generation k >= 1 labels: positions (k - 1) fresh to k fresh of one permutation.

    A function of seed and generation alone. Generations share no row until the pool is exhausted; then the order
    begins again. A pool smaller than ``fresh`` is labelled whole every time.

    >>> from selfdistill.core.step import TrainingClock
    >>> pool = GenerationData(torch.arange(4), lambda module, ids: ids, TrainingClock(1, 9))
    >>> sorted(torch.cat([fresh_rows(pool._replace(clock=TrainingClock(k, 9)), 2) for k in (1, 2)]).tolist())
    [0, 1, 2, 3]
    """
    rows = len(pool.unlabelled)
    count = min(fresh, rows)
    order = rng.permutation((pool.seed, "fresh"), rows)
    return pool.unlabelled[order[((pool.clock.generation - 1) * count + torch.arange(count)) % max(rows, 1)]]


def real_share(ratio: float) -> float:
    """The weight of real data that minimises the error of repeated training: w = (sqrt(k² + 4k) - k) / 2.

    ``ratio`` k is real rows over pseudo-labelled ones; for k = 1 it is 1 / golden ratio. Derived for real rows that are
    new every time (He, Xu & Cheng, Golden Ratio Weighting Prevents Model Collapse, arXiv 2502.18049, 2025).

    >>> round(real_share(1.0), 3)
    0.618
    """
    return (math.sqrt(ratio * ratio + 4 * ratio) - ratio) / 2


@dataclass(frozen=True)
class InheritedPseudoLabels(Teacher[PseudoLabelStore]):
    """Pseudo-labels of ``fresh`` new unlabelled rows by the last accepted generation, made once a generation.

    The clean view goes through that generation in eval mode; ``hard`` keeps its best class, else its probabilities.
    Generation 0 draws the labelled rows; later ones, by ``keep``,

    * ``accumulate``: labelled rows and all pseudo-labelled ones so far, each with its first label;
    * ``replace``: the newest pseudo-labelled rows only;
    * ``anchor``: those, and the labelled rows repeated until they have the weight `real_share`.

    Labelled rows have no target here; `Labels` teaches them.

    Raises:
        RecipeError: an unknown ``keep``, or fewer than one row.
    """

    keep: str = "accumulate"
    hard: bool = False
    fresh: int = 120

    def __post_init__(self) -> None:
        if self.keep not in KEEPS:
            raise RecipeError(f"keep is 'accumulate', 'replace' or 'anchor', not {self.keep!r}")
        if self.fresh < 1:
            raise RecipeError(f"fresh is the number of rows that a generation labels, at least 1, not {self.fresh}")

    @property
    def cost_note(self) -> str:
        return f"one forward pass over {self.fresh} unlabelled rows before each but the first"

    def start(self, model: nn.Module, args: BindArgs) -> PseudoLabelStore:
        return PseudoLabelStore(args.previous, stays=self.keep == "accumulate")

    def space(self, head: str) -> str:
        if not one_distribution(head):
            raise SpaceError(f"InheritedPseudoLabels holds one distribution a sample; the head {head!r} gives none")
        return "probabilities"

    def eligible_ids(self, state: PseudoLabelStore) -> Tensor | None:
        return state.ids.cpu()  # rows are drawn where the data are

    def prepare(self, state: PseudoLabelStore, pool: GenerationData) -> None:
        previous = state.previous[0]
        state.ids = pool.labelled
        if previous is None or not len(pool.unlabelled):
            return
        rows = fresh_rows(pool, self.fresh)
        p = F.softmax(pool.predict(previous, rows), dim=-1)
        state.write_new(rows, F.one_hot(p.argmax(-1), p.shape[1]).float() if self.hard else p)
        copies = len(pool.labelled) if self.keep == "accumulate" else 0
        if self.keep == "anchor":
            w = real_share(len(pool.labelled) / len(rows))
            copies = round(w / (1 - w) * len(rows))  # never fewer than there are: w >= k / (k + 1)
        real = pool.labelled[torch.arange(copies) % max(len(pool.labelled), 1)]
        state.ids = torch.cat([real, state.labelled().cpu()])

    def target(self, state: PseudoLabelStore, forward: Forward, term: BaseTerm) -> Target:
        labels, stored = state.read(forward.ids(term.view), forward.student(term.view, term.head).shape[-1])
        return Target(labels, "probabilities", stored)
