"""A recipe for language models: terms, where completions come from, what the teacher reads, how generations follow.

A `Writer` has a model write the completions that a recipe asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from .. import rng
from ..core import distributed
from ..core.memory import FrozenCopy
from ..core.objective import Method, Objective
from ..core.parts import BaseTerm, Teacher
from ..core.step import Passes, TrainingClock
from ..data.prompts import Prompts, need
from ..errors import RecipeError
from ..models.causal_lm import Causal, ModelView, OtherTokenizer, check_length
from ..teachers import External, Frozen
from ..terms.spans import SPANS, SpanTerm
from .contexts import Context, Demonstration, NoContext, Rollout, completed, paired, rendered, turn_end
from .sampling import (
    Engine,
    MixingTeacher,
    RewardCheckers,
    Sampling,
    WritingProgress,
    by_transformers,
    distinct,
    ends,
    roll,
)

CONTEXT, AGAINST = "context", "against"  # the views of completions after a context, and after what is turned away from


def named_teacher(name: str | None) -> tuple[Teacher, Context]:
    """A model of this name, or the pre-trained weights with a demonstration before them; and what they read."""
    return (Frozen(CONTEXT), Demonstration()) if name is None else (External(CONTEXT, name), NoContext())


def read_views(term: BaseTerm) -> tuple[str, ...]:
    """The views that the teacher of a term looks at."""
    return () if term.teacher is None else term.teacher.reads(term)


@dataclass(frozen=True)
class CompletionSource:
    """Where the completions of a step come from."""

    once: ClassVar[bool] = False  # are they made once a generation?
    samples: int = 1
    needs: ClassVar[tuple[str, ...]] = ()

    @property
    def sampling(self) -> Sampling | None:
        """How completions are drawn; None where none are."""
        return None

    @property
    def contexts(self) -> tuple[Context, ...]:
        """What is read more than the prompt while they are written."""
        return ()

    @property
    def checked(self) -> bool:
        """Does it keep completions by their reward?"""
        return False

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        """``samples`` completions for each prompt, those of a prompt one after another."""
        raise NotImplementedError


@dataclass(frozen=True)
class OnPolicy(CompletionSource):
    """The student writes them, at every step."""

    sampling: Sampling = Sampling()

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        address = (writer.seed, "rollout", clock.generation, clock.step)
        return writer.roll(ids, self.sampling, address, self.samples)


@dataclass(frozen=True)
class TeacherMixed(CompletionSource):
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
            raise RecipeError(f"TeacherMixed: the teacher's share lies between 0 and 1, not at {self.share}")
        if replace(self.sampling, max_tokens=1) != Sampling(max_tokens=1):
            raise RecipeError("TeacherMixed: a mixture is drawn as it is, at temperature 1 without top_p or top_k")

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        address = (writer.seed, "rollout", clock.generation, clock.step)
        return writer.roll(ids, self.sampling, address, self.samples, share=self.share)


@dataclass(frozen=True)
class Demonstrations(CompletionSource):
    """The demonstrations of the data."""

    needs: ClassVar[tuple[str, ...]] = ("demonstration",)

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        return [writer.demonstration(i) for i in ids]


@dataclass(frozen=True)
class Attempts(CompletionSource):
    """The answers of a log, which the field ``wrong`` has: what a user replied to."""

    needs: ClassVar[tuple[str, ...]] = ("wrong",)

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        return [writer.given(i, writer.data.rows[i].wrong or "", "an attempt") for i in ids]


@dataclass(frozen=True)
class MixedPolicy(CompletionSource):
    """With probability ``share`` the student writes the batch, otherwise demonstrations stand. Source: GKD."""

    share: float = 0.5
    sampling: Sampling = Sampling()
    needs: ClassVar[tuple[str, ...]] = ("demonstration",)

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        u = rng.uniform((writer.seed, "mixed", clock.generation), torch.tensor([clock.step]), 1)
        source: CompletionSource = OnPolicy(1, self.sampling) if float(u) <= self.share else Demonstrations()
        return source.rollouts(writer, ids, clock)


@dataclass(frozen=True)
class OncePerGeneration(CompletionSource):
    """The model that a generation begins with writes all of them before its first step; each is kept once.

    Args:
        context: what it reads more than the prompt while it writes.
        threshold: keep completions of at least this reward; a schedule of the generation number, or None for all.
        rescue: write anew, with this context, for prompts of which nothing was kept.
        instead: the demonstration stands in for what was not kept.
    """

    once: ClassVar[bool] = True
    sampling: Sampling = Sampling()
    context: Context = NoContext()
    threshold: float | tuple[float, ...] | None = None
    rescue: Context | None = None
    instead: bool = False

    @property
    def contexts(self) -> tuple[Context, ...]:
        return (self.context,) if self.rescue is None else (self.context, self.rescue)

    @property
    def checked(self) -> bool:
        return self.threshold is not None

    def least(self, generation: int) -> float | None:
        """The threshold in a generation; the last of several stays."""
        if isinstance(self.threshold, tuple):
            return self.threshold[min(generation, len(self.threshold) - 1)]
        return self.threshold

    def rollouts(self, writer: Writer, ids: Sequence[int], clock: TrainingClock) -> list[Rollout]:
        least, part = self.least(clock.generation), ids[0] if ids else 0
        address = (writer.seed, "written", clock.generation, part)
        drawn = writer.roll(ids, self.sampling, address, self.samples, self.context)
        kept = [r for r in drawn if worth(r, writer.stop) and (least is None or (r.reward or 0.0) >= least)]
        missing = [i for i in ids if i not in {r.example for r in kept}]
        if self.rescue is not None and missing:
            again = writer.roll(missing, self.sampling, (*address, 1), 1, self.rescue)
            kept += [r for r in again if worth(r, writer.stop) and (r.reward or 0.0) >= (least or 0.0)]
        if self.instead:
            kept += [writer.demonstration(i) for i in ids if i not in {r.example for r in kept}]
        return sorted(distinct(kept), key=lambda r: ids.index(r.example))


def worth(rollout: Rollout, stop: Sequence[int]) -> bool:
    """Is there a completion to learn from? An empty one is only the token that ends it."""
    return bool(rollout.text.strip()) and any(i not in stop for i in rollout.ids)


@dataclass(frozen=True)
class Language(Method):
    """A `Method` on completions, whose teachers read the view ``context``: the same completion after another prompt.

    Args:
        source: where completions come from.
        context: what the teacher reads more than the student; ``against`` what a contrastive one turns away from.
        restart: every generation begins with the pre-trained weights, and not with the last accepted ones.
        advice: settings that the paper trains with, used where nothing else is asked for.
    """

    terms: Mapping[str, BaseTerm]
    source: CompletionSource = OnPolicy()
    context: Context = NoContext()
    against: Context | None = None
    restart: bool = False
    advice: tuple[tuple[str, Any], ...] = ()
    forward: str = "separate"

    def __hash__(self) -> int:
        return hash((super().__hash__(), self.source, self.context, self.against, self.restart, self.advice))

    @property
    def needs(self) -> tuple[str, ...]:
        """The fields that each prompt must have."""
        parts = (self.source, self.context, self.against, *self.source.contexts, *self.terms.values())
        wanted = [need for part in parts for need in getattr(part, "needs", ())]
        if self.source.checked:
            wanted.append("checker")
        return tuple(dict.fromkeys(wanted))

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that it reads where they are there, beside the prompt."""
        contexts = (self.context, self.against, *self.source.contexts)
        return tuple(dict.fromkeys([*self.needs, *(name for part in contexts for name in getattr(part, "reads", ()))]))

    @property
    def imitates(self) -> bool:
        """Whether demonstrations themselves are learnt, for which no other context can stand in."""
        parts = (self.source, *self.terms.values())
        return any("demonstration" in getattr(part, "needs", ()) for part in parts)

    def student(self, build: Callable[[], Causal]) -> Callable[[], Causal]:
        """The factory of the models that it trains, from one of single models."""
        made: Any = build if self.wrap_model is None else self.wrap_model(build)
        return made  # type: ignore[no-any-return]

    def check_fields(self, data: Prompts, recipe: str) -> None:
        """Refuse prompts that lack a field.

        Args:
            data: The prompts.
            recipe: The method's name, for the message.

        Raises:
            DataError: Some rows that teach lack a field that the method needs.
        """
        for field in self.needs:
            stands_in = "privileged_context" if field == "demonstration" and not self.imitates else None
            need(data, field, recipe, alternative=stands_in)

    @property
    def distils(self) -> dict[str, BaseTerm]:
        """The terms whose teacher judges completions after the context."""
        return {name: term for name, term in self.terms.items() if CONTEXT in read_views(term)}

    @property
    def sampling(self) -> Sampling | None:
        """How completions are drawn; None where none are."""
        return self.source.sampling

    def drawing(self, change: Callable[[Sampling], Sampling]) -> Language:
        """The same with another sampling."""
        if self.sampling is None:
            return self
        return replace(self, source=replace(self.source, sampling=change(self.sampling)))  # type: ignore[call-arg]


class Writer:
    """Has a model write completions for prompts, and checks them.

    Args:
        method: what its teacher reads, and who writes beside the model.
        data: the prompts.
        seed: of the run.
        max_tokens: the longest greedy answer.
        engine: what writes completions.
        hear: called now and then with how far the model is.

    Attributes:
        model: who writes; set it before anything is written.
        objective: holds the states of the method's teachers.
        autocast: the context of its passes.
        drawn: completions written so far by `roll`, ``written`` their tokens, and ``passes``, what they took.
        alike: whether all processes write the same, rather than each its own.
    """

    model: Causal
    objective: Objective
    autocast: Callable[[], Any] = nullcontext

    def __init__(
        self,
        method: Language,
        data: Prompts,
        *,
        seed: int = 0,
        max_tokens: int = 256,
        engine: Engine = by_transformers,
        hear: Callable[[str], None] | None = None,
    ) -> None:
        self.method, self.data, self.seed, self.engine, self.hear = method, data, seed, engine, hear
        self.greedy, self.referee = Sampling(0.0, max_tokens=max_tokens), RewardCheckers()
        self.drawn, self.written, self.passes, self.alike = 0, 0, Passes(), False

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.model.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def stop(self) -> list[int]:
        """The tokens that end a completion."""
        return ends(self.model)

    def waiting(self, what: str, prompts: int) -> WritingProgress:
        """The engine for so many prompts, telling how far it is."""
        return WritingProgress(self.hear if distributed.rank() == 0 else None, what, prompts, self.engine)

    def prompt(self, example: int, context: Context | None = None, attempt: Rollout | None = None) -> list[int]:
        """Token ids of an example's prompt, or of a context's, with an attempt to read or before any; of the plain
        prompt where that has nothing to add."""
        row = self.data.rows[example]
        plain = rendered(self.tokenizer, row.messages)
        if context is None or isinstance(context, NoContext):
            return plain
        before, template = [attempt or Rollout(example, tuple(plain), ())], self.model.teacher_template
        return paired(self.tokenizer, context, row, before, 0, template) or plain

    def demonstration(self, example: int) -> Rollout:
        """The demonstration as a completion, ended as the model ends its own.

        Raises:
            DataError: it does not fit into the model's context.
        """
        return self.given(example, self.data.rows[example].demonstration or "", "a demonstration", 1.0)

    def given(self, example: int, text: str, what: str, reward: float | None = None) -> Rollout:
        """A text of the data as a completion of an example, ended as the model ends its own.

        Args:
            example: id of the row.
            text: the completion.
            what: its name in messages.
            reward: of the completion, where it is known.

        Raises:
            DataError: it does not fit into the model's context.
        """
        rollout = Rollout(example, tuple(self.prompt(example)), tuple(completed(self.tokenizer, text)), text, reward)
        place = f"{what} (line {self.data.rows[example].line} of {self.data.name})"
        check_length(rollout.prompt, self.model, len(rollout.ids), place)
        return rollout

    def roll(
        self,
        examples: Sequence[int],
        sampling: Sampling,
        address: rng.Address,
        samples: int = 1,
        context: Context | None = None,
        share: float = 0.0,
        attempts: Mapping[int, Rollout] | None = None,
    ) -> list[Rollout]:
        """Checked completions, ``samples`` of each example.

        Args:
            examples: ids of rows of the data.
            sampling: how tokens are drawn.
            address: of the random numbers; what is drawn depends on nothing else.
            samples: completions of each example.
            context: what is read while they are written; they are learnt after the plain prompt.
            share: of the teacher in each token.
            attempts: by example, what the context may read as an attempt.
        """
        if distributed.size() > 1 and not self.alike:
            address = (*address, distributed.rank())
        tried = attempts or {}
        prompts = [(i, self.prompt(i, context, tried.get(i))) for i in examples for _ in range(samples)]
        by = self._beside([i for i, _ in prompts], share) if share else None
        self.passes += Passes(teacher=len(prompts) * (1 + bool(by)))
        self.drawn += len(prompts)
        engine = self.waiting("completions are written", len(prompts))
        with self.autocast():
            rollouts = roll(self.model, prompts, sampling, address, engine, by)
        self.written += sum(len(r.ids) for r in rollouts)
        if context is not None and not isinstance(context, NoContext):
            # drawn from another distribution on purpose: nothing of it is to be corrected by importance weights
            rollouts = [replace(r, prompt=tuple(self.prompt(r.example)), log_probs=None) for r in rollouts]
        return [self.referee(r, self.data.rows[r.example]) for r in rollouts]

    def _beside(self, examples: Sequence[int], share: float) -> MixingTeacher:
        """The teacher of a method that has one, reading its context as it is before any attempt.

        Raises:
            RecipeError: it is no model that could write.
        """
        name, term = next(iter(self.method.distils.items()))
        assert term.teacher is not None
        state = self.objective.state_of(name, term.teacher)
        if not isinstance(state, FrozenCopy) or not isinstance(state.module, ModelView):
            raise RecipeError(
                f"a {type(term.teacher).__name__} cannot write; let a teacher with weights of its own do it"
            )
        return MixingTeacher(state.module, share, [self.prompt(i, self.method.context) for i in examples])


def views(writer: Writer, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What the terms read of these rollouts: view -> (pairs of prompt and completion, rewards, ids).

    ``unread`` counts teacher's prompts that, made of rollouts, do not fit into the model's context: the teacher has
    nothing to say there. Prompts that do not depend on rollouts were all measured before step 0.
    """
    method = writer.method
    groups: dict[int, list[int]] = {}
    for row, rollout in enumerate(rollouts):
        groups.setdefault(rollout.example, []).append(row)
    found: dict[str, Any] = {
        "x": [(r.prompt, r.ids) for r in rollouts],
        "rewards": torch.tensor([r.reward or 0.0 for r in rollouts]),
        "examples": torch.tensor([r.example for r in rollouts]),
        "unread": 0,
    }
    read = {view for term in method.terms.values() for view in read_views(term)}
    for name, context in ((CONTEXT, method.context), (AGAINST, method.against)):
        if context is None or name not in read:
            continue
        made: dict[int, tuple[list[int], tuple[int, ...]]] = {}
        for example, members in groups.items():
            siblings = [rollouts[m] for m in members]
            for own, row in enumerate(members):
                if rollouts[row].tutored or not rollouts[row].trusted:
                    continue
                row_of_data, template = writer.data.rows[example], writer.model.teacher_template
                prompt = paired(writer.tokenizer, context, row_of_data, siblings, own, template)
                if prompt is None:
                    continue
                if writer.model.fits(len(prompt) + len(rollouts[row].ids)):
                    made[row] = (prompt, rollouts[row].ids)
                else:
                    found["unread"] += 1
        rows = sorted(made)  # the terms pair tokens with the student's in the order of its rows
        found[name] = ([made[row] for row in rows], torch.tensor(rows, dtype=torch.int64))
    if SPANS in read:
        _read_by_other_tokens(writer, rollouts, found)
    if "other" in method.student_views()[0]:
        found["other"] = found["x"]
        found["x"] = [(r.prompt, writer.demonstration(r.example).ids) for r in rollouts]
    return found


def _read_by_other_tokens(writer: Writer, rollouts: Sequence[Rollout], found: dict[str, Any]) -> None:
    """Add the completions in the tokens of a teacher with another tokenizer, and the spans of both sides."""
    name, term = next((n, t) for n, t in writer.method.terms.items() if isinstance(t, SpanTerm))
    other = writer.objective.state_of(name, term.teacher).module
    assert isinstance(other, OtherTokenizer)
    teacher, stop = other.student[0], writer.stop
    end, prompts = turn_end(teacher.tokenizer), dict[int, list[int]]()
    found[SPANS], mine, theirs = ([], []), [[-1] * len(r.ids) for r in rollouts], list[list[int]]()
    for row, rollout in enumerate(rollouts):
        i = rollout.example
        if i not in prompts:
            prompts[i] = rendered(teacher.tokenizer, writer.data.rows[i].messages)
        reading = other.pairing.read(rollout.ids, stop, end, term.positions)
        if reading is None or not teacher.fits(len(prompts[i]) + len(reading.ids)):
            found["unread"] += 1
            continue
        mine[row] = reading.student
        theirs.append(reading.teacher)
        found[SPANS][0].append((prompts[i], reading.ids))
        found[SPANS][1].append(row)
    found["student_spans"], found["teacher_spans"] = _padded(mine), _padded(theirs)


def _padded(spans: Sequence[Sequence[int]]) -> torch.Tensor:
    """(rows, T), -1 behind the end of each."""
    rows = [torch.tensor(row, dtype=torch.int64) for row in spans]
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1) if rows else torch.zeros(0, 0)


def check(method: Language) -> None:
    """Do the parts fit each other?

    Raises:
        RecipeError: an advantage needs several samples of a prompt, a contrast a context to turn away from; who writes
            together with the student is not clear.
    """
    teachers = {term.teacher for term in method.distils.values()}
    if isinstance(method.source, TeacherMixed) and len(teachers) != 1:
        raise RecipeError(
            f"student and teacher write together, and the method has {len(teachers)} teachers that read a context; "
            "give it one"
        )
    for name, term in method.terms.items():
        if method.source.samples < term.group:
            raise RecipeError(f"term {name!r} compares the samples of a prompt; give at least {term.group} samples")
        if isinstance(term, SpanTerm) and isinstance(term.teacher, External) and term.teacher.source is None:
            raise RecipeError(f"term {name!r} has no teacher; name one, as in gold('FOLDER') or uld('FOLDER')")
        if AGAINST in read_views(term) and method.against is None:
            raise RecipeError(f"term {name!r} turns away from the context 'against', and the method has none")
