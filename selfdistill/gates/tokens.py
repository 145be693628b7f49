"""Gates for the tokens of completions: which of them count, and how much where something else drew them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core.parts import BaseTerm, BindArgs, Gate
from ..core.step import Forward
from ..core.targets import Target
from ..errors import RecipeError
from ..losses.chunked.divergences import entropies, importance, log_probabilities


class TokenGate(Gate):
    """A gate that reads lazy logits and asks nothing about confidence."""

    prefers: ClassVar[str | None] = None
    lazy: ClassVar[bool] = True


def all_valid(student: Tensor, target: Target) -> Tensor:
    """Which tokens have a target, (rows, T)."""
    if target.valid is not None:
        return target.valid
    return torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)


@dataclass(frozen=True)
class AfterTokens(TokenGate):
    """Not the first tokens of a completion: those that only a reader of the context would write."""

    first: int = 3

    def trust_mask(self, mask: Tensor) -> Tensor | None:
        return mask & (torch.arange(mask.shape[1], device=mask.device) >= self.first)

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask = all_valid(student, target)
        return (mask & (torch.arange(mask.shape[1], device=mask.device) >= self.first)).float()


@dataclass(frozen=True)
class HighEntropy(TokenGate):
    """The tokens of largest student entropy alone, from this quantile of the batch on."""

    quantile: float = 0.5
    mixes: ClassVar[bool] = True

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask = all_valid(student, target)
        h = entropies(student, mask=mask)
        return (mask & (h >= h[mask].quantile(self.quantile))).float() if bool(mask.any()) else mask.float()


@dataclass(frozen=True)
class TeacherEntropy(TokenGate):
    """The tokens alone at which the teacher's entropy, in nats, is above ``least``: where several would do.

    Source: entropy-aware on-policy distillation, arXiv 2603.07079, 2026; 0.8 there.
    """

    least: float = 0.8

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask = all_valid(student, target)
        return (mask & (entropies(target.value, mask=mask) > self.least)).float()


@dataclass(frozen=True)
class TeacherConfidence(TokenGate):
    """exp(-beta H) over its mean in the batch, H the teacher's entropy in nats: what it is sure of counts for more.

    So its trust may exceed 1. Source: SRPO, arXiv 2604.02288, 2026, section 3.2.
    """

    beta: float = 1.0
    mixes: ClassVar[bool] = True

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask = all_valid(student, target)
        weight = torch.exp(-self.beta * entropies(target.value, mask=mask)).masked_fill(~mask, 0.0)
        return weight * mask.sum() / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)


@dataclass(frozen=True)
class ByWriter(TokenGate):
    """The completions that the tutor wrote, who reads more than the prompt, or those of the student; of both only what
    is trusted.

    The view's ``extra`` tells them apart: ``tutored`` and ``trusted``, (rows,); without them all are the student's.
    """

    tutor: bool = True

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask, extra = all_valid(student, target), forward.batch[term.view].extra
        tutored = extra.get("tutored", torch.zeros(len(mask), dtype=torch.bool, device=mask.device))
        trusted = extra.get("trusted", torch.ones_like(tutored))
        return (mask & (trusted & (tutored == self.tutor))[:, None]).float()


@dataclass(frozen=True)
class ImportanceWeight(TokenGate):
    """p(y) / p_drawn(y), at most ``cap``, where another engine or a mixture drew the tokens; else 1.

    So its trust may exceed 1. ``per`` "sequence" gives each token the mean over its sequence.
    """

    cap: float = 2.0
    per: str = "token"

    def __post_init__(self) -> None:
        if self.per not in ("token", "sequence") or not self.cap > 0:
            raise RecipeError(f"ImportanceWeight is per 'token' or 'sequence' with a cap above 0, not {self}")

    def trust_mask(self, mask: Tensor) -> Tensor | None:
        return mask

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        mask, drawn = all_valid(student, target), forward.batch[term.view].extra.get("log_prob")
        if drawn is None:
            return mask.float()
        with torch.no_grad():
            now = log_probabilities(student, forward.labels(term.view).clamp(min=0), mask=mask)
        return importance(now, drawn[:, : mask.shape[1]], self.cap, mask=mask, per=self.per)


@dataclass(frozen=True)
class Product(TokenGate):
    """The product of what several gates trust."""

    gates: tuple[Gate, ...]

    @property
    def mixes(self) -> bool:  # type: ignore[override]
        return any(gate.mixes for gate in self.gates)

    def start(self, model: nn.Module, args: BindArgs) -> nn.Module:
        return nn.ModuleList([gate.start(model, args) for gate in self.gates])

    def trust_mask(self, mask: Tensor) -> Tensor | None:
        kept = [gate.trust_mask(mask) for gate in self.gates]
        known = [k for k in kept if k is not None]
        return reduce(torch.logical_and, known) if len(known) == len(kept) else None

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        states = state if isinstance(state, nn.ModuleList) else [state] * len(self.gates)
        trusts = [g.weigh(s, student, target, forward, term) for g, s in zip(self.gates, states, strict=True)]
        return reduce(torch.mul, trusts)

    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for gate, inner in zip(self.gates, state.children(), strict=True):
            gate.update(inner, forwards, term)
