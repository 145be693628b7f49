"""Teachers with weights of their own: averages and frozen copies of the student, earlier generations, other models."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import TypeVar

from ..core import distributed
from ..core.logits import blended
from ..core.memory import FrozenCopy, LargeModel, WeightView, copy_model
from ..core.outputs import space_of
from ..core.parts import BaseTerm, BindArgs, GenerationData, Schedule, Teacher, aligned_target, value_at
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..errors import RecipeError, SpaceError
from ..models.networks import Scaled

H = TypeVar("H", bound=FrozenCopy, default=FrozenCopy)


@dataclass(frozen=True)
class Ema(Teacher[H]):
    """Exponential moving average of the student's weights, in float32 (Mean Teacher, Tarvainen and Valpola 2017).

    w' <- d w' + (1 - d) w after each optimizer step, with d = min(1 - 1/(step + 1), decay) so that early weights are
    forgotten. Floating buffers are averaged in the same way, integer ones copied. ``train`` runs the teacher in train
    mode (its own dropout and batch statistics), otherwise it is in eval mode.
    """

    decay: float | Schedule = 0.999
    view: str | None = None
    train: bool = False
    warm_up: bool = True

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers

    def averaging_rate(self, clock: TrainingClock) -> float | None:
        return 1.0 - self._decay_after(clock) if type(self).update is Ema.update else None

    def _decay_after(self, clock: TrainingClock) -> float:
        """The decay of the update that follows a step."""
        decay = value_at(self.decay, clock)
        return min(1.0 - 1.0 / (clock.step + 2), decay) if self.warm_up else decay

    def start(self, model: nn.Module, args: BindArgs) -> H:
        module = model.average() if isinstance(model, LargeModel) else copy_model(model)
        state: Any = FrozenCopy(module, self.train)  # an average with more to remember overrides this
        return state  # type: ignore[no-any-return]

    def key(self, term: BaseTerm) -> Hashable:
        return Ema, self.decay, self.train, self.warm_up

    def target(self, state: H, forward: Forward, term: BaseTerm) -> Target:
        view, head = self.view or term.view, term.head
        return aligned_target(
            forward, term, view, lambda: forward.teacher_output(state.module, view, head), space_of(head)
        )

    @torch.no_grad()
    def update(self, state: H, forwards: Sequence[Forward], term: BaseTerm) -> None:
        decay = self._decay_after(forwards[0].clock)
        teacher, student = state.module, forwards[0].owner
        if isinstance(teacher, WeightView):
            return teacher.follow(student, 1.0 - decay)
        weights: list[tuple[Tensor, Tensor]] = list(zip(teacher.parameters(), student.parameters(), strict=True))
        buffers = list(zip(teacher.buffers(), student.buffers(), strict=True))
        if weights:
            theirs = [w.to(average.dtype) for average, w in weights]
            torch._foreach_lerp_([average for average, _ in weights], theirs, 1.0 - decay)
        for average, now in buffers:
            if average.is_floating_point():  # equal entries stay: infinite ones (a causal mask) have no mean
                average.copy_(torch.where(average == now, average, average.lerp(now.to(average.dtype), 1.0 - decay)))
            else:
                average.copy_(now)


@dataclass(frozen=True)
class Frozen(Teacher):
    """A frozen copy of the model as it was when the objective was bound, in eval mode.

    On views without randomness its answers (one row of outputs a sample) are kept by sample id, in memory and in the
    checkpoint, so that the second epoch costs no teacher pass; ``Settings(cache=False)`` computes them every
    time. `CachedTeacher` keeps them on disk, and of several fixed augmentations.
    """

    view: str | None = None
    frozen: ClassVar[bool] = True
    reusable: ClassVar[bool] = True

    def forward_passes(self, peers: float, generations: int) -> float:
        return peers

    @property
    def immovable(self) -> bool:
        return type(self).update is Frozen.update

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        """The weights to hold; None if there are none yet."""
        return model.frozen() if isinstance(model, LargeModel) else copy_model(model)

    def start(self, model: nn.Module, args: BindArgs) -> nn.Module:
        module = self.module(model, args)
        return nn.Module() if module is None else FrozenCopy(module)

    def key(self, term: BaseTerm) -> Hashable:
        return self, term.head, self.view or term.view  # a cache belongs to one view

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        return self.answer(state, forward, term, term.head)

    def answer(self, state: nn.Module, forward: Forward, term: BaseTerm, head: str) -> Target:
        """What it says at a head of its own for a term; nothing where it holds no weights yet."""
        view, space = self.view or term.view, space_of(head)
        if not isinstance(state, FrozenCopy):
            student = forward.student(term.view, term.head)
            return Target(torch.zeros_like(student), space, student.new_zeros(student.shape[:-1], dtype=torch.bool))
        if view not in forward.batch.fixed or not state.cacheable:
            return aligned_target(forward, term, view, lambda: forward.teacher_output(state.module, view, head), space)
        keys = forward.addresses(view)
        cached, seen = state.cache.read(keys, state.cache.width)
        if not bool(distributed.add((~seen).any().float())):  # a sharded teacher computes on all processes or on none
            forward.skip(state.module, view)
            return Target(cached, space)
        fresh = state.cache.rounded(forward.teacher_output(state.module, view, head))
        if fresh.dim() != 2 or cached.shape != fresh.shape:
            return Target(fresh, space)
        return Target(torch.where(seen[:, None], cached, fresh), space)

    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        if not isinstance(state, FrozenCopy) or not state.cacheable:
            return
        view = self.view or term.view
        for forward in forwards:
            # several processes exchange what is new, so each takes part even where the cache knew all its rows
            if view in forward.batch.fixed and (distributed.size() > 1 or forward.has_output(state.module, view)):
                value = self.target(state, forward, term).value
                if value.dim() == 2:
                    state.cache.write_new(forward.addresses(view), value)
        state.cache.settle(forwards[0].clock)


@dataclass(frozen=True)
class Generation(Frozen):
    """The last accepted generation, frozen; in generation 0 there is none and every row is left without a target.

    Of a language model, which is trained further and not anew, it is in generation 0 what training begins with.
    """

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        if args.previous is model:
            raise RecipeError("a generation learns from the one before it: bind a fresh model, not the previous one")
        return model.holding(args.previous or model) if isinstance(model, LargeModel) else args.previous


@dataclass(frozen=True)
class External(Frozen):
    """Another, usually larger, model: traditional distillation. ``source`` is a run or model folder; or pass
    ``external=`` to ``bind``, which freezes that very module."""

    source: str | None = None

    def forward_passes(self, peers: float, generations: int) -> float:
        return 1.0

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        if args.external is model:
            raise RecipeError("a model cannot be its own external teacher; use frozen weights of it, or ema")
        if isinstance(model, LargeModel):
            return model.external(self.source, args.external)
        if args.external is not None:
            return args.external if args.scale is None else _in_units_of(args.external, args.scale)
        if self.source is None:
            raise RecipeError(
                "this method needs a teacher: distil('RUN') on the command line, bind(external=model) in code"
            )
        from ..models.store import load_model

        loaded = load_model(self.source)
        return loaded if args.scale is None else _in_units_of(loaded, args.scale)


@dataclass(frozen=True)
class GeometricMixture(Teacher[nn.ModuleList]):
    """Two teachers of logits as one: log q = (1 - share) log q_first + share log q_second + const.

    A small share of the student itself keeps the target as far from a reference as is trusted (SDPO, arXiv 2601.20802,
    section 3). A negative share -c turns away from the second, log q = (1 + c) log q_first - c log q_second: two
    contexts are contrasted.
    """

    first: Teacher
    second: Teacher
    share: float = 0.01

    def __post_init__(self) -> None:
        if self.share > 1:
            raise RecipeError(f"GeometricMixture: the share of the second teacher is at most 1, not {self.share}")

    def reads(self, term: BaseTerm) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first.reads(term), *self.second.reads(term))))

    def student_view(self, term: BaseTerm) -> str | None:
        return self.first.student_view(term) or self.second.student_view(term)

    def start(self, model: nn.Module, args: BindArgs) -> nn.ModuleList:
        return nn.ModuleList([self.first.start(model, args), self.second.start(model, args)])

    def prepare(self, state: nn.ModuleList, data: GenerationData) -> None:
        self.first.prepare(state[0], data)
        self.second.prepare(state[1], data)

    def target(self, state: nn.ModuleList, forward: Forward, term: BaseTerm) -> Target:
        one, other = self.first.target(state[0], forward, term), self.second.target(state[1], forward, term)
        if {one.space, other.space} != {"logits"}:
            raise SpaceError(f"GeometricMixture mixes logits, not {one.space} and {other.space}")
        value: Any = blended([(1.0 - self.share, one.value), (self.share, other.value)])
        valid = [v for v in (one.valid, other.valid) if v is not None]
        return Target(value, "logits", reduce(torch.logical_and, valid) if valid else None)

    def update(self, state: nn.ModuleList, forwards: Sequence[Forward], term: BaseTerm) -> None:
        self.first.update(state[0], forwards, term)
        self.second.update(state[1], forwards, term)


def _in_units_of(module: nn.Module, scale: tuple[float, float]) -> nn.Module:
    """A finished model of values answers in the target's unit, and students learn standardised values."""
    return module.standardised(*scale) if isinstance(module, Scaled) else module
