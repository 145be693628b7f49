"""What is told while a language model answers, which on a slow machine takes longer than training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..progress import LINE_SECONDS
from .causal import Causal
from .rollouts import Engine, Sampling, by_transformers


class Waiting:
    """An engine that counts what another one writes, and tells of it every `LINE_SECONDS`: so many of ``total``
    prompts, and the seconds left if all answers that are to come are as long as they may be.

    >>> list(Waiting(print, "nobody answers", 2).each([3, 4]))
    [3, 4]
    """

    def __init__(self, hear: Callable[[str], None] | None, what: str, total: int,
                 engine: Engine = by_transformers) -> None:  # fmt: skip
        self.hear, self.what, self.total, self.engine = hear, what, total, engine
        self.done = 0
        self.begun = self.told = time.monotonic()

    def __call__(
        self, model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[tuple[list[int], tuple[float, ...] | None]]:
        tokens = 0

        def counted(*_: Any) -> None:
            nonlocal tokens
            tokens += 1
            self._tell(len(prompts) * min(1.0, tokens / sampling.max_tokens))

        hook = model.plain.register_forward_hook(counted)  # a forward pass a token; other engines need none of it
        try:
            found = self.engine(model, prompts, sampling, seed)
        finally:
            hook.remove()
        self.done += len(prompts)
        self._tell()
        return found

    def each(self, ids: Sequence[int]) -> Iterator[int]:
        """The same rows, counted as they have been read."""
        for i in ids:
            yield i
            self.done += 1
            self._tell()

    def _tell(self, begun: float = 0.0) -> None:
        """``begun``: what the answers that are being written come to, in whole ones."""
        now, done = time.monotonic(), self.done + begun
        if self.hear is None or now - self.told < LINE_SECONDS or self.done >= self.total:
            return
        self.told = now
        left = (now - self.begun) / done * (self.total - done)
        self.hear(f"{self.what}: {self.done} of {self.total} prompts, at most about {left:.0f} s left")
