"""Labels that unlabelled rows surely have, and classes that they surely do not have, by an unsure last generation."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import astuple, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import draws
from ..core import Given, Pool, Step, Target, Teacher, Term
from ..errors import RecipeError
from ..memory import Table
from .memories import first_word, one_per_row


class Dropping(nn.Module):
    """A model in eval mode but for its dropout, which stays on: every pass is another draw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Dropping:
        super().train(False)
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train()
        return self

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _Selected(Table):
    """By sample id two rows of ones and zeros, (classes) each: the class it has, and those that it does not have."""

    def __init__(self, previous: nn.Module | None) -> None:
        super().__init__()
        self.previous = (previous,)  # a tuple: referred to, not owned

    def ids(self) -> Tensor:
        """The rows (rows,) of which something is said."""
        return self.values.any(1).nonzero().squeeze(1)


@dataclass(frozen=True)
class CertainLabels(Teacher):
    """Pseudo-labels of the last generation that are probable and certain, chosen at the start of a generation.

    p is the mean of ``passes`` passes with dropout on (and batch norm in eval mode) over the clean view, s their
    unbiased standard deviation. A row gets its best class where p >= ``positive`` and s <= ``spread``; any other row
    gets as *excluded* all classes with p <= ``negative`` and s <= ``negative_spread``. This teacher teaches the first,
    beside the labels; with ``excludes`` it teaches the second. Both share one choice. Rows without either are not
    drawn. Generation 0 has no teacher and draws no unlabelled row.

    Source: Rizve et al., UPS, ICLR 2021, equations 2, 5 and 7.

    Raises:
        RecipeError: fewer than two passes.
    """

    positive: float = 0.7
    spread: float = 0.05
    negative: float = 0.05
    negative_spread: float = 0.005
    passes: int = 10
    excludes: bool = False

    def __post_init__(self) -> None:
        if self.passes < 2:
            raise RecipeError(f"at least 2 passes have a deviation, not {self.passes}")

    def key(self, term: Term) -> Hashable:
        return CertainLabels, astuple(self)[:-1], term.head

    def space(self, head: str) -> str:
        space = one_per_row(self, head, values=False)
        return "excluded" if self.excludes else space

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _Selected(given.previous)

    def admitted(self, state: nn.Module) -> Tensor | None:
        return cast(_Selected, state).ids().cpu()  # rows are drawn where the data are

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        selected, previous = cast(_Selected, state), cast(_Selected, state).previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p, s = self.heard(previous, pool)
        best = F.one_hot(p.argmax(1), p.shape[1]).bool()
        has = best & (p >= self.positive) & (s <= self.spread)
        has_not = ~best & (p <= self.negative) & (s <= self.negative_spread) & ~has.any(1, keepdim=True)
        selected.write(pool.unlabelled.to(p.device), torch.cat([has, has_not], dim=1).float())

    def heard(self, previous: nn.Module, pool: Pool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the passes, (rows, classes) each."""
        said = []
        with torch.random.fork_rng(devices=[]):
            for k in range(self.passes):
                torch.manual_seed(draws.seed(pool.seed, "certain", pool.clock.generation, k))
                said.append(F.softmax(pool.look(Dropping(previous), pool.unlabelled), dim=-1))
        return torch.stack(said).mean(0), torch.stack(said).std(0)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        chosen, _ = cast(_Selected, state).read(step.ids(term.view), 2 * classes)
        label, known = first_word(step, term, classes)
        has, has_not = chosen.split(classes, dim=1)
        if self.excludes:
            return Target(has_not, "excluded", has_not.any(1) & ~known)
        return Target(torch.where(known[:, None], label, has), "probabilities", known | has.any(1))
