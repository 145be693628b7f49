"""Relabelling: labels that the student's predictions over many epochs correct."""

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
from .memories import first_word, one_per_row, remembered
from .self_training import PseudoLabelStore


@dataclass(frozen=True)
class Ensembled(Teacher[SampleMemory]):
    """The bias-corrected moving average of what was said of a sample in earlier epochs: Z / (1 - decay^n).

    Z <- decay Z + (1 - decay) p after each of its n visits, Z = 0 at first; before the first visit it says nothing
    (temporal ensembling, Laine and Aila 2017).
    """

    decay: float = 0.6

    def start(self, model: nn.Module, given: BindArgs) -> SampleMemory:
        return SampleMemory()  # of Z and, in the last column, 1 - decay^n

    def space(self, head: str) -> str:
        return one_per_row(self, head)

    def target(self, state: SampleMemory, step: Forward, term: BaseTerm) -> Target:
        width = step.student(term.view, term.head).shape[-1]
        kept, seen = state.read(step.ids(term.view), width + 1)
        return Target(kept[:, :-1] / kept[:, -1:].clamp(min=1e-12), self.space(term.head), seen)

    def update(self, state: SampleMemory, steps: Sequence[Forward], term: BaseTerm) -> None:
        for step in (step for step in steps if step.rows(term.view)):
            said = remembered(step.student(term.view, term.head), self.space(term.head))
            past, _ = state.read(step.ids(term.view), said.shape[-1] + 1)
            now = torch.cat([said, torch.ones_like(said[:, :1])], dim=1)
            state.write(step.ids(term.view), self.decay * past + (1.0 - self.decay) * now)


class Votes(PseudoLabelStore):
    """Refurbished labels by sample id, which are handed on, and the last best classes of each sample, newest last."""

    def __init__(self) -> None:
        super().__init__(None, stays=True)
        self.said = SampleMemory()

    def majority(self, ids: Tensor, length: int, classes: int) -> tuple[Tensor, Tensor]:
        """The most frequent class (rows,), and how uncertain the votes are: entropy over log C; 1 until all are in."""
        votes, seen = self.said.read(ids, length)
        share = F.one_hot(votes.long().clamp(min=0), classes).float().mean(1)
        full = seen & (votes >= 0).all(1)
        doubt = torch.special.entr(share).sum(-1) / torch.log(torch.tensor(float(classes)))
        return share.argmax(-1), torch.where(full, doubt, torch.ones_like(doubt))

    def vote(self, ids: Tensor, best: Tensor, length: int) -> None:
        votes, seen = self.said.read(ids, length)
        votes = torch.where(seen[:, None], votes, torch.full_like(votes, -1.0))
        self.said.write(ids, torch.cat([votes[:, 1:], best[:, None].to(votes.dtype)], dim=1))


@dataclass(frozen=True)
class Refurbished(Teacher[Votes]):
    """The label, or the class that a sample got in its last ``history`` visits if they agree (SELFIE, Song 2019).

    They agree if the entropy of their frequencies is at most ``threshold`` log C. Such a label is kept until they agree
    on another one, into the next generation too. Of the rows of a batch, those with a refurbished label teach, and the
    ceil((1 - noise) n) with the smallest loss on the label that was given; others say nothing. During the first
    ``wait`` share of the epochs every row teaches its label.

    Raises:
        RecipeError: no history, or a noise outside [0, 1).
    """

    noise: float = 0.2
    history: int = 15
    threshold: float = 0.05
    wait: float = 0.25

    def __post_init__(self) -> None:
        if self.history < 1:
            raise RecipeError(f"a history holds at least one prediction, not {self.history}")
        if not 0.0 <= self.noise < 1.0:
            raise RecipeError(f"noise is the share of labels taken for wrong, from 0 to below 1, not {self.noise}")

    def start(self, model: nn.Module, given: BindArgs) -> Votes:
        return Votes()

    def space(self, head: str) -> str:
        one_per_row(self, head, values=False)
        return "classes"

    def _refurbished(self, votes: Votes, step: Forward, term: BaseTerm) -> tuple[Tensor, Tensor]:
        """The refurbished label of each row (rows,), and whether it has one."""
        ids, classes = step.ids(term.view), step.student(term.view, term.head).shape[-1]
        best, doubt = votes.majority(ids, self.history, classes)
        before, has = votes.read(ids, 1)
        sure = doubt <= self.threshold
        return torch.where(sure, best, before[:, 0].long()), sure | has

    def target(self, state: Votes, step: Forward, term: BaseTerm) -> Target:
        y = step.labels(term.view)
        if step.clock.epoch < self.wait * step.clock.epochs:
            return Target(y, "classes", y >= 0)
        label, mended = self._refurbished(state, step, term)
        student = step.student(term.view, term.head).detach()
        loss, known = F.cross_entropy(student, y.clamp(min=0), reduction="none"), y >= 0
        easy = smallest(loss, known, torch.ceil((1.0 - self.noise) * known.sum()))
        return Target(torch.where(mended, label, y), "classes", known & (easy | mended))

    def update(self, state: Votes, steps: Sequence[Forward], term: BaseTerm) -> None:
        for step in (step for step in steps if step.rows(term.view)):
            if step.clock.epoch >= self.wait * step.clock.epochs:
                label, mended = self._refurbished(state, step, term)
                state.write(step.ids(term.view)[mended], label[mended, None])
            state.vote(step.ids(term.view), step.student(term.view, term.head).argmax(-1), self.history)


class Window(PseudoLabelStore):
    """The last predictions of each sample, newest last, and how many they are; their mean is handed on."""

    def __init__(self, length: int) -> None:
        super().__init__(None, stays=True)
        self.said, self.length = SampleMemory(), length

    def mean(self, ids: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """The mean prediction (rows, classes), and which rows have any."""
        said, seen = self.said.read(ids, self.length * classes + 1)
        return said[:, :-1].unflatten(1, (self.length, classes)).sum(1) / said[:, -1:].clamp(min=1.0), seen

    def push(self, ids: Tensor, p: Tensor) -> None:
        said, _ = self.said.read(ids, self.length * p.shape[-1] + 1)
        count = (said[:, -1:] + 1.0).clamp(max=float(self.length))
        self.said.write(ids, torch.cat([said[:, p.shape[-1] : -1], p, count], dim=1))

    def carry(self) -> dict[str, Tensor]:
        ids = torch.nonzero(self.said.seen).squeeze(1)
        if not len(ids):  # a generation that was handed its labels hands on the same
            return super().carry()
        classes = (self.said.values.shape[1] - 1) // self.length
        return {"ids": ids.cpu(), "labels": self.mean(ids, classes)[0].cpu()}


@dataclass(frozen=True)
class Relabelled(Teacher[Window]):
    """The mean of what was said of a sample in its last ``window`` visits (joint optimisation, Tanaka et al. 2018).

    In generation 0, as training goes; during its first ``wait`` share of the epochs the target is the label. What
    stands at its end are the labels of later generations.
    """

    window: int = 10
    wait: float = 0.35

    def __post_init__(self) -> None:
        if self.window < 1:
            raise RecipeError(f"a window holds at least one prediction, not {self.window}")

    def start(self, model: nn.Module, given: BindArgs) -> Window:
        return Window(self.window)

    def space(self, head: str) -> str:
        return one_per_row(self, head, values=False)

    def target(self, state: Window, step: Forward, term: BaseTerm) -> Target:
        ids = step.ids(term.view)
        classes = step.student(term.view, term.head).shape[-1]
        label, known = first_word(step, term, classes)
        later = step.clock.generation > 0
        soft, seen = state.read(ids, classes) if later else state.mean(ids, classes)
        if not later and step.clock.epoch < self.wait * step.clock.epochs:
            return Target(label, "probabilities", known)
        return Target(torch.where(seen[:, None], soft, label), "probabilities", seen | known)

    def update(self, state: Window, steps: Sequence[Forward], term: BaseTerm) -> None:
        for step in (step for step in steps if step.rows(term.view) and step.clock.generation == 0):
            said = remembered(step.student(term.view, term.head), "logits")
            state.push(step.ids(term.view), said)
