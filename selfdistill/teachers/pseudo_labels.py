"""Pseudo-labels of unlabelled rows, by the last generation, by certainty, or aligned to the distribution of labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core.memory import Buffers, SampleMemory, averages, spoken
from ..core.parts import BaseTerm, BindArgs, GenerationData, Teacher
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError, SpaceError
from .labels import Itself
from .memories import first_word, one_per_row


class _Shares(Buffers):
    """The running mean of what the inner teacher says, and the shares that classes are to have; its own state."""

    marginal: Tensor
    wanted: Tensor
    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        for name in ("marginal", "wanted"):
            self.register_buffer(name, torch.zeros(0))

    def moved(self, p: Tensor, decay: float) -> Tensor:
        """The running mean (classes,) after a batch of distributions (elements, classes); the first batch begins it."""
        if not len(p):
            return self.marginal if len(self.marginal) else p.new_full((p.shape[-1],), 1.0 / p.shape[-1])
        return self.marginal.lerp(p.mean(0), 1.0 - decay) if len(self.marginal) else p.mean(0)


@dataclass(frozen=True)
class ClassAligned(Teacher[_Shares]):
    """What ``teacher`` says, times w_c / q_c and normalised: q the running mean of it, w the shares that are wanted.

    q keeps ``decay`` a step and counts the batch at hand. ``to`` is ``"uniform"`` (all classes alike) or ``"labels"``
    (the shares of the labelled rows, which `fit` brings; in a loop of one's own ``objective.prepare(pool)`` does).

    Source: Berthelot et al., ReMixMatch, ICLR 2020, distribution alignment (there q is the mean over 128 batches).

    Raises:
        RecipeError: no such ``to``, or a decay outside [0, 1).
    """

    teacher: Teacher = Itself()
    decay: float = 0.999
    to: str = "uniform"

    def __post_init__(self) -> None:
        if self.to not in ("uniform", "labels"):
            raise RecipeError(f"classes are aligned to='uniform' or to='labels', not {self.to!r}")
        averages(self.decay)

    @property
    def origin(self) -> Teacher:
        return self.teacher.origin

    @property
    def stores(self) -> bool:
        return self.teacher.stores

    @property
    def view(self) -> str | None:
        """The view that the inner teacher looks at, where it names one."""
        return self.teacher.view

    def student_view(self, term: BaseTerm) -> str | None:
        return self.teacher.student_view(term)

    def key(self, term: BaseTerm) -> Hashable:
        return ClassAligned, self.decay, self.to, self.teacher.key(term)

    def space(self, head: str) -> str:
        inner = self.teacher.space(head)
        if inner not in DISTRIBUTIONS:
            raise SpaceError(
                f"ClassAligned aligns distributions over classes; for {head!r} {self.teacher} gives {inner}, not one"
            )
        return "probabilities"

    def start(self, model: nn.Module, given: BindArgs) -> _Shares:
        return _Shares(self.teacher.start(model, given))

    def prepare(self, state: _Shares, pool: GenerationData) -> None:
        self.teacher.prepare(state.inner, pool)
        if self.to == "labels" and not pool.targets.is_floating_point():
            counts = pool.targets.flatten().bincount().float()
            state.wanted = (counts / counts.sum()).to(state.wanted.device)

    def eligible_ids(self, state: _Shares) -> Tensor | None:
        return self.teacher.eligible_ids(state.inner)

    def target(self, state: _Shares, step: Forward, term: BaseTerm) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        word = self.teacher.target(state.inner, step, term).detached()
        p = word.probabilities(classes)
        said = spoken(p, word.valid)
        step.notes.setdefault(self.key(term), said)
        ratio = p * self._wanted(state, classes) / state.moved(said, self.decay).clamp(min=1e-6)
        return Target(ratio / ratio.sum(-1, keepdim=True).clamp(min=1e-12), "probabilities", word.valid)

    def _wanted(self, shares: _Shares, classes: int) -> Tensor:
        if self.to == "uniform":
            return torch.full((classes,), 1.0 / classes, device=shares.wanted.device)
        if not len(shares.wanted):
            raise RecipeError("aligning to the labels needs their shares: objective.prepare(pool), or to='uniform'")
        missing = shares.wanted.new_zeros(max(0, classes - len(shares.wanted)))  # classes beyond the last label's
        return torch.cat([shares.wanted, missing])

    def update(self, state: _Shares, steps: Sequence[Forward], term: BaseTerm) -> None:
        self.teacher.update(state.inner, steps, term)
        seen = [step.notes[self.key(term)] for step in steps if self.key(term) in step.notes]
        if seen:
            state.marginal = state.moved(torch.cat(seen), self.decay)


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


class _Selected(SampleMemory):
    """By sample id two rows of ones and zeros, (classes) each: the class it has, and those that it does not have."""

    def __init__(self, previous: nn.Module | None) -> None:
        super().__init__()
        self.previous = (previous,)  # a tuple: referred to, not owned

    def ids(self) -> Tensor:
        """The rows (rows,) of which something is said."""
        return self.values.any(1).nonzero().squeeze(1)


@dataclass(frozen=True)
class CertainLabels(Teacher[_Selected]):
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

    def key(self, term: BaseTerm) -> Hashable:
        return CertainLabels, astuple(self)[:-1], term.head

    def space(self, head: str) -> str:
        space = one_per_row(self, head, values=False)
        return "excluded" if self.excludes else space

    def start(self, model: nn.Module, given: BindArgs) -> _Selected:
        return _Selected(given.previous)

    def eligible_ids(self, state: _Selected) -> Tensor | None:
        return state.ids().cpu()  # rows are drawn where the data are

    def prepare(self, state: _Selected, pool: GenerationData) -> None:
        previous = state.previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p, s = self.heard(previous, pool)
        best = F.one_hot(p.argmax(1), p.shape[1]).bool()
        has = best & (p >= self.positive) & (s <= self.spread)
        has_not = ~best & (p <= self.negative) & (s <= self.negative_spread) & ~has.any(1, keepdim=True)
        state.write(pool.unlabelled.to(p.device), torch.cat([has, has_not], dim=1).float())

    def heard(self, previous: nn.Module, pool: GenerationData) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the passes, (rows, classes) each."""
        said = []
        with torch.random.fork_rng(devices=[]):
            for k in range(self.passes):
                torch.manual_seed(rng.seed(pool.seed, "certain", pool.clock.generation, k))
                said.append(F.softmax(pool.predict(Dropping(previous), pool.unlabelled), dim=-1))
        return torch.stack(said).mean(0), torch.stack(said).std(0)

    def target(self, state: _Selected, step: Forward, term: BaseTerm) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        chosen, _ = state.read(step.ids(term.view), 2 * classes)
        label, known = first_word(step, term, classes)
        has, has_not = chosen.split(classes, dim=1)
        if self.excludes:
            return Target(has_not, "excluded", has_not.any(1) & ~known)
        return Target(torch.where(known[:, None], label, has), "probabilities", known | has.any(1))


class _Chosen(SampleMemory):
    """Pseudo-labels by sample id, and the ids that this generation may draw."""

    ids: Tensor

    def __init__(self, previous: nn.Module | None) -> None:
        super().__init__()
        self.previous = (previous,)  # a tuple: referred to, not owned
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class PseudoLabels(Teacher[_Chosen]):
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

    def start(self, model: nn.Module, given: BindArgs) -> _Chosen:
        return _Chosen(given.previous)

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def eligible_ids(self, state: _Chosen) -> Tensor | None:
        return state.ids.cpu()  # rows are drawn where the data are

    def prepare(self, state: _Chosen, pool: GenerationData) -> None:
        previous = state.previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p = F.softmax(pool.predict(previous, pool.unlabelled), dim=-1)
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
        state.write(pool.unlabelled, F.one_hot(best, p.shape[1]).float() if self.hard else p)
        state.ids = pool.unlabelled[rows]

    def target(self, state: _Chosen, step: Forward, term: BaseTerm) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        pseudo, seen = state.read(step.ids(term.view), classes)
        label, known = first_word(step, term, classes)
        return Target(torch.where(known[:, None], label, pseudo), "probabilities", known | seen)


class _Ranked(Buffers):
    """What was said of each unlabelled row, what it was aligned to, and the labels in their order."""

    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("labels", torch.zeros(0))
        self.said, self.aligned = SampleMemory(), SampleMemory()

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
class Aligned(Teacher[_Ranked]):
    """The student's own values, given the distribution of the labels (RDA of RankUp, Huang et al. 2024).

    What it says of each row is remembered; after every epoch the value of rank r among N becomes the quantile
    r / (N - 1) of the labels. So it learns the labels' distribution, and supposes that the rows share it. In the first
    epoch it says nothing.
    """

    def start(self, model: nn.Module, given: BindArgs) -> _Ranked:
        return _Ranked()

    def space(self, head: str) -> str:
        if head != "values":
            raise SpaceError(f"Aligned gives values the distribution of labels; the head {head!r} has none")
        return "values"

    def prepare(self, state: _Ranked, pool: GenerationData) -> None:
        state.labels = pool.targets.float().sort().values.to(state.labels.device)

    def target(self, state: _Ranked, step: Forward, term: BaseTerm) -> Target:
        value, seen = state.aligned.read(step.ids(term.view), 1)
        return Target(value, "values", seen)

    def update(self, state: _Ranked, steps: Sequence[Forward], term: BaseTerm) -> None:
        for step in (step for step in steps if step.rows(term.view)):
            state.said.write(step.ids(term.view), step.student(term.view, term.head)[..., :1])
        clock = steps[0].clock
        if (clock.step + 1) % clock.per_epoch == 0:
            state.align()
