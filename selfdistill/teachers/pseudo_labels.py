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
from ..core.parts import BaseTerm, BindArgs, GenerationData, Schedule, Teacher, value_at
from ..core.step import Forward
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError, SpaceError
from .labels import CurrentStudent
from .memories import label_target, memory_space


class _ClassShares(Buffers):
    """The running mean of the inner teacher's targets, the desired class shares, and the inner teacher's state."""

    marginal: Tensor
    class_shares: Tensor
    inner: nn.Module

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        for name in ("marginal", "class_shares"):
            self.register_buffer(name, torch.zeros(0))

    def advance(self, p: Tensor, decay: float) -> Tensor:
        """The running mean (classes,) after a batch of distributions (elements, classes); the first batch begins it."""
        if not len(p):
            return self.marginal if len(self.marginal) else p.new_full((p.shape[-1],), 1.0 / p.shape[-1])
        return self.marginal.lerp(p.mean(0), 1.0 - decay) if len(self.marginal) else p.mean(0)


@dataclass(frozen=True)
class ClassAligned(Teacher[_ClassShares]):
    """The target of ``teacher``, times w_c / q_c and normalised: q is its running mean, w the desired class shares.

    q has the decay ``decay`` a step and includes the current batch. ``to`` is ``"uniform"`` (equal shares) or
    ``"labels"`` (those of the labelled rows, which `fit` supplies; in a loop of your own ``objective.prepare(pool)``).

    Source: Berthelot et al., ReMixMatch, ICLR 2020, distribution alignment (there q is the mean over 128 batches).

    Raises:
        RecipeError: an unknown ``to``, or a decay outside [0, 1).
    """

    teacher: Teacher = CurrentStudent()
    decay: float | Schedule = 0.999
    to: str = "uniform"

    def __post_init__(self) -> None:
        if self.to not in ("uniform", "labels"):
            raise RecipeError(f"ClassAligned: to is 'uniform' or 'labels', not {self.to!r}")
        averages(self.decay)

    @property
    def origin(self) -> Teacher:
        return self.teacher.origin

    @property
    def stores(self) -> bool:
        return self.teacher.stores

    @property
    def view(self) -> str | None:
        """The view of the inner teacher; None if it names none."""
        return self.teacher.view

    def student_view(self, term: BaseTerm) -> str | None:
        return self.teacher.student_view(term)

    def key(self, term: BaseTerm) -> Hashable:
        return ClassAligned, self.decay, self.to, self.teacher.key(term)

    def space(self, head: str) -> str:
        inner = self.teacher.space(head)
        if inner not in DISTRIBUTIONS:
            raise SpaceError(
                f"ClassAligned needs a distribution over classes; for {head!r} {self.teacher} gives {inner}"
            )
        return "probabilities"

    def start(self, model: nn.Module, args: BindArgs) -> _ClassShares:
        return _ClassShares(self.teacher.start(model, args))

    def prepare(self, state: _ClassShares, pool: GenerationData) -> None:
        self.teacher.prepare(state.inner, pool)
        if self.to == "labels" and not pool.targets.is_floating_point():
            counts = pool.targets.flatten().bincount().float()
            state.class_shares = (counts / counts.sum()).to(state.class_shares.device)

    def eligible_ids(self, state: _ClassShares) -> Tensor | None:
        return self.teacher.eligible_ids(state.inner)

    def target(self, state: _ClassShares, forward: Forward, term: BaseTerm) -> Target:
        classes = forward.student(term.view, term.head).shape[-1]
        inner = self.teacher.target(state.inner, forward, term).detached()
        p = inner.probabilities(classes)
        valid_rows = spoken(p, inner.valid)
        forward.notes.setdefault(self.key(term), valid_rows)
        ratio = (
            p
            * self._class_shares(state, classes)
            / state.advance(valid_rows, value_at(self.decay, forward.clock)).clamp(min=1e-6)
        )
        return Target(ratio / ratio.sum(-1, keepdim=True).clamp(min=1e-12), "probabilities", inner.valid)

    def _class_shares(self, shares: _ClassShares, classes: int) -> Tensor:
        if self.to == "uniform":
            return torch.full((classes,), 1.0 / classes, device=shares.class_shares.device)
        if not len(shares.class_shares):
            raise RecipeError("aligning to the labels needs their shares: objective.prepare(pool), or to='uniform'")
        missing = shares.class_shares.new_zeros(
            max(0, classes - len(shares.class_shares))
        )  # for classes without labels
        return torch.cat([shares.class_shares, missing])

    def update(self, state: _ClassShares, forwards: Sequence[Forward], term: BaseTerm) -> None:
        self.teacher.update(state.inner, forwards, term)
        batches = [forward.notes[self.key(term)] for forward in forwards if self.key(term) in forward.notes]
        if batches:
            state.marginal = state.advance(torch.cat(batches), value_at(self.decay, forwards[0].clock))


def _least_deviating(chosen: Tensor, deviation: Tensor, number: int) -> Tensor:
    """The chosen entries (rows, classes), at most ``number`` of each class: those of the lowest deviation."""
    order = deviation.masked_fill(~chosen, torch.inf).argsort(dim=0, stable=True)
    return chosen & (order.argsort(dim=0) < number)


class WithDropout(nn.Module):
    """A model in eval mode with dropout switched on: every pass is another draw."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> WithDropout:
        super().train(False)
        for module in self.model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.train()
        return self

    def forward(self, x: Tensor) -> Any:
        return self.model(x)


class _CertainMemory(SampleMemory):
    """By sample id two masks of classes, (classes) each: the pseudo-label, and the excluded classes."""

    def __init__(self, previous: nn.Module | None) -> None:
        super().__init__()
        self.previous = (previous,)  # a tuple: referred to, not owned

    def ids(self) -> Tensor:
        """The ids (rows,) with a pseudo-label or an excluded class."""
        return self.keys[self.stored.any(1)]


@dataclass(frozen=True)
class CertainLabels(Teacher[_CertainMemory]):
    """Confident pseudo-labels of the last generation with a low variance, chosen at the start of a generation.

    p is the mean of ``passes`` passes with dropout on (and batch norm in eval mode) over the clean view, s their
    unbiased standard deviation. A row gets its best class where p >= ``positive`` and s <= ``spread``; any other row
    gets as *excluded* all classes with p <= ``negative`` and s <= ``negative_spread``. The targets are the first kind,
    beside the labels; with ``excludes`` they are the second. Both share one choice. Rows without either are not
    drawn. Generation 0 has no teacher and draws no unlabelled row. In the ``balanced`` generations after it every class
    keeps as many rows as the smallest one has, or ``fewest``, those of the lowest deviation.

    Source: Rizve et al., UPS, ICLR 2021, equations 2, 5 and 7; the balance is that of the authors' code.

    Raises:
        RecipeError: fewer than two passes.
    """

    positive: float = 0.7
    spread: float = 0.05
    negative: float = 0.05
    negative_spread: float = 0.005
    passes: int = 10
    balanced: int = 6
    fewest: int = 25
    excludes: bool = False

    def __post_init__(self) -> None:
        if self.passes < 2:
            raise RecipeError(f"CertainLabels: passes is at least 2, so that they have a deviation; not {self.passes}")

    @property
    def cost_note(self) -> str:
        return f"{self.passes} forward passes over the pool before each but the first"

    def key(self, term: BaseTerm) -> Hashable:
        return CertainLabels, astuple(self)[:-1], term.head

    def space(self, head: str) -> str:
        space = memory_space(self, head, values=False)
        return "excluded" if self.excludes else space

    def start(self, model: nn.Module, args: BindArgs) -> _CertainMemory:
        return _CertainMemory(args.previous)

    def eligible_ids(self, state: _CertainMemory) -> Tensor | None:
        return state.ids().cpu()  # rows are drawn where the data are

    def prepare(self, state: _CertainMemory, pool: GenerationData) -> None:
        previous = state.previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p, s = self.dropout_statistics(previous, pool)
        best = F.one_hot(p.argmax(1), p.shape[1]).bool()
        positive = best & (p >= self.positive) & (s <= self.spread)
        if pool.clock.generation <= self.balanced:
            positive = _least_deviating(positive, s, max(self.fewest, int(positive.sum(0).min())))
        negative = ~best & (p <= self.negative) & (s <= self.negative_spread) & ~positive.any(1, keepdim=True)
        state.write(pool.unlabelled.to(p.device), torch.cat([positive, negative], dim=1).float())

    def dropout_statistics(self, previous: nn.Module, pool: GenerationData) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the passes, (rows, classes) each."""
        predictions = []
        with torch.random.fork_rng(devices=[]):
            for k in range(self.passes):
                torch.manual_seed(rng.seed(pool.seed, "certain", pool.clock.generation, k))
                predictions.append(F.softmax(pool.predict(WithDropout(previous), pool.unlabelled), dim=-1))
        return torch.stack(predictions).mean(0), torch.stack(predictions).std(0)

    def target(self, state: _CertainMemory, forward: Forward, term: BaseTerm) -> Target:
        classes = forward.student(term.view, term.head).shape[-1]
        selection, _ = state.read(forward.ids(term.view), 2 * classes)
        label, labelled = label_target(forward, term, classes)
        positive, negative = selection.split(classes, dim=1)
        if self.excludes:
            return Target(negative, "excluded", negative.any(1) & ~labelled)
        return Target(torch.where(labelled[:, None], label, positive), "probabilities", labelled | positive.any(1))


class _PseudoLabelMemory(SampleMemory):
    """Pseudo-labels by sample id, and the ids to draw from in this generation."""

    ids: Tensor

    def __init__(self, previous: nn.Module | None) -> None:
        super().__init__()
        self.previous = (previous,)  # a tuple: referred to, not owned
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))


@dataclass(frozen=True)
class PseudoLabels(Teacher[_PseudoLabelMemory]):
    """Pseudo-labels of unlabelled rows by the last generation, chosen once at the start of a generation.

    Labelled rows keep their labels.

    The clean view goes through the last generation in eval mode. Of each predicted class the most confident rows are
    taken, ``share`` (by generation, from the second on) of the pool divided by the classes; ``fill`` repeats them
    where a class has fewer, so that every class counts the same. Without ``balanced`` they are the most confident
    ``share`` of the pool, whatever their class. ``hard`` keeps the best class only. Generation 0 has no teacher and
    draws no unlabelled row.

    Raises:
        RecipeError: ``fill`` without ``balanced``.
    """

    hard: bool = True
    shares: tuple[float, ...] = (1.0,)
    min_confidence: float = 0.0
    fill: bool = False
    balanced: bool = True

    def __post_init__(self) -> None:
        if self.fill and not self.balanced:
            raise RecipeError("PseudoLabels: fill repeats rows to balance classes, so it needs balanced=True")

    @property
    def cost_note(self) -> str:
        return "one forward pass over the pool before each but the first"

    def start(self, model: nn.Module, args: BindArgs) -> _PseudoLabelMemory:
        return _PseudoLabelMemory(args.previous)

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def eligible_ids(self, state: _PseudoLabelMemory) -> Tensor | None:
        return state.ids.cpu()  # rows are drawn where the data are

    def prepare(self, state: _PseudoLabelMemory, pool: GenerationData) -> None:
        previous = state.previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p = F.softmax(pool.predict(previous, pool.unlabelled), dim=-1)
        confidence, best = p.max(-1)
        share = self.shares[min(pool.clock.generation - 1, len(self.shares) - 1)]
        groups = [best == c for c in range(p.shape[1])] if self.balanced else [torch.ones_like(best, dtype=torch.bool)]
        quota = -int(-share * len(p) // len(groups))  # rows of a class, rounded up
        selection = []
        for group in groups:
            rows = torch.nonzero(group & (confidence >= self.min_confidence)).squeeze(1)
            rows = rows[confidence[rows].argsort(descending=True, stable=True)][:quota]
            if self.fill and 0 < len(rows) < quota:
                rows = rows[torch.arange(quota, device=rows.device) % len(rows)]
            selection.append(rows)
        rows = torch.cat(selection)
        state.write(pool.unlabelled, F.one_hot(best, p.shape[1]).float() if self.hard else p)
        state.ids = pool.unlabelled[rows]

    def target(self, state: _PseudoLabelMemory, forward: Forward, term: BaseTerm) -> Target:
        classes = forward.student(term.view, term.head).shape[-1]
        pseudo, stored = state.read(forward.ids(term.view), classes)
        label, labelled = label_target(forward, term, classes)
        return Target(torch.where(labelled[:, None], label, pseudo), "probabilities", labelled | stored)


class _RankMemory(Buffers):
    """The prediction for each unlabelled row, its aligned value, and the sorted labels."""

    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("labels", torch.zeros(0))
        self.outputs, self.aligned = SampleMemory(), SampleMemory()

    def align(self) -> None:
        """Set the value of rank r of N to the labels' quantile r / (N - 1), by linear interpolation."""
        ids = self.outputs.keys
        if not len(ids) or not len(self.labels):
            return
        ranks = self.outputs.stored[:, 0].argsort(stable=True).argsort(stable=True).double()
        position = ranks / max(1, len(ids) - 1) * (len(self.labels) - 1)
        lower = position.floor().long()
        labels = self.labels.double()
        upper = (lower + 1).clamp(max=len(labels) - 1)
        self.aligned.write(ids, (labels[lower] + (position - lower) * (labels[upper] - labels[lower])).unsqueeze(1))


@dataclass(frozen=True)
class Aligned(Teacher[_RankMemory]):
    """The student's own values, mapped to the distribution of the labels (RDA of RankUp, Huang et al. 2024).

    The prediction for each row is stored; after every epoch the value of rank r among N becomes the quantile
    r / (N - 1) of the labels, which assumes that all rows share their distribution. There is no target in the first
    epoch.
    """

    def start(self, model: nn.Module, args: BindArgs) -> _RankMemory:
        return _RankMemory()

    def space(self, head: str) -> str:
        if head != "values":
            raise SpaceError(f"Aligned needs the head 'values', not {head!r}")
        return "values"

    def prepare(self, state: _RankMemory, pool: GenerationData) -> None:
        state.labels = pool.targets.float().sort().values.to(state.labels.device)

    def target(self, state: _RankMemory, forward: Forward, term: BaseTerm) -> Target:
        value, stored = state.aligned.read(forward.ids(term.view), 1)
        return Target(value, "values", stored)

    def update(self, state: _RankMemory, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in (forward for forward in forwards if forward.rows(term.view)):
            state.outputs.write(forward.ids(term.view), forward.student(term.view, term.head)[..., :1])
        clock = forwards[0].clock
        if (clock.step + 1) % clock.per_epoch == 0:
            state.align()
