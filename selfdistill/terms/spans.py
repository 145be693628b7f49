"""A term whose teacher has another tokenizer: both sides are compared at the spans of text where their tokens agree.

The view ``spans`` has the completions in the teacher's tokens. Its ``extra`` and that of the student's view hold the
span of each token, (rows, T), -1 where a token is in none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..core.logits import Logits, picked, tensors
from ..core.parts import BaseTerm, BindArgs, Schedule, StateOf, Tally, Teacher, TermResult
from ..core.step import Batch, Forward
from ..losses.chunked.divergences import log_probabilities
from ..losses.cross_vocabulary import LEAST, CrossDistance, SharedDivergence
from ..models.causal_lm import Causal, OtherTokenizer
from ..teachers.weights import External

SPANS = "spans"


CHUNK = 2**24  # probabilities that are held at once


@dataclass(frozen=True)
class OtherTokens(External):
    """Another model whose tokens may be others than the student's; it reads the same texts in its own chat template.

    Args:
        source: A folder or name, as ``--model`` takes it.
    """

    view: str | None = SPANS

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        if isinstance(model, Causal):
            return model.external(self.source, args.external, same_tokens=False)
        return super().module(model, args)


def last_of_spans(spans: Tensor) -> Tensor:
    """Which tokens (rows, T) are the last of their span.

    >>> last_of_spans(torch.tensor([[0, 0, 1, -1]])).tolist()
    [[False, True, True, False]]
    """
    following = torch.cat([spans[:, 1:], spans.new_full((len(spans), 1), -1)], 1)
    return (spans >= 0) & (spans != following)


@dataclass(frozen=True)
class SpanTerm(BaseTerm):
    """The distance of student and teacher at each span of a text, on the mean over spans and then over completions.

    Equation::

        P_g(v) = prod_{i < a} p(s_i | x, s_<i) p(v | x, s_<a),  Q_g(v) = prod_{j < b} q(t_j | x, t_<j) q(v | x, t_<b)
        L = mean_y mean_g D(Q_g, P_g)

    for the tokens s_1 .. s_a and t_1 .. t_b of a span g: by the chain rule these are the probabilities of the span with
    any other last token. Source: GOLD and TRL's merging by the chain rule (``"bayesian"``).

    Args:
        teacher: Who is asked.
        distance: Of probabilities over two vocabularies.
        positions: Pair tokens by their positions up to the end of the shorter side, and not by what they spell (ULD).
    """

    teacher: Teacher = OtherTokens()
    distance: CrossDistance = SharedDivergence()
    positions: bool = False
    view: str = "x"
    head: str = "logits"
    weight: float | Schedule = 1.0
    needs: ClassVar[tuple[str, ...]] = ()

    def count_of(self, batch: Batch) -> Tensor:
        rows = len(batch[SPANS].x) if SPANS in batch else 0
        return torch.tensor(float(rows), device=batch[self.view].x.device)

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        student, count = forward.student(self.view, self.head), self.count_of(forward.batch)
        if not count:
            nothing = tensors(student)[0].sum() * 0.0
            return TermResult(Tally(nothing, count), count, count)
        other = state_of(self.teacher).module
        assert isinstance(other, OtherTokenizer)
        teacher: Any = forward.teacher_output(other, SPANS)
        mine = _spans_of(forward, self.view, student)
        with torch.no_grad():
            theirs = _spans_of(forward, SPANS, teacher)
        values = _by_chunks(self.distance, mine, theirs, other)
        rows = last_of_spans(forward.batch[SPANS].extra["span"])
        share = (rows / rows.sum(1, keepdim=True))[rows]
        number = rows.sum().float()
        return TermResult(Tally((share * values).sum(), count), number, number)


def _spans_of(forward: Forward, view: str, source: Any) -> tuple[Logits, Tensor]:
    """The logits at the last token of each span, and the log-probability of the tokens before it, (spans,)."""
    spans = forward.batch[view].extra["span"]
    last = last_of_spans(spans)
    earlier = (spans >= 0) & ~last
    before: Tensor = tensors(source)[0].new_zeros(int(last.sum()), dtype=torch.float32)
    if bool(earlier.any()):
        flat = last.flatten()
        number = (flat.cumsum(0) - flat.long()).view(last.shape)  # of the span among all
        ids = forward.batch[view].y
        assert ids is not None
        log_p = log_probabilities(source, ids.clamp(min=0), mask=earlier)[earlier]
        before = before.index_add(0, number[earlier], log_p.float().clamp(min=float(torch.tensor(LEAST).log())))
    return picked(source, last), before


def _probabilities(source: Logits, before: Tensor) -> Tensor:
    """(spans, vocabulary): the probabilities of a span with each token as its last."""
    if isinstance(source, Tensor):
        logits = source.float()
    else:
        outputs = source.vocabulary or len(source.matrix)
        logits = source.hidden.float() @ source.matrix[:outputs].float().t()
        logits = logits if source.bias is None else logits + source.bias[:outputs].float()
    return logits.softmax(-1) * before.exp()[:, None]


def _by_chunks(
    distance: CrossDistance, mine: tuple[Logits, Tensor], theirs: tuple[Logits, Tensor], other: OtherTokenizer
) -> Tensor:
    """The distances of all spans, a few at a time; the backward pass computes their probabilities again."""
    spans, width = len(mine[1]), max(source.shape[-1] for source, _ in (mine, theirs))
    few, found = max(1, CHUNK // width), list[Tensor]()

    def part(source: Logits, before: Tensor, q: Tensor) -> Tensor:
        return distance(_probabilities(source, before), q, other.shared)

    for start in range(0, spans, few):
        rows = torch.arange(start, min(start + few, spans), device=mine[1].device)
        with torch.no_grad():
            q = _probabilities(picked(theirs[0], rows), theirs[1][rows])
        given = picked(mine[0], rows), mine[1][rows], q
        with torch.autocast(rows.device.type, enabled=False):
            found.append(checkpoint(part, *given, use_reentrant=False) if torch.is_grad_enabled() else part(*given))
    return torch.cat(found)
