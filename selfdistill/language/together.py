"""Student and teacher write together: each token is drawn from what the two say, each of its own prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .causal import Causal, fits
from .teachers import Judge

if TYPE_CHECKING:
    from .trainer import LanguageTrainer


@dataclass(frozen=True)
class Beside:
    """Who writes beside the student: a teacher with its state, its share, and what it reads for each prompt."""

    judge: Judge
    state: nn.Module
    share: float
    prompts: Sequence[Sequence[int]]

    def of(self, rows: Sequence[int]) -> Beside:
        """The same for some of the prompts."""
        return replace(self, prompts=[self.prompts[row] for row in rows])


def beside(trainer: LanguageTrainer, examples: Sequence[int], share: float) -> Beside:
    """The teacher of a method that has one, reading its context as it is before any attempt."""
    ((name, term),) = trainer.method.distils.items()
    prompts = [trainer.prompt(i, trainer.method.context) for i in examples]
    return Beside(term.teacher, trainer.objective._state(name, term.teacher), share, prompts)


class Mixture:
    """What `generate` draws from, in place of the student's own scores; remembers how likely each drawn token was.

    Equation::

        m(y_t) = a q(y_t | teacher's prompt, y_<t) + (1 - a) p(y_t | prompt, y_<t)

    The teacher keeps keys and values of its own, so that a token costs one token of each. Source: MiniLLM, Gu et al.,
    ICLR 2024, teacher-mixed sampling.
    """

    def __init__(self, model: Causal, by: Beside, pad: int, room: int) -> None:
        device, longest = next(model.parameters()).device, max(map(len, by.prompts))
        with by.judge.placed(by.state, model) as (who, _):
            for prompt in by.prompts:
                fits(prompt, who, room, "what the teacher reads")
        self.model, self.by, self.cache, self.log_m, self.drawn = model, by, None, None, list[Tensor]()
        self.ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in by.prompts], device=device)
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in by.prompts], device=device)

    cache: Any
    log_m: Tensor | None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, outputs) of the next token; ``ids`` end in the one that was drawn before."""
        if self.log_m is not None:
            self.drew(ids[:, -1:])
            self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        with self.by.judge.placed(self.by.state, self.model) as (who, weights):
            logits, self.cache = who.after(self.ids, self.mask, self.cache, weights)
        log_q = torch.full_like(scores, -math.inf, dtype=torch.float32)
        log_q[:, : self.model.vocabulary] = logits[:, : self.model.vocabulary].float().log_softmax(-1)
        log_p = scores.float().log_softmax(-1)
        self.log_m = torch.logaddexp(log_q + math.log(self.by.share), log_p + math.log1p(-self.by.share))
        return self.log_m

    def drew(self, ids: Tensor) -> None:
        """These tokens (rows, 1) were drawn."""
        assert self.log_m is not None
        self.ids = ids
        self.drawn.append(self.log_m.gather(1, ids))

    def log_probs(self, last: Tensor) -> list[list[float]]:
        """log m of all tokens that were drawn, (rows, tokens); ``last`` are the last of them."""
        self.drew(last)
        return torch.cat(self.drawn, 1).tolist()
