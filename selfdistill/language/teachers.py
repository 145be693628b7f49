"""Whose weights judge a completion. All of them keep what they hold in the objective's state, and none holds a second
model where the student's own layers will do: weights are put in its place for one look.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.logits import Logits, Projection
from ..core.parts import BaseTerm, Given, Teacher
from ..core.step import Step
from ..errors import DataError, RecipeError
from ..models.causal_lm import Causal, update_of
from .batched import Piece


class Snapshot(nn.Module):
    """Weights by their names in the student, as buffers."""

    def __init__(self, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.names = list(weights)
        for i, value in enumerate(weights.values()):
            self.register_buffer(str(i), value.detach().clone().to(dtype or value.dtype))

    def weights(self) -> dict[str, Tensor]:
        return {name: cast(Tensor, getattr(self, str(i))) for i, name in enumerate(self.names)}

    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Become these."""
        for name, value in self.weights().items():
            value.copy_(weights[name])


@dataclass(frozen=True)
class Judge(Teacher):
    """A teacher of language models: what it holds, and what it says of a view, token by token."""

    def key(self, term: BaseTerm) -> Hashable:
        return self

    def source(self, state: nn.Module, step: Step, view: str) -> Logits:
        """Its distribution at every completion token of the view, the tokens in one row."""
        model, x = cast(Causal, step.owner), step.batch[view].x
        step.passes += type(step.passes)(teacher=len(x))
        return self.said(state, model, x)

    def said(self, state: nn.Module, model: Causal, x: Tensor) -> Logits:
        """The same for rows (rows, 2, length)."""
        with self.placed(state, model) as (who, weights):
            return who.says(x, weights)

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        """Who speaks for it while it lasts, and the weights to be put in the place of that model's own (None: none)."""
        yield model, cast(Snapshot, state).weights()


@dataclass(frozen=True)
class Live(Judge):
    """The student itself as it is now: it knows more only by what it reads."""

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        yield model, None


@dataclass(frozen=True)
class Base(Judge):
    """The pre-trained weights: under LoRA the adapter is switched off, otherwise a copy is held."""

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        student = cast(Causal, model)
        if student.adapted:
            return nn.Module()
        return Snapshot(student.learning() if student.origin is None else student.origin())

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        with model.without_adapter():
            yield model, None if model.adapted else cast(Snapshot, state).weights()


@dataclass(frozen=True)
class Previous(Judge):
    """The generation before this one; in the first, what training began with."""

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        return Snapshot(cast(Causal, given.previous or model).learning())


@dataclass(frozen=True)
class Refresh(Judge):
    """A copy of the student that is renewed every so many steps."""

    every: int = 100

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        if self.every < 1:
            raise RecipeError(f"Refresh: every counts steps, from 1 on, not {self.every}")
        return Snapshot(cast(Causal, model).learning())

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: BaseTerm) -> None:
        if (steps[0].clock.step + 1) % self.every == 0:
            student = cast(Causal, steps[0].owner)
            with distributed.whole(student):
                cast(Snapshot, state).take(student.learning())


@dataclass(frozen=True)
class Ema(Judge):
    """w' <- (1 - rate) w' + rate w after every step, in float32, from the student as it was passed.

    Under LoRA the update dW = s B A is averaged as one matrix a layer: averages of A and of B have another product.
    In bfloat16 an average of this rate stands still, so its copy is float32 and rounded when it is looked through.
    Source: SDFT (arXiv 2601.19897), rate 0.01 to 0.05.
    """

    rate: float = 0.01

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        if not 0 < self.rate <= 1:
            raise RecipeError(f"Ema: rate lies above 0 and at most at 1, not at {self.rate}")
        return Snapshot(dict(self._now(cast(Causal, model))), torch.float32)

    @staticmethod
    def _now(model: Causal) -> Iterator[tuple[str, Tensor]]:
        """What is averaged, one layer at a time: an adapter's update as one matrix, and what else learns."""
        for name, layer in model.adapters().items():
            yield name, update_of(layer).detach()
        for name, value in model.learning().items():
            if not model.adapted or "lora_" not in name:
                yield name, value.detach()

    def source(self, state: nn.Module, step: Step, view: str) -> Logits:
        """As any judge's; under LoRA, weights and updates are added up once for all pieces of a step."""
        model, batch = cast(Causal, step.owner), step.batch
        if not isinstance(batch, Piece) or not model.adapted or not model.linear:
            return super().source(state, step, view)
        step.passes += type(step.passes)(teacher=step.rows(view))
        return batch.head(view, self, lambda x: cast(Projection, self.said(state, model, x)))

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        held, own = cast(Snapshot, state).weights(), dict(model.named_parameters())
        whole = {n: w.to(own[n].dtype) for n, w in held.items() if n in own}
        with model.shifted({n: w for n, w in held.items() if n not in own}):
            yield model, whole

    @torch.no_grad()
    def update(self, state: nn.Module, steps: Sequence[Step], term: BaseTerm) -> None:
        held, student = cast(Snapshot, state).weights(), cast(Causal, steps[0].owner)
        with distributed.whole(student):
            for name, now in self._now(student):
                held[name].lerp_(now.to(held[name].dtype), self.rate)


def blended(parts: Sequence[tuple[float, Logits]]) -> Logits:
    """The distribution with log q = sum_i w_i log q_i + const: logits are linear in what they are made of."""
    weights, sources = [w for w, _ in parts], [s for _, s in parts]
    if any(isinstance(s, Tensor) for s in sources) or any(
        s.bias is not None for s in sources if isinstance(s, Projection)
    ):
        logits = [s if isinstance(s, Tensor) else nn.functional.linear(*s[:3]) for s in sources]
        return sum((w * z for w, z in zip(weights, logits, strict=True)), torch.zeros_like(logits[0]))
    heads = [cast(Projection, s) for s in sources]
    if all(h.matrix is heads[0].matrix for h in heads):
        return heads[0]._replace(hidden=sum((w * h.hidden for w, h in zip(weights, heads, strict=True)),
                                            torch.zeros_like(heads[0].hidden)))  # fmt: skip
    hidden = torch.cat([w * h.hidden for w, h in zip(weights, heads, strict=True)], -1)
    return Projection(hidden, torch.cat([h.matrix for h in heads], -1))


@dataclass(frozen=True)
class TrustRegion(Judge):
    """log q = (1 - alpha) log q_reference + alpha log q_live + const: as far from the reference as is trusted.

    Source: SDPO (arXiv 2601.20802), section 3.
    """

    alpha: float = 0.01
    reference: Judge = Base()

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        if not 0 <= self.alpha <= 1:
            raise RecipeError(f"TrustRegion: alpha lies between 0 and 1, not at {self.alpha}")
        state: nn.Module = self.reference.start(model, given)
        return state

    def said(self, state: nn.Module, model: Causal, x: Tensor) -> Logits:
        live = Live().said(state, model, x)
        return blended([(1 - self.alpha, self.reference.said(state, model, x)), (self.alpha, live)])

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        raise RecipeError("a TrustRegion is a mixture of two models, and cannot write; let its reference write")
        yield model, None

    def update(self, state: nn.Module, steps: Sequence[Step], term: BaseTerm) -> None:
        self.reference.update(state, steps, term)


class _Other(nn.Module):
    """Another model, out of the way of state dicts: it is loaded again, never saved."""

    def __init__(self, model: Causal) -> None:
        super().__init__()
        self.held = (model.eval().requires_grad_(False),)


@dataclass(frozen=True)
class External(Judge):
    """Another model with the same tokenizer: a folder or a name as --model takes them, or a function that makes it.

    Raises:
        DataError: its tokenizer reads texts differently, so that ids of one mean nothing to the other.
    """

    model: str | Callable[[], Causal]

    def start(self, model: nn.Module, given: Given) -> nn.Module:
        from ..models.causal_lm import Pretrained

        student, make = cast(Causal, model), self.model
        other = (Pretrained(make) if isinstance(make, str) else make)()
        if other.tokenizer.get_vocab() != student.tokenizer.get_vocab():
            raise DataError(
                f"the teacher {self.model} has another tokenizer ({len(other.tokenizer)} tokens, the student "
                f"{len(student.tokenizer)}); give one of the student's family"
            )
        return _Other(other.to(next(student.parameters()).device))

    @contextlib.contextmanager
    def placed(self, state: nn.Module, model: Causal) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        yield cast(_Other, state).held[0], None
