"""Relabelling: labels corrected by the student's predictions over many epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import SampleMemory
from ..core.parts import BaseTerm, BindArgs, Teacher
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError
from ..gates.confidence import smallest
from .memories import label_target, memory_space, memory_value
from .self_training import PseudoLabelStore


@dataclass(frozen=True)
class Ensembled(Teacher[SampleMemory]):
    """The bias-corrected moving average of the predictions for a sample in earlier epochs: Z / (1 - decay^n).

    Z <- decay Z + (1 - decay) p after each of its n visits, Z = 0 at first; before the first visit there is no target
    (temporal ensembling, Laine and Aila 2017).
    """

    decay: float = 0.6

    def start(self, model: nn.Module, args: BindArgs) -> SampleMemory:
        return SampleMemory()  # of Z and, in the last column, 1 - decay^n

    def space(self, head: str) -> str:
        return memory_space(self, head)

    def target(self, state: SampleMemory, forward: Forward, term: BaseTerm) -> Target:
        width = forward.student(term.view, term.head).shape[-1]
        stored, present = state.read(forward.ids(term.view), width + 1)
        return Target(stored[:, :-1] / stored[:, -1:].clamp(min=1e-12), self.space(term.head), present)

    def update(self, state: SampleMemory, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in (forward for forward in forwards if forward.rows(term.view)):
            prediction = memory_value(forward.student(term.view, term.head), self.space(term.head))
            stored, _ = state.read(forward.ids(term.view), prediction.shape[-1] + 1)
            entry = torch.cat([prediction, torch.ones_like(prediction[:, :1])], dim=1)
            state.write(forward.ids(term.view), self.decay * stored + (1.0 - self.decay) * entry)


class Votes(PseudoLabelStore):
    """Refurbished labels by sample id, which later generations inherit, and the last predicted classes, newest last."""

    def __init__(self) -> None:
        super().__init__(None, stays=True)
        self.memory = SampleMemory()

    def majority(self, ids: Tensor, length: int, classes: int) -> tuple[Tensor, Tensor]:
        """The most frequent class (rows,), and the entropy of the votes over log C; 1 until all are in."""
        votes, stored = self.memory.read(ids, length)
        share = F.one_hot(votes.long().clamp(min=0), classes).float().mean(1)
        complete = stored & (votes >= 0).all(1)
        uncertainty = torch.special.entr(share).sum(-1) / torch.log(torch.tensor(float(classes)))
        return share.argmax(-1), torch.where(complete, uncertainty, torch.ones_like(uncertainty))

    def vote(self, ids: Tensor, best: Tensor, length: int) -> None:
        votes, stored = self.memory.read(ids, length)
        votes = torch.where(stored[:, None], votes, torch.full_like(votes, -1.0))
        self.memory.write(ids, torch.cat([votes[:, 1:], best[:, None].to(votes.dtype)], dim=1))


@dataclass(frozen=True)
class Refurbished(Teacher[Votes]):
    """The label, or the class that was predicted in the last ``history`` visits if they agree (SELFIE, Song 2019).

    They agree if the entropy of their frequencies is at most ``threshold`` log C. Such a label stays until they agree
    on another one, also in the next generation. In a batch, the rows with a refurbished label have a target, and the
    ceil((1 - noise) n) rows with the smallest loss on the given label; the others have none. During the first ``wait``
    share of the epochs the target of every row is its label.

    Raises:
        RecipeError: a history below 1, or a noise outside [0, 1).
    """

    noise: float = 0.2
    history: int = 15
    threshold: float = 0.05
    wait: float = 0.25

    def __post_init__(self) -> None:
        if self.history < 1:
            raise RecipeError(f"Refurbished: history counts predictions, at least 1, not {self.history}")
        if not 0.0 <= self.noise < 1.0:
            raise RecipeError(f"Refurbished: noise is the share of wrong labels, in [0, 1), not {self.noise}")

    def start(self, model: nn.Module, args: BindArgs) -> Votes:
        return Votes()

    def space(self, head: str) -> str:
        memory_space(self, head, values=False)
        return "classes"

    def _refurbished(self, votes: Votes, forward: Forward, term: BaseTerm) -> tuple[Tensor, Tensor]:
        """The refurbished label of each row (rows,), and whether it has one."""
        ids, classes = forward.ids(term.view), forward.student(term.view, term.head).shape[-1]
        best, uncertainty = votes.majority(ids, self.history, classes)
        previous, stored = votes.read(ids, 1)
        certain = uncertainty <= self.threshold
        return torch.where(certain, best, previous[:, 0].long()), certain | stored

    def target(self, state: Votes, forward: Forward, term: BaseTerm) -> Target:
        y = forward.labels(term.view)
        if forward.clock.epoch < self.wait * forward.clock.epochs:
            return Target(y, "classes", y >= 0)
        label, refurbished = self._refurbished(state, forward, term)
        student = forward.student(term.view, term.head).detach()
        loss, labelled = F.cross_entropy(student, y.clamp(min=0), reduction="none"), y >= 0
        small_loss = smallest(loss, labelled, torch.ceil((1.0 - self.noise) * labelled.sum()))
        return Target(torch.where(refurbished, label, y), "classes", labelled & (small_loss | refurbished))

    def update(self, state: Votes, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in (forward for forward in forwards if forward.rows(term.view)):
            if forward.clock.epoch >= self.wait * forward.clock.epochs:
                label, refurbished = self._refurbished(state, forward, term)
                state.write(forward.ids(term.view)[refurbished], label[refurbished, None])
            state.vote(forward.ids(term.view), forward.student(term.view, term.head).argmax(-1), self.history)


class Window(PseudoLabelStore):
    """The last predictions of each sample, newest last, and their number; later generations inherit their mean."""

    def __init__(self, length: int) -> None:
        super().__init__(None, stays=True)
        self.memory, self.length = SampleMemory(), length

    def mean(self, ids: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """The mean prediction (rows, classes), and a mask (rows,) of the rows with predictions."""
        sums, stored = self.memory.read(ids, self.length * classes + 1)
        return sums[:, :-1].unflatten(1, (self.length, classes)).sum(1) / sums[:, -1:].clamp(min=1.0), stored

    def push(self, ids: Tensor, p: Tensor) -> None:
        window, _ = self.memory.read(ids, self.length * p.shape[-1] + 1)
        count = (window[:, -1:] + 1.0).clamp(max=float(self.length))
        self.memory.write(ids, torch.cat([window[:, p.shape[-1] : -1], p, count], dim=1))

    def carry(self) -> dict[str, Tensor]:
        ids = self.memory.keys
        if not len(ids):  # a generation with inherited labels passes them on
            return super().carry()
        classes = (self.memory.width - 1) // self.length
        return {"ids": ids.cpu(), "labels": self.mean(ids, classes)[0].cpu()}


@dataclass(frozen=True)
class Relabelled(Teacher[Window]):
    """The mean prediction for a sample over its last ``window`` visits (joint optimisation, Tanaka et al. 2018).

    In generation 0 it follows the training; during the first ``wait`` share of the epochs the target is the label. The
    means at its end are the labels of later generations.
    """

    window: int = 10
    wait: float = 0.35

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RecipeError(f"Relabelled: window counts predictions, at least 1, not {self.window}")

    def start(self, model: nn.Module, args: BindArgs) -> Window:
        return Window(self.window)

    def space(self, head: str) -> str:
        return memory_space(self, head, values=False)

    def target(self, state: Window, forward: Forward, term: BaseTerm) -> Target:
        ids = forward.ids(term.view)
        classes = forward.student(term.view, term.head).shape[-1]
        label, labelled = label_target(forward, term, classes)
        inherited = forward.clock.generation > 0
        soft, stored = state.read(ids, classes) if inherited else state.mean(ids, classes)
        if not inherited and forward.clock.epoch < self.wait * forward.clock.epochs:
            return Target(label, "probabilities", labelled)
        return Target(torch.where(stored[:, None], soft, label), "probabilities", stored | labelled)

    def update(self, state: Window, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in (forward for forward in forwards if forward.rows(term.view) and forward.clock.generation == 0):
            prediction = memory_value(forward.student(term.view, term.head), "logits")
            state.push(forward.ids(term.view), prediction)
