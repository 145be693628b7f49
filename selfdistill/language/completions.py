"""A recipe for language models: terms, where completions come from, what the teacher reads, how generations follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from .. import rng
from ..core.objective import Method
from ..core.step import Clock
from ..errors import RecipeError
from .contexts import Context, Nothing, Rollout, paired
from .sampling import Sampling, distinct
from .terms import Distil

if TYPE_CHECKING:
    from .trainer import LanguageTrainer


@dataclass(frozen=True)
class Source:
    """Where the completions of a step come from."""

    once: ClassVar[bool] = False  # are they made once a generation?
    samples: int = 1
    needs: ClassVar[tuple[str, ...]] = ()

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        """``samples`` completions for each prompt, those of a prompt one after another."""
        raise NotImplementedError


@dataclass(frozen=True)
class OnPolicy(Source):
    """The student writes them, at every step."""

    sampling: Sampling = Sampling()

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        address = (trainer.settings.seed, "rollout", clock.generation, clock.step)
        return trainer.roll(ids, self.sampling, address, self.samples)


@dataclass(frozen=True)
class Together(Source):
    """Student and teacher write, at every step: each token is drawn from both, and importance weights correct for it.

    Equation::

        y_t ~ m = a q(. | context, x, y_<t) + (1 - a) p(. | x, y_<t),  w_t = p(y_t) / m(y_t) <= 1 / (1 - a)

    Source: MiniLLM, Gu et al., ICLR 2024; a is 0.2 there.

    Raises:
        RecipeError: the share is not between 0 and 1, or the sampling is not that of the distribution as it is.
    """

    share: float = 0.2
    sampling: Sampling = Sampling()

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise RecipeError(f"Together: the teacher's share lies between 0 and 1, not at {self.share}")
        if replace(self.sampling, max_tokens=1) != Sampling(max_tokens=1):
            raise RecipeError("Together: a mixture is drawn as it is, at temperature 1 without top_p or top_k")

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        address = (trainer.settings.seed, "rollout", clock.generation, clock.step)
        return trainer.roll(ids, self.sampling, address, self.samples, share=self.share)


@dataclass(frozen=True)
class Given(Source):
    """The demonstrations of the data."""

    needs: ClassVar[tuple[str, ...]] = ("demonstration",)

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        return [trainer.given(i) for i in ids]


@dataclass(frozen=True)
class Mixed(Source):
    """With probability ``share`` the student writes the batch, otherwise demonstrations stand. Source: GKD."""

    share: float = 0.5
    sampling: Sampling = Sampling()
    needs: ClassVar[tuple[str, ...]] = ("demonstration",)

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        u = rng.uniform((trainer.settings.seed, "mixed", clock.generation), torch.tensor([clock.step]), 1)
        source: Source = OnPolicy(1, self.sampling) if float(u) <= self.share else Given()
        return source.rollouts(trainer, ids, clock)


@dataclass(frozen=True)
class Once(Source):
    """The model that a generation begins with writes all of them before its first step; each is kept once.

    Args:
        context: what it reads more than the prompt while it writes.
        threshold: keep completions of at least this reward; a schedule of the generation number, or None for all.
        rescue: write anew, with this context, for prompts of which nothing was kept.
        instead: the demonstration stands in for what was not kept.
    """

    once: ClassVar[bool] = True
    sampling: Sampling = Sampling()
    context: Context = Nothing()
    threshold: float | tuple[float, ...] | None = None
    rescue: Context | None = None
    instead: bool = False

    def least(self, generation: int) -> float | None:
        """The threshold in a generation; the last of several stays."""
        if isinstance(self.threshold, tuple):
            return self.threshold[min(generation, len(self.threshold) - 1)]
        return self.threshold

    def rollouts(self, trainer: LanguageTrainer, ids: Sequence[int], clock: Clock) -> list[Rollout]:
        least, part = self.least(clock.generation), ids[0] if ids else 0
        address = (trainer.settings.seed, "written", clock.generation, part)
        drawn = trainer.roll(ids, self.sampling, address, self.samples, self.context)
        kept = [r for r in drawn if worth(r, trainer.stop) and (least is None or (r.reward or 0.0) >= least)]
        missing = [i for i in ids if i not in {r.example for r in kept}]
        if self.rescue is not None and missing:
            again = trainer.roll(missing, self.sampling, (*address, 1), 1, self.rescue)
            kept += [r for r in again if worth(r, trainer.stop) and (r.reward or 0.0) >= (least or 0.0)]
        if self.instead:
            kept += [trainer.given(i) for i in ids if i not in {r.example for r in kept}]
        return sorted(distinct(kept), key=lambda r: ids.index(r.example))


def worth(rollout: Rollout, stop: Sequence[int]) -> bool:
    """Is there a completion to learn from? An empty one is only the token that ends it."""
    return bool(rollout.text.strip()) and any(i not in stop for i in rollout.ids)


@dataclass(frozen=True)
class Language(Method):
    """A `Method` whose terms are those of `language.terms`.

    Args:
        source: where completions come from.
        context: what the teacher reads more than the student; ``against`` what a contrastive one turns away from.
        restart: every generation begins with the pre-trained weights, and not with the last accepted ones.
        advice: settings that the paper trains with, used where nothing else is asked for.
    """

    terms: Mapping[str, Any]
    source: Source = OnPolicy()
    context: Context = Nothing()
    against: Context | None = None
    restart: bool = False
    advice: tuple[tuple[str, Any], ...] = ()
    forward: str = "separate"

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.source, self.context, self.against, self.restart, self.advice))

    def seen(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        views = (view for term in self.terms.values() for view in getattr(term, "views", (term.view,)))
        return tuple(dict.fromkeys(views)), ()

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that each prompt must have."""
        parts = (self.source, self.context, self.against, getattr(self.source, "context", None),
                 getattr(self.source, "rescue", None))  # fmt: skip
        wanted = [need for part in parts for need in getattr(part, "needs", ())]
        source = self.source
        if "advantage" in self.terms or (isinstance(source, Once) and source.threshold is not None):
            wanted.append("checker")
        if "preferred" in self.terms:
            wanted.append("demonstration")
        return tuple(dict.fromkeys(wanted))

    @property
    def distils(self) -> dict[str, Distil]:
        """The terms that have a teacher judge completions after the context."""
        return {name: term for name, term in self.terms.items() if isinstance(term, Distil)}

    @property
    def sampling(self) -> Sampling | None:
        """How completions are drawn; None where none are."""
        return getattr(self.source, "sampling", None)

    def drawing(self, change: Callable[[Sampling], Sampling]) -> Language:
        """The same with another sampling."""
        if self.sampling is None:
            return self
        return replace(self, source=replace(self.source, sampling=change(self.sampling)))  # type: ignore[call-arg]


def views(method: Language, trainer: LanguageTrainer, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What the terms read of these rollouts: view -> (pairs of prompt and completion, rewards, ids).

    ``unread`` counts teacher's prompts that, made of rollouts, do not fit into the model's context: the teacher has
    nothing to say there. Prompts that do not depend on rollouts were all measured before step 0.
    """
    groups: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        groups.setdefault(rollout.example, []).append(row)
    found: dict[str, Any] = {
        "x": [(r.prompt, r.ids) for r in rollouts],
        "rewards": torch.tensor([r.reward or 0.0 for r in rollouts]),
        "examples": torch.tensor([r.example for r in rollouts]),
        "unread": 0,
    }
    for name, context in (("context", method.context), ("against", method.against)):
        if context is None or not method.distils:
            continue
        made: dict[int, tuple[list[int], tuple[int, ...]]] = {}
        for example, members in groups.items():
            siblings = [rollouts[m] for m in members]
            for own, row in enumerate(members):
                prompt = paired(trainer.tokenizer, context, trainer.data.rows[example], siblings, own)
                if prompt is None:
                    continue
                if trainer.model.holds(len(prompt) + len(rollouts[row].ids)):
                    made[row] = (prompt, rollouts[row].ids)
                else:
                    found["unread"] += 1
        rows = sorted(made)  # the terms pair tokens with the student's in the order of its rows
        found[name] = ([made[row] for row in rows], torch.tensor(rows, dtype=torch.int64))
    if "preferred" in method.terms:
        found["other"] = found["x"]
        found["x"] = [(r.prompt, trainer.given(r.example).ids) for r in rollouts]
    return found


def check(method: Language) -> None:
    """Do the parts fit each other?

    Raises:
        RecipeError: an advantage needs several samples of a prompt, a contrast a context to turn away from; who writes
            together with the student is not clear.
    """
    if isinstance(method.source, Together) and len(method.distils) != 1:
        raise RecipeError(f"student and teacher write together, and the method has {len(method.distils)} terms with a "
                          "teacher; give it one")  # fmt: skip
    if "advantage" in method.terms and method.source.samples < 2:
        raise RecipeError("an advantage compares the samples of a prompt; give at least 2 samples")
    for name, term in method.distils.items():
        if term.contrast and method.against is None:
            raise RecipeError(f"term {name!r} turns away from the context 'against', and the method has none")
