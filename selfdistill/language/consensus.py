"""Agreement among several answers: what stands for a label where nobody has one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..core.step import TrainingClock
from .completions import CompletionSource, Writer
from .contexts import LEAK, Context, Rollout, document, without_thoughts
from .sampling import Sampling

#: Where a text names its answer; the last place counts.
_NAMED = re.compile(r"\\boxed\{([^{}]*)\}|\banswer\s*(?:is)?\s*:?\s*([^\n]+)", re.I)


def final_answer(text: str) -> str:
    """What a completion gives as its answer: the last box, the last "Answer:", or else the whole text.

    Thoughts, case, spaces and a full stop at the end make no difference.

    >>> final_answer("So 6 x 7 = 42. Answer: 42."), final_answer(r"Thus \\boxed{42}"), final_answer(" Forty  two ")
    ('42', '42', 'forty two')
    """
    said = without_thoughts(text)
    named = [found[1] if found[1] is not None else found[2] for found in _NAMED.finditer(said)]
    return " ".join((named[-1] if named else said).split()).casefold().rstrip(".")


def agreed(texts: Sequence[str], agree: int) -> str | None:
    """The answer that at least so many texts give; None where there is none, or it is empty.

    >>> agreed(["Answer: 4", "4", "5"], 2), agreed(["4", "5"], 2)
    ('4', None)
    """
    counts = Counter(answer for answer in map(final_answer, texts) if answer)
    best = counts.most_common(1)
    return best[0][0] if best and best[0][1] >= agree else None


@dataclass(frozen=True)
class Consensus(CompletionSource):
    """The student with a context, its tutor, writes ``samples`` answers to each prompt at every step; where at least
    ``agree`` give the same answer, those are learnt, and the student without it writes ``own`` answers too.

    A prompt without agreement has one completion that nothing is learnt from. Answers that speak of the context have no
    vote. Source: GATES, arXiv 2602.20574, 2026.
    """

    samples: int = 8
    agree: int = 4
    own: int = 8
    context: Context = document()
    sampling: Sampling = Sampling()

    @property
    def contexts(self) -> tuple[Context, ...]:
        return (self.context,)

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        address = (writer.seed, "rollout", clock.generation, clock.step)
        told = writer.roll(ids, self.sampling, (*address, 0), self.samples, self.context)
        answers = {i: agreed(self._votes(told, i), self.agree) for i in ids}
        learnt = [i for i in ids if answers[i] is not None]
        own = writer.roll(learnt, self.sampling, (*address, 1), self.own) if learnt and self.own else []
        kept = list[Rollout]()
        for i in ids:
            mine = [replace(r, tutored=True) for r in told if r.example == i]
            if answers[i] is None:
                kept.append(replace(mine[0], trusted=False))
            kept += [r for r in mine if final_answer(r.text) == answers[i] and not LEAK.search(r.text)]
            kept += [r for r in own if r.example == i]
        return kept

    @staticmethod
    def _votes(told: Sequence[Rollout], example: int) -> list[str]:
        return [r.text for r in told if r.example == example and not LEAK.search(r.text)]
