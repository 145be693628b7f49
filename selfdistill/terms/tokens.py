"""Terms on the tokens of completions: rewards, preferences, and what their means go over.

A completion's tokens are the labels (rows, T) of its view, -1 where it has ended. What else is known of it stands in
the view's ``extra``: ``reward`` and ``group`` (rows,), ``log_prob`` (rows, T) under what drew it, ``mask`` of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..core.logits import Logits
from ..core.parts import (
    BaseTerm,
    Elements,
    Gate,
    PerElement,
    Reduction,
    Schedule,
    StateOf,
    Tally,
    Teacher,
    Term,
    TermResult,
    aligned_rows,
)
from ..core.step import Batch, Forward
from ..errors import SpaceError
from ..gates.tokens import ImportanceWeight
from ..losses.chunked.divergences import log_probabilities
from ..teachers.weights import Frozen, Generation


def _kept(elements: Elements) -> Tensor:
    """The tokens that count, (rows, T)."""
    if elements.trust is not None:
        return elements.trust > 0
    if elements.valid is not None:
        return elements.valid
    return torch.ones(elements.shape, dtype=torch.bool, device=elements.number.device)


@dataclass(frozen=True)
class PerToken(Reduction):
    """The mean over the tokens that the gate keeps, however much it trusts them."""

    def count(self, elements: Elements) -> Tensor:
        return _kept(elements).sum().to(elements.number.dtype)


@dataclass(frozen=True)
class PerSequence(Reduction):
    """The mean over completions of the mean over the tokens of each that the gate keeps."""

    def weights(self, elements: Elements) -> Tensor | None:
        kept = _kept(elements)
        return kept.float() / kept.sum(1, keepdim=True).clamp(min=1)

    def count(self, elements: Elements) -> Tensor:
        return _kept(elements).any(1).sum().to(elements.number.dtype)


def advantages(rewards: Tensor, groups: Tensor, scaled: bool = True) -> Tensor:
    """How much better than the mean of its group each reward is, (rows,).

    >>> advantages(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 4, 7]), scaled=False).tolist()
    [0.5, -0.5, 0.0]
    """
    found = torch.zeros_like(rewards)
    for group in groups.unique():
        members = groups == group
        less = rewards[members] - rewards[members].mean()
        found[members] = less / (rewards[members].std(unbiased=False) + 1e-4) if scaled else less
    return found


def mask_of(batch: Batch, view: str) -> Tensor:
    """The tokens of a view that exist, (rows, T).

    Raises:
        SpaceError: its rows are no completions.
    """
    mask = batch[view].extra.get("mask")
    if mask is None:
        raise SpaceError(f"the rows of view {view!r} are no completions: they have no 'mask' of tokens")
    return mask


def token_log_probs(logits: Logits, forward: Forward, view: str, mask: Tensor) -> Tensor:
    """log p(y_t) of the tokens of a view, (rows, T), 0 where they are masked."""
    return log_probabilities(logits, forward.labels(view).clamp(min=0), mask=mask)


@dataclass(frozen=True)
class PolicyGradient(BaseTerm):
    """-min(r A, clip(r, 1 - e, 1 + e) A) of each token, r = p / p_drawn, A how much better the completion is than
    others of its prompt: (reward - mean) / (std + 1e-4), or reward - mean unless ``scaled``.

    On the first step of a batch r is 1 and the gradient -A grad log p. Completions that have a row in the view
    ``unless`` are left to another term, and still count in the mean. Source: GRPO (Shao et al. 2024); routing:
    SRPO, arXiv 2604.02288.
    """

    needs: ClassVar[tuple[str, ...]] = ("checker",)
    group: ClassVar[int] = 2
    clip: float = 0.2
    scaled: bool = True
    unless: str | None = None
    view: str = "x"
    head: str = "logits"
    weight: float | Schedule = 1.0
    reduction: Reduction = PerElement()

    def _elements(self, mask: Tensor) -> Elements:
        number = mask.sum().float()
        return Elements(mask.shape, mask, None, number, number)

    def count_of(self, batch: Batch) -> Tensor:
        return self.reduction.count(self._elements(mask_of(batch, self.view)))

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        mask, extra = mask_of(forward.batch, self.view), forward.batch[self.view].extra
        now = token_log_probs(forward.student(self.view, self.head), forward, self.view, mask)
        old = extra["log_prob"][:, : mask.shape[1]] if "log_prob" in extra else now.detach()
        ratio = torch.exp(now - old)
        advantage = advantages(extra["reward"], extra["group"], self.scaled)[:, None]
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip, 1 + self.clip) * advantage)
        elements = self._elements(mask)
        share = self.reduction.weights(elements)
        loss = gain if share is None else share * gain
        kept = mask & ~self._left_out(forward.batch, mask)
        return TermResult(Tally(-loss[kept].sum(), self.reduction.count(elements)), kept.sum().float(), elements.number)

    def _left_out(self, batch: Batch, mask: Tensor) -> Tensor:
        """The tokens of completions that another term learns from, (rows, 1)."""
        if self.unless is None or self.unless not in batch:
            return torch.zeros_like(mask[:, :1])
        return aligned_rows(batch[self.unless], mask)


@dataclass(frozen=True)
class TeacherReturns(Term):
    """-w_t R_t log p(y_t) of each token: the teacher as a reward, R_t the mean of log q(y) - log p(y) over the tokens
    after t (or, with ``immediate``, that of the token itself, whose gradient is that of KL(p || q) in expectation).

    ``w`` is what the gate trusts; with ``clip`` c each log q(y) - log p(y) is kept within -c and c. Source: MiniLLM
    (Gu et al., ICLR 2024), equations 3 to 6.
    """

    teacher: Teacher = Frozen("context")
    loss: None = None  # type: ignore[assignment]
    gate: Gate = ImportanceWeight()
    immediate: bool = False
    clip: float | None = None

    def __post_init__(self) -> None:
        """There is no loss to be checked."""

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        student = forward.student(self.view, self.head)
        target = self.teacher.target(state_of(self.teacher), forward, self)
        valid = mask_of(forward.batch, self.view) if target.valid is None else target.valid
        number = valid.sum().float()
        now = token_log_probs(student, forward, self.view, valid)
        with torch.no_grad():
            reward = (token_log_probs(target.value, forward, self.view, valid) - now) * valid
            if self.clip is not None:
                reward = reward.clamp(-self.clip, self.clip)
        if not self.immediate:
            rest, count = (x.flip(1).cumsum(1).flip(1) - x for x in (reward, valid.float()))
            reward = rest / count.clamp(min=1)
        trust = self.gate.weigh(state_of(self.gate), student.detach(), target, forward, self).masked_fill(~valid, 0.0)
        elements = Elements(valid.shape, valid, trust, number, trust.sum())
        share = self.reduction.weights(elements)
        weight = trust if share is None else share * trust
        total = -(weight * (reward * now))[valid].sum()
        return TermResult(Tally(total, self.reduction.count(elements)), elements.kept, number)


@dataclass(frozen=True)
class PreferenceTerm(BaseTerm):
    """log(1 + exp(-lam (log p(y) / q(y) - log p(y') / q(y')))): the given answer y in one view over y' in view
    ``over``, which the teacher q, the previous generation, wrote. Source: SPIN (Chen et al. 2024), eq. 4.7.
    """

    needs: ClassVar[tuple[str, ...]] = ("demonstration",)
    teacher: Teacher = Generation()
    lam: float = 0.1
    view: str = "x"
    over: str = "other"
    head: str = "logits"
    weight: float | Schedule = 1.0

    @property
    def views(self) -> tuple[str, ...]:
        return self.view, self.over

    def count_of(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch[self.view].x)), device=batch[self.view].x.device)

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        margin = self._ratio(state_of, forward, self.view) - self._ratio(state_of, forward, self.over)
        count = self.count_of(forward.batch)
        return TermResult(Tally(softplus(-self.lam * margin).sum(), count), count, count)

    def _ratio(self, state_of: StateOf, forward: Forward, view: str) -> Tensor:
        """log p(y) - log q(y) of whole completions, (rows,)."""
        mask = mask_of(forward.batch, view)
        target = self.teacher.target(state_of(self.teacher), forward, replace(self, view=view))
        with torch.no_grad():
            theirs = token_log_probs(target.value, forward, view, mask)
        return (token_log_probs(forward.student(view, self.head), forward, view, mask) - theirs).sum(1)
