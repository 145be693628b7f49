"""Memories: earlier predictions for the same sample, and copies of peers from some steps ago."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import distributed
from ..core.memory import Buffers, FrozenCopy, SampleMemory, copy_model, unwrapped
from ..core.outputs import one_distribution, space_of
from ..core.parts import BaseTerm, BindArgs, Teacher
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError, SpaceError


@cache
def memory_space(teacher: Teacher, head: str, values: bool = True) -> str:
    """The space of a memory that holds one distribution, or one value, for each sample."""
    if values and head == "values":
        return "values"
    if not one_distribution(head):
        raise SpaceError(f"{type(teacher).__name__} holds one distribution a sample; the head {head!r} gives none")
    return "probabilities"


def memory_value(output: Tensor, space: str) -> Tensor:
    """The form in which a memory stores an output: probabilities of logits, and values unchanged."""
    return output if space == "values" else F.softmax(output, dim=-1)


def label_target(forward: Forward, term: BaseTerm, width: int) -> tuple[Tensor, Tensor]:
    """The label as a distribution or a value, for samples without a history, and which rows have a label."""
    y = forward.labels(term.view)
    if y.is_floating_point():
        y = y if y.dim() > 1 else y.unsqueeze(-1)
        return y.nan_to_num(), ~y.isnan().any(-1)
    return F.one_hot(y.clamp(min=0), width).float(), y >= 0


@dataclass(frozen=True)
class LastEpoch(Teacher[SampleMemory]):
    """The student's prediction for the same sample one epoch ago, at first its label (PS-KD, Kim et al. 2021)."""

    def start(self, model: nn.Module, args: BindArgs) -> SampleMemory:
        return SampleMemory(predictions=True, distributions=True)

    def space(self, head: str) -> str:
        return memory_space(self, head)

    def target(self, state: SampleMemory, forward: Forward, term: BaseTerm) -> Target:
        width = forward.student(term.view, term.head).shape[-1]
        memory, stored = state.read(forward.ids(term.view), width)
        label, labelled = label_target(forward, term, width)
        return Target(torch.where(stored[:, None], memory, label), self.space(term.head), stored | labelled)

    def update(self, state: SampleMemory, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in _with_rows(forwards, term):
            prediction = memory_value(forward.student(term.view, term.head), self.space(term.head))
            state.write(forward.ids(term.view), prediction)


@dataclass(frozen=True)
class History(Teacher[SampleMemory]):
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

    def start(self, model: nn.Module, args: BindArgs) -> SampleMemory:
        return SampleMemory(predictions=True, distributions=True)

    def space(self, head: str) -> str:
        return memory_space(self, head)

    def target(self, state: SampleMemory, forward: Forward, term: BaseTerm) -> Target:
        student = forward.student(term.view, term.head).detach()
        average, stored = state.read(forward.ids(term.view), student.shape[-1])
        valid = None
        if self.start_from == "labels":
            label, labelled = label_target(forward, term, student.shape[-1])
            average, valid = torch.where(stored[:, None], average, label), stored | labelled
        space = memory_space(self, term.head)
        if forward.clock.epoch < self.wait * forward.clock.epochs:
            return Target(average, space, valid)
        prediction = memory_value(student, space)
        if self.clamp and space == "probabilities":
            prediction = prediction.clamp(self.clamp, 1.0 - self.clamp)
            prediction = prediction / prediction.sum(-1, keepdim=True)
        return Target(self.decay * average + (1.0 - self.decay) * prediction, space, valid)

    def update(self, state: SampleMemory, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in forwards:
            if forward.rows(term.view) and forward.clock.epoch >= self.wait * forward.clock.epochs:
                state.write(forward.ids(term.view), self.target(state, forward, term).value)


def _with_rows(forwards: Sequence[Forward], term: BaseTerm) -> list[Forward]:
    """The micro-batches that have rows of the term's view."""
    return [forward for forward in forwards if forward.rows(term.view)]


class _LastRows(Buffers):
    ids: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ids", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(0, 0))


@dataclass(frozen=True)
class LastBatch(Teacher[_LastRows]):
    """The student's output for the same sample in the previous batch, before the last update (DLB 2022)."""

    def start(self, model: nn.Module, args: BindArgs) -> _LastRows:
        return _LastRows()

    def target(self, state: _LastRows, forward: Forward, term: BaseTerm) -> Target:
        ids = forward.ids(term.view)
        student = forward.student(term.view, term.head)
        if not len(state.ids):
            return Target(torch.zeros_like(student), space_of(term.head), torch.zeros_like(ids, dtype=torch.bool))
        same_id = ids[:, None] == state.ids.flip(0)[None, :]  # (rows, rows before, the last of them first)
        return Target(state.values.flip(0)[same_id.int().argmax(1)], space_of(term.head), same_id.any(1))

    def update(self, state: _LastRows, forwards: Sequence[Forward], term: BaseTerm) -> None:
        if not (forwards := _with_rows(forwards, term)):
            return
        state.ids = distributed.gather(torch.cat([forward.ids(term.view) for forward in forwards]))
        state.values = distributed.gather(torch.cat([forward.student(term.view, term.head) for forward in forwards]))


@dataclass(frozen=True)
class Stale(Teacher[FrozenCopy]):
    """For each peer the mean probability of the others, from copies of their weights renewed ``every`` so many steps.

    The copies run in eval mode; the first ones are of the initial weights (codistillation, Anil et al. 2018).

    Raises:
        RecipeError: ``every`` is below 1.
    """

    every: int = 50

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RecipeError(f"Stale: every is a number of steps from 1 on, not {self.every}")

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers

    def start(self, model: nn.Module, args: BindArgs) -> FrozenCopy:
        return FrozenCopy(copy_model(model))

    def key(self, term: BaseTerm) -> Hashable:
        return self

    def space(self, head: str) -> str:
        if head != "peers":
            raise SpaceError(f"Stale needs the head 'peers', not {head!r}")
        return "probabilities"

    def target(self, state: FrozenCopy, forward: Forward, term: BaseTerm) -> Target:
        p = F.softmax(forward.teacher_output(state.module, term.view, term.head), dim=-1)  # (rows, K, classes)
        if p.shape[1] < 2:
            raise SpaceError(f"Stale needs at least two peers, not {p.shape[1]}")
        return Target((p.sum(1, keepdim=True) - p) / (p.shape[1] - 1), "probabilities")

    @torch.no_grad()
    def update(self, state: FrozenCopy, forwards: Sequence[Forward], term: BaseTerm) -> None:
        if (forwards[0].clock.step + 1) % self.every:
            return
        weights = unwrapped(forwards[0].owner).state_dict()
        for name, copied in state.module.state_dict().items():
            copied.copy_(weights[name])
