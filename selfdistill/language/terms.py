"""Terms on completions. Each is a sum over tokens or sequences with its count, as all terms of the engine.

The student's rows are in view ``x``, with rewards as labels. Other views hold, for the rows whose numbers they carry as
ids, the same completions after another prompt (``context``, ``against``), or what belongs to them (``sampler``).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor

from ..core.logits import Logits
from ..core.parts import BaseTerm, Measured, Part, Schedule, StateOf, Tally
from ..core.step import Batch, Step
from ..losses.chunked.definitions import Divergence, ForwardKL
from ..losses.chunked.divergences import divergence, entropies, importance, log_probabilities
from ..losses.chunked.sweep import Top
from ..models.causal_lm import Causal, completions
from .teachers import Base, Judge, blended


@dataclass(frozen=True, kw_only=True)
class _Term(BaseTerm):
    """What all of them share: the view, the head, a weight, and over what the mean goes."""

    head: str = "hidden"
    weight: float | Schedule = 1.0
    mean_over: str = "token"  # or "sequence": the mean of each, and of these the mean

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        raise NotImplementedError

    def said(self, step: Step, view: str | None = None) -> tuple[Causal, Logits, Tensor, Tensor]:
        """The student, its distributions at the tokens of a view (tokens in one row), their ids, and which are real."""
        view = view or self.view
        model, (ids, real) = cast(Causal, step.owner), completions(step.batch[view].x)
        return model, model.source(step.student(view, self.head)[real]), ids, real

    @property
    def separable(self) -> bool:
        """Does it say the same of a batch in pieces?"""
        return True

    def kept(self, batch: Batch) -> Tensor:
        """The tokens of its view that count, (rows, T), as far as no pass is needed to know it."""
        return completions(batch[self.view].x)[1]

    def counted(self, batch: Batch) -> Tensor:
        """What its sum over a batch will be divided by, if it is `separable`."""
        return self._count(self.kept(batch))

    def _count(self, kept: Tensor) -> Tensor:
        return (kept if self.mean_over == "token" else kept.any(1)).sum().float()

    def measured(self, total: Tensor, kept: Tensor) -> Measured:
        """The tally of a sum over tokens that were ``kept`` (rows, T) and weighed by `spread`."""
        valid = kept.sum().to(total.dtype)
        return Measured(Tally(total, self._count(kept).to(total.dtype)), valid, valid)

    def spread(self, kept: Tensor) -> Tensor:
        """1 for each token, or one over the length of its sequence, (rows, T)."""
        ones = kept.float()
        return ones if self.mean_over == "token" else ones / kept.sum(1, keepdim=True).clamp(min=1)


def _given(source: Logits, ids: Tensor, where: Tensor, model: Causal) -> Tensor:
    """log p(y) of the tokens ``where`` they are, (rows, T), 0 elsewhere; ``source`` has those tokens in one row."""
    found = torch.zeros(where.shape, device=where.device)
    found[where] = log_probabilities(source, ids[where], vocabulary=model.vocabulary)
    return found


@dataclass(frozen=True)
class NextToken(_Term):
    """-log p(y_t | x, y_<t): what supervised fine-tuning minimises."""

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        model, source, ids, real = self.said(step)
        labels = -log_probabilities(source, ids[real], vocabulary=model.vocabulary)
        return self.measured((self.spread(real)[real] * labels).sum(), real)


@dataclass(frozen=True)
class Distil(_Term):
    """D(q_t, p_t) at every completion token, q_t a teacher that reads the ``context`` view, p_t the student without it.

    Args:
        teacher: whose weights; ``divergence`` and ``support``: how they are compared.
        skip: the first tokens of a completion count for nothing (what only a reader of the context would say).
        quantile: keep the tokens of largest student entropy only, from this quantile on.
        labels: weight of the cross-entropy on the tokens themselves, from the same logits.
        cap: largest importance weight where another engine or a mixture drew the tokens; ``per`` token or sequence.
        returns: weight of the rewards of later tokens, for divergences that are descended on whole answers.
        contrast: turn from what the ``against`` view makes likely: log q = (1 + c) log q_context - c log q_against.
    """

    teacher: Judge = Base()
    divergence: Divergence = ForwardKL()
    support: Top | None = None
    skip: int = 0
    quantile: float = 0.0
    labels: float = 0.0
    cap: float = 2.0
    per: str = "token"
    contrast: float = 0.0
    returns: float = 0.0

    def parts(self) -> tuple[Part, ...]:
        return (self.teacher,)

    def kept(self, batch: Batch) -> Tensor:
        here = self._judged(batch, super().kept(batch))
        return here & (torch.arange(here.shape[1], device=here.device) >= self.skip)

    @property
    def separable(self) -> bool:
        return not self.quantile  # which is one of the whole batch

    @staticmethod
    def _judged(batch: Batch, real: Tensor) -> Tensor:
        """The tokens of which a teacher has read a context."""
        here = torch.zeros_like(real)
        if "context" in batch:
            rows = batch["context"].id
            here[rows] = real[rows]
        return here

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        model, source, ids, real = self.said(step)
        if not step.rows("context"):
            parts = (source,) if isinstance(source, Tensor) else source[:3]
            zero = 0.0 * sum(t.float().sum() for t in parts if t is not None)
            return self.measured(torch.as_tensor(zero), torch.zeros_like(real))
        here, kept = self._judged(step.batch, real), self.kept(step.batch)
        flat = here[real]  # the student's tokens that the teacher judges
        student = source[flat] if isinstance(source, Tensor) else source._replace(hidden=source.hidden[flat])
        if self.quantile:
            kept = kept & self._surprising(model, student, here)
        teacher = self._teacher(state_of(self.teacher), step)
        mask = kept[here]
        weight = self.spread(kept)[here] * self._corrected(step, student, ids, here, model)
        top = self.support and replace(self.support, k=min(self.support.k, model.vocabulary))  # k is an upper bound
        sampled = ids[here] if self.divergence.sampled else top
        labels = {"labels": ids[here], "label_weight": self.labels * weight} if self.labels else {}
        found = divergence(student, teacher, self.divergence, support=sampled, weight=weight, mask=mask,
                           vocabulary=model.vocabulary, **labels)  # type: ignore[arg-type]  # fmt: skip
        total = found.total
        if self.returns:
            total = total + self.returns * self._later(student, teacher, ids, here, weight, model)
        return self.measured(total, kept)

    def _later(
        self, student: Logits, teacher: Logits, ids: Tensor, here: Tensor, weight: Tensor, model: Causal
    ) -> Tensor:
        """-sum_t w_t R_t log p(y_t), R_t the mean of log q(y) - log p(y) over the tokens after t."""
        now = _given(student, ids, here, model)
        with torch.no_grad():
            theirs = _given(teacher, ids, here, model)
        r = (theirs - now.detach()) * here
        rest, count = (x.flip(1).cumsum(1).flip(1) - x for x in (r, here.float()))
        return -(weight * (rest / count.clamp(min=1) * now)[here]).sum()

    def _teacher(self, state: torch.nn.Module, step: Step) -> Logits:
        context = self.teacher.source(state, step, "context")
        if not self.contrast:
            return context
        against = self.teacher.source(state, step, "against")
        return blended([(1 + self.contrast, context), (-self.contrast, against)])

    def _surprising(self, model: Causal, student: Logits, here: Tensor) -> Tensor:
        """Tokens whose student entropy reaches the quantile."""
        found, h = torch.zeros_like(here), entropies(student, model.vocabulary)
        found[here] = h >= h.quantile(self.quantile)
        return found

    def _corrected(self, step: Step, student: Logits, ids: Tensor, here: Tensor, model: Causal) -> Tensor:
        """Importance weights of the tokens, where the batch knows that another engine or a mixture drew them."""
        if not step.rows("sampler"):
            return torch.ones((), device=here.device)
        with torch.no_grad():
            now = _given(student, ids, here, model)
        drawn = step.batch["sampler"].x[:, : here.shape[1]]
        return importance(now, drawn, self.cap, mask=here, per=self.per)[here]


@dataclass(frozen=True)
class Advantage(_Term):
    """-min(r A, clip(r, 1 - e, 1 + e) A) at every token, A = (reward - mean) / (std + 1e-4) over a prompt's samples and
    r = p / p_old; on the first step of a batch r is 1 and the gradient -A grad log p. Source: GRPO (Shao et al. 2024).
    """

    needs: ClassVar[tuple[str, ...]] = ("checker",)
    group: ClassVar[int] = 2
    clip: float = 0.2
    scaled: bool = True  # divide by the standard deviation

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        model, source, ids, real = self.said(step)
        rewards, groups = step.batch[self.view].y, step.batch[self.view].id
        assert rewards is not None
        assert groups is not None
        now = _given(source, ids, real, model)
        old = step.batch["sampler"].x[:, : real.shape[1]] if step.rows("sampler") else now.detach()
        ratio, a = torch.exp(now - old), advantages(rewards, groups, self.scaled)[:, None]
        gain = torch.minimum(ratio * a, ratio.clamp(1 - self.clip, 1 + self.clip) * a)
        return self.measured(-(self.spread(real) * gain)[real].sum(), real)


def advantages(rewards: Tensor, groups: Tensor, scaled: bool = True) -> Tensor:
    """How much better than the mean of its group each reward is, (rows,).

    >>> advantages(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([4, 4, 7]), scaled=False).tolist()
    [0.5, -0.5, 0.0]
    """
    found = torch.zeros_like(rewards)
    for group in groups.unique():
        mine = groups == group
        less = rewards[mine] - rewards[mine].mean()
        found[mine] = less / (rewards[mine].std(unbiased=False) + 1e-4) if scaled else less
    return found


@dataclass(frozen=True)
class Preferred(_Term):
    """log(1 + exp(-lam (log p(y) / q(y) - log p(y') / q(y')))): the given answer y in view ``x`` over y' in view
    ``other``, which the previous generation q wrote. Source: SPIN (Chen et al. 2024), eq. 4.7.
    """

    teacher: Judge = Base()
    lam: float = 0.1
    mean_over: str = field(default="sequence", kw_only=True)
    needs: ClassVar[tuple[str, ...]] = ("demonstration",)

    @property
    def views(self) -> tuple[str, ...]:
        return self.view, "other"

    def parts(self) -> tuple[Part, ...]:
        return (self.teacher,)

    def counted(self, batch: Batch) -> Tensor:
        return torch.tensor(float(len(batch[self.view].x)), device=batch[self.view].x.device)

    def tally(self, state_of: StateOf, step: Step) -> Measured:
        margin = self._ratio(state_of, step, self.view) - self._ratio(state_of, step, "other")
        loss = torch.nn.functional.softplus(-self.lam * margin).sum()
        count = torch.tensor(float(len(margin)), device=margin.device)
        return Measured(Tally(loss, count), count, count)

    def _ratio(self, state_of: StateOf, step: Step, view: str) -> Tensor:
        """log p(y) - log q(y) of whole completions, (rows,)."""
        model, source, ids, real = self.said(step, view)
        theirs = self.teacher.source(state_of(self.teacher), step, view)
        with torch.no_grad():
            held = _given(theirs, ids, real, model)
        return (_given(source, ids, real, model) - held).sum(1)
