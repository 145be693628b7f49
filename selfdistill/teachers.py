"""Teachers: where does the target come from? From labels, from the model itself in one of many guises, or from outside.

Every teacher detaches its target. Teachers that hold weights keep them in a fixed mode and in the objective's
``state_dict``, copies of the student in float32; memories are keyed by sample id.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import ranks
from .core import Given, Pool, Step, Target, Teacher, Term
from .errors import RecipeError, SpaceError
from .heads import space_of
from .memory import Buffers, Table

__all__ = [
    "Ema", "External", "Frozen", "Generation", "History", "Itself", "Labels", "LastBatch", "LastEpoch", "Peers",
    "PseudoLabels",
]  # fmt: skip


@dataclass(frozen=True)
class Labels(Teacher):
    """The labels: classes (rows,) or values (rows, outputs); a row with -1 or nan has none and counts for nothing."""

    def space(self, head: str) -> str:
        spaces = {"logits": "classes", "values": "values", "gaussian": "values"}
        if space_of(head) not in spaces:
            raise SpaceError(f"labels say nothing about the head {head!r}, which speaks of {space_of(head)}")
        return spaces[space_of(head)]

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        y = step.labels(term.view)
        if self.space(term.head) == "classes":
            return Target(y, "classes", y >= 0)
        y = y if y.dim() > 1 else y.unsqueeze(-1)
        return Target(y.nan_to_num(), "values", ~y.isnan().any(-1))


@dataclass(frozen=True)
class Itself(Teacher):
    """The student's own output in the same step, detached: on another view, another head, or both."""

    view: str | None = None
    head: str | None = None

    def own_view(self, term: Term) -> str | None:
        return self.view

    def space(self, head: str) -> str:
        return space_of(self.head or head)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        value = step.student(self.view or term.view, self.head or term.head).detach()
        return Target(value, self.space(term.head))


class Held(nn.Module):
    """A module that no optimizer touches, in a mode that no outer ``train()`` changes; caches what it said."""

    def __init__(self, module: nn.Module, train: bool = False) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.said = Table()
        self._mode = train
        self.train(train)

    def train(self, mode: bool = True) -> Held:
        super().train(self._mode)
        return self


@dataclass(frozen=True)
class Ema(Teacher):
    """Exponential moving average of the student's weights, in float32 (Mean Teacher, Tarvainen and Valpola 2017).

    w' <- d w' + (1 - d) w after each optimizer step, with d = min(1 - 1/(step + 1), decay) so that early weights are
    forgotten. Floating buffers are averaged in the same way, integer ones copied. ``train`` runs the teacher in train
    mode (its own dropout and batch statistics), otherwise it is in eval mode.
    """

    decay: float = 0.999
    view: str | None = None
    train: bool = False
    warm_up: bool = True

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Held(copy.deepcopy(model).float(), self.train)

    def key(self, term: Term) -> Hashable:
        return Ema, self.decay, self.train, self.warm_up

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        value = step.look(cast(Held, state).module, self.view or term.view, term.head)
        return Target(value, space_of(term.head))

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        done = steps[0].clock.step + 1
        decay = min(1.0 - 1.0 / (done + 1), self.decay) if self.warm_up else self.decay
        teacher, student = cast(Held, state).module, cast(nn.Module, steps[0].owner)
        weights: list[tuple[Tensor, Tensor]] = list(zip(teacher.parameters(), student.parameters(), strict=True))
        buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
        if weights:
            theirs = [w.to(mine.dtype) for mine, w in weights]
            torch._foreach_lerp_([mine for mine, _ in weights], theirs, 1.0 - decay)
        for mine, now in buffers:
            if mine.is_floating_point():  # equal entries stay: infinite ones (a causal mask) have no mean
                mine.copy_(torch.where(mine == now, mine, mine.lerp(now.to(mine.dtype), 1.0 - decay)))
            else:
                mine.copy_(now)


@dataclass(frozen=True)
class Frozen(Teacher):
    """A frozen copy of the model as it was when the objective was bound, in eval mode.

    On views without randomness its answers are cached by sample id, so the second epoch costs no teacher pass.
    """

    view: str | None = None

    def module(self, model: nn.Module, given: Given) -> nn.Module | None:
        """The weights to hold; None if there are none yet."""
        return copy.deepcopy(model).float()

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        module = self.module(model, given)
        return nn.Module() if module is None else Held(module)

    def key(self, term: Term) -> Hashable:
        return self, term.head, self.view or term.view  # what is cached was said of one view

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        view, space = self.view or term.view, space_of(term.head)
        if not isinstance(state, Held):
            student = step.student(term.view, term.head)
            return Target(torch.zeros_like(student), space, student.new_zeros(student.shape[:-1], dtype=torch.bool))
        if view not in step.batch.fixed:
            return Target(step.look(state.module, view, term.head), space)
        ids = step.ids(view)
        cached, seen = state.said.read(ids, state.said.values.shape[1])
        if not bool(ranks.add((~seen).any().float())):  # a sharded teacher computes on all processes or on none
            return Target(cached, space)
        fresh = step.look(state.module, view, term.head)
        if fresh.dim() != 2 or cached.shape != fresh.shape:
            return Target(fresh, space)
        return Target(torch.where(seen[:, None], cached, fresh), space)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        if not isinstance(state, Held):
            return
        view = self.view or term.view
        for step in steps:
            # several processes exchange what is new, so each takes part even where the cache knew all its rows
            if view in step.batch.fixed and (ranks.size() > 1 or step.asked(state.module, view)):
                value = self.target(state, step, term).value
                if value.dim() == 2:
                    state.said.write_new(step.ids(view), value)


@dataclass(frozen=True)
class Generation(Frozen):
    """The last accepted generation, frozen; in generation 0 there is none and every row is left without a target."""

    def module(self, model: nn.Module, given: Given) -> nn.Module | None:
        if given.previous is model:
            raise RecipeError("a generation learns from the one before it: bind a fresh model, not the previous one")
        return given.previous


@dataclass(frozen=True)
class External(Frozen):
    """Another, usually larger, model: traditional distillation. ``source`` is a run or model folder; or pass
    ``external=`` to ``bind``, which freezes that very module."""

    source: str | None = None

    def module(self, model: nn.Module, given: Given) -> nn.Module | None:
        if given.external is model:
            raise RecipeError("a model cannot be its own external teacher; use frozen weights of it, or ema")
        if given.external is not None:
            return given.external
        if self.source is None:
            raise RecipeError(
                "this method needs a teacher: distil('RUN') on the command line, bind(external=model) in code"
            )
        from .run import load_model

        return load_model(self.source)


def _one_per_row(teacher: Teacher, head: str) -> str:
    """The space of memories that hold one distribution for each sample."""
    if head in ("exits", "peers") or space_of(head) != "logits":
        raise SpaceError(f"{type(teacher).__name__} remembers one distribution a sample; the head {head!r} is none")
    return "probabilities"


def _first_word(step: Step, term: Term, classes: int) -> tuple[Tensor, Tensor]:
    """The label as a distribution, for samples that have no history yet, and which rows have a label."""
    y = step.labels(term.view)
    return F.one_hot(y.clamp(min=0), classes).float(), y >= 0


@dataclass(frozen=True)
class LastEpoch(Teacher):
    """What the student said of the same sample an epoch ago; its label before that (PS-KD, Kim et al. 2021)."""

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Table()

    def space(self, head: str) -> str:
        return _one_per_row(self, head)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        classes = step.student(term.view, term.head).shape[-1]
        memory, seen = cast(Table, state).read(step.ids(term.view), classes)
        label, known = _first_word(step, term, classes)
        return Target(torch.where(seen[:, None], memory, label), "probabilities", seen | known)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        for step in _shown(steps, term):
            p = F.softmax(step.student(term.view, term.head), dim=-1)
            cast(Table, state).write(step.ids(term.view), p)


@dataclass(frozen=True)
class History(Teacher):
    """A moving average of the student's own predictions, per sample: t <- decay t + (1 - decay) p, *before* use.

    ``start_from`` is ``"zero"`` (ELR: no bias correction) or ``"labels"`` (self-adaptive training: the one-hot label).
    During the first ``wait`` share of the epochs the target is the label itself and nothing is averaged.
    p is clamped to [clamp, 1 - clamp] and normalised again before it enters.
    """

    decay: float = 0.7
    start_from: str = "zero"
    wait: float = 0.0
    clamp: float = 0.0
    # from zero without correction, rows sum to less than 1
    normalised = property(lambda self: self.start_from != "zero")

    def __post_init__(self) -> None:
        if self.start_from not in ("zero", "labels"):
            raise RecipeError(f"a history starts from 'zero' or 'labels', not {self.start_from!r}")

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Table()

    def space(self, head: str) -> str:
        return _one_per_row(self, head)

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        student = step.student(term.view, term.head).detach()
        past, seen = cast(Table, state).read(step.ids(term.view), student.shape[-1])
        valid = None
        if self.start_from == "labels":
            label, known = _first_word(step, term, student.shape[-1])
            past, valid = torch.where(seen[:, None], past, label), seen | known
        if step.clock.epoch < self.wait * step.clock.epochs:
            return Target(past, "probabilities", valid)
        p = F.softmax(student, dim=-1)
        if self.clamp:
            p = p.clamp(self.clamp, 1.0 - self.clamp)
            p = p / p.sum(-1, keepdim=True)
        return Target(self.decay * past + (1.0 - self.decay) * p, "probabilities", valid)

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        for step in _shown(steps, term):
            if step.clock.epoch >= self.wait * step.clock.epochs:
                cast(Table, state).write(step.ids(term.view), self.target(state, step, term).value)


def _shown(steps: Sequence[Step], term: Term) -> list[Step]:
    """The micro-batches that have rows of the term's view."""
    return [step for step in steps if step.rows(term.view)]


class _LastRows(Buffers):
    ids: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0, 0))


@dataclass(frozen=True)
class LastBatch(Teacher):
    """What the student said of the same sample in the batch before this one, with the weights of then (DLB 2022)."""

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return _LastRows()

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        last, ids = cast(_LastRows, state), step.ids(term.view)
        student = step.student(term.view, term.head)
        if not len(last.ids):
            return Target(torch.zeros_like(student), space_of(term.head), torch.zeros_like(ids, dtype=torch.bool))
        match = ids[:, None] == last.ids.flip(0)[None, :]  # (rows, rows before, the last of them first)
        return Target(last.values.flip(0)[match.int().argmax(1)], space_of(term.head), match.any(1))

    def update(self, state: nn.Module, steps: Sequence[Step], term: Term) -> None:
        last: Any = state
        if not (steps := _shown(steps, term)):
            return
        last.ids = ranks.gather(torch.cat([step.ids(term.view) for step in steps]))
        last.values = ranks.gather(torch.cat([step.student(term.view, term.head) for step in steps]))


@dataclass(frozen=True)
class Peers(Teacher):
    """For each peer the mean probability of the *other* peers, from the same forward: never taught by itself."""

    def space(self, head: str) -> str:
        if head != "peers":
            raise SpaceError(f"Peers teach the head 'peers', not {head!r}")
        return "probabilities"

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        p = F.softmax(step.student(term.view, "peers").detach(), dim=-1)  # (rows, K, classes)
        peers = p.shape[1]
        if peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {peers}")
        return Target((p.sum(1, keepdim=True) - p) / (peers - 1), "probabilities")


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
    where a class has fewer, so that every class counts the same. ``hard`` keeps the best class only.
    Generation 0 has no teacher and draws no unlabelled row.
    """

    hard: bool = True
    shares: tuple[float, ...] = (1.0,)
    min_confidence: float = 0.0
    fill: bool = False

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        state = _Chosen()
        state.previous = (given.previous,)  # type: ignore[assignment]  # a tuple: referred to, not owned
        return state

    def space(self, head: str) -> str:
        return _one_per_row(self, head)

    def admitted(self, state: nn.Module) -> Tensor | None:
        return cast(_Chosen, state).ids.cpu()  # rows are drawn where the data are

    def prepare(self, state: nn.Module, pool: Pool) -> None:
        chosen, previous = cast(_Chosen, state), cast(Any, state).previous[0]
        if previous is None or not len(pool.unlabelled):
            return
        p = F.softmax(pool.look(previous, pool.unlabelled), dim=-1)
        confidence, best = p.max(-1)
        share = self.shares[min(pool.clock.generation - 1, len(self.shares) - 1)]
        each = -int(-share * len(p) // p.shape[1])  # rows a class may have, rounded up
        picked = []
        for c in range(p.shape[1]):
            rows = torch.nonzero((best == c) & (confidence >= self.min_confidence)).squeeze(1)
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
        label, known = _first_word(step, term, classes)
        return Target(torch.where(known[:, None], label, pseudo), "probabilities", known | seen)
