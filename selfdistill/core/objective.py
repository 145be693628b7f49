"""A recipe of terms (`Method`), and the same bound to a model (`Objective`)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import astuple, dataclass, field
from functools import partial, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError, SpaceError
from ..views import Views
from . import distributed
from .logits import tensors
from .memory import LargeModel, SampleMemory, WeightView
from .mixing import BETWEEN, MIXED, Mixing
from .outputs import ModelWrapper, space_of
from .parts import BaseTerm, BindArgs, GenerationData, Part, Teacher, TermResult
from .step import Batch, Forward, ForwardPlan, Passes, TrainingClock
from .vitals import StateWatch, TermHealth, Vitals, Watch, summarise

MOST_GENERATIONS = 1000


class LeastSteps(NamedTuple):
    """The steps of a generation from which on a recipe is worth its name: in fewer, labels alone teach more."""

    recipe: str
    steps: int

    def warning(self, length: int) -> str | None:
        """A line where a generation of ``length`` steps is too short.

        >>> LeastSteps("elr", 100).warning(50).partition("; ")[2]
        'give --steps 100 or more'
        >>> LeastSteps("elr", 100).warning(100)
        """
        if length >= self.steps:
            return None
        return (
            f"{self.recipe}() needs about {self.steps:,} steps, and a generation has {length:,} here: plain() learns "
            f"more in so few; give --steps {self.steps} or more"
        )


@dataclass(frozen=True)
class Method:
    """A recipe: named terms, the views they look at, and how generations follow each other.

    ``forward`` is ``"fused"`` (all views one batch) or ``"separate"``; ``mixing`` adds views of mixed rows;
    ``wrap_model`` adapts the model factory (peers, exits). ``least`` says what length of a generation is too short.
    ``method.bind(model)`` makes the objective that trains it.
    """

    terms: Mapping[str, BaseTerm]
    views: Views = Views()
    wrap_model: ModelWrapper | None = None
    generations: int = 1
    forward: str = "fused"
    mixing: Mixing | None = None
    least: LeastSteps | None = None

    def __post_init__(self) -> None:
        if self.forward not in ("fused", "separate"):
            raise SpaceError(f"forward is 'fused' or 'separate', not {self.forward!r}")
        if not isinstance(self.generations, int) or self.generations < 1:
            raise SpaceError(f"generations counts trainings: a whole number from 1 on, not {self.generations}")
        if self.generations > MOST_GENERATIONS:
            raise SpaceError(f"generations counts trainings: at most {MOST_GENERATIONS}")
        if not self.terms:
            raise SpaceError("a method needs at least one term")
        odd = [name for name in self.terms if not (isinstance(name, str) and name.isidentifier())]
        if odd:
            raise SpaceError(f"a term's name is one word of letters, digits and _, not {odd[0]!r}")
        object.__setattr__(self, "terms", dict(self.terms))

    def __hash__(self) -> int:
        return hash(
            (
                frozenset(self.terms.items()),
                self.views,
                self.wrap_model,
                self.generations,
                self.forward,
                self.mixing,
                self.least,
            )
        )

    def bind(self, model: nn.Module, **options: Any) -> Objective:
        """An `Objective` that trains this model; options as there."""
        return Objective(self, model, **options)

    def rows_of(self) -> dict[str, str]:
        """The rows of each view by its name: as `View.rows`, ``mixed``, or ``stored`` where a part supplies them."""
        rows = {view.name: view.rows for view in self.views.views}
        stored = {t.view: "stored" for t in self.terms.values() for p in t.parts() if type(p).rows is not Part.rows}
        return rows | stored | (dict.fromkeys((MIXED, BETWEEN), "mixed") if self.mixing else {})

    def student_views(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Views the student forwards: those it learns on, and those it only looks at as its own teacher."""
        graded = tuple(dict.fromkeys(view for term in self.terms.values() for view in term.views))
        own = (p.student_view(term) for term in self.terms.values() for p in term.parts() if isinstance(p, Teacher))
        return graded, tuple(dict.fromkeys(view for view in own if view is not None and view not in graded))


@dataclass
class Figure:
    """One term in the last step: mean loss, weight, and the share of its targets that the gate kept."""

    loss: Tensor
    weight: float
    kept: Tensor
    valid: Tensor = field(repr=False)


class Objective(nn.Module):
    """A method bound to a model: call it on a batch for the loss, and ``update()`` it after the optimizer's step.

    Args:
        method: the recipe.
        model: the student; the objective refers to it but does not own it (its ``state_dict`` holds teachers only).
        previous, external: models that `Generation` and `External` teachers look at.
        scale: (center, scale) of standardised values, for external teachers that answer in their unit.
        clock: length and position of the run, for schedules; ``update()`` moves it on.
        autocast: context for the forward passes (mixed precision).
        memory_dtype, memory_top: precision of remembered predictions, and how many of the largest are kept.
        vitals: look at a few steps, and refuse a signal that is dead; ``pulse`` holds what the looks added up to.

    >>> from selfdistill.methods import plain
    >>> model = nn.Linear(3, 2)
    >>> objective = plain().bind(model)
    >>> objective({"x": torch.ones(4, 3), "y": torch.tensor([0, 1, 0, 1])}).shape
    torch.Size([])
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        *,
        previous: nn.Module | None = None,
        external: nn.Module | None = None,
        scale: tuple[float, float] | None = None,
        clock: TrainingClock | None = None,
        autocast: Callable[[], Any] = nullcontext,
        vitals: bool = True,
        memory_dtype: torch.dtype = torch.float32,
        memory_top: int = 0,
    ) -> None:
        super().__init__()
        self.method, self.autocast, self.watched, self.pulse = method, autocast, vitals, dict[str, TermHealth]()
        # a predecessor makes this a later generation; a generation that is not the first has one
        self.clock = clock or TrainingClock(
            int(previous is not None), max(method.generations, 1 + (previous is not None))
        )
        if self.clock.generation and previous is None and method.generations > 1:
            raise RecipeError(f"generation {self.clock.generation} learns from the one before it: bind(previous=model)")
        self._student: tuple[nn.Module, Callable[[Tensor], Any]] = (model, model)  # in a tuple: no submodule
        self._keys, self._owners = dict[tuple[str, Part], str](), list[tuple[str, Part, BaseTerm]]()
        self._steps, self.figures, self.states = list[Forward](), dict[str, Figure](), nn.ModuleDict()
        self._vigil = StateWatch(self.states, self._owners, self._keys)
        shared = dict[Hashable, str]()
        for name, term in method.terms.items():
            if isinstance(model, LargeModel):
                _refuse_unless_lazy(name, term)
            for part in term.parts():
                key = part.key(term)
                if key not in shared:
                    shared[key] = f"{name}_{type(part).__name__.lower()}"
                    self.states[shared[key]] = part.start(model, BindArgs(previous, external, scale))
                    self._owners.append((shared[key], part, term))
                self._keys[name, part] = shared[key]
        for state in self.states.modules():
            if isinstance(state, SampleMemory):
                state.compact(memory_dtype, memory_top)
        self._plan = ForwardPlan(*method.student_views(), method.forward == "fused", autocast, method.mixing)
        self._followers = [owner for owner in self._owners if type(owner[1]).update is not Part.update]
        self._suppliers = [
            (self._keys[name, part], part, term)
            for name, term in method.terms.items()
            for part in term.parts()
            if type(part).rows is not Part.rows
        ]
        self.register_load_state_dict_pre_hook(_rename)  # type: ignore[no-untyped-call]
        self._seed = 0  # of the rows that parts supply; `prepare` brings that of the run

    def forward_views(self, batch: Mapping[str, Any] | Sequence[Any]) -> Forward:
        """Forward every view that the method names, once."""
        views = batch if isinstance(batch, Batch) else Batch.of(batch)
        if self._suppliers:
            views = self._supplied(views)
        model, call = self._student
        return Forward(call, views, self.clock, self._plan, model).run()

    def _supplied(self, batch: Batch) -> Batch:
        """The batch with the rows that parts have stored, in the views of their terms."""
        whole = Batch(batch)
        whole.fixed, whole.addresses = batch.fixed, batch.addresses
        first = next((int(rows.id[0]) for rows in batch.values() if rows.id is not None and len(rows.id)), 0)
        for key, part, term in self._suppliers:
            address = (
                self._seed,
                "stored",
                term.view,
                self.clock.generation,
                self.clock.step,
                distributed.rank(),
                first,
            )
            rows = part.rows(self.states[key], batch, address)
            if rows is not None:
                whole[term.view] = rows
        return whole

    def state_of(self, name: str, part: Part) -> Any:  # of a part, in the term of this name
        return self.states[self._keys[name, part]]

    def weight_views(self) -> list[WeightView]:
        """The teachers that answer through the student's own layers."""
        return [module for module in self.states.modules() if isinstance(module, WeightView)]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Their weights in one piece on every process, for as long as it lasts; all processes must enter.

        A process asks its teachers as often as its own rows need, and so cannot fetch weights of others then.
        """
        with ExitStack() as stack:
            for view in self.weight_views():
                stack.enter_context(view.whole())
            yield

    def measure(self, batch: Mapping[str, Any] | Sequence[Any]) -> dict[str, TermResult]:
        """Every term's tally on a batch, not yet divided: add them over micro-batches and ranks, then `combine`.

        Raises:
            VitalsError: at a step that is looked at, the signal of a term is certainly dead.
        """
        learns = torch.is_grad_enabled()
        if learns and not self._student[0].training:
            raise RecipeError("the student is in eval mode at a training step; call model.train() before it")
        forward = self.forward_views(batch)
        watch = None
        if learns and self.watched and self.clock.observed:
            watch = Watch(self._student[0], forward, self.pulse, self._vigil)
        measured = dict[str, TermResult]()
        with self.whole() if distributed.size() > 1 else nullcontext():
            for name, term in self.method.terms.items():
                try:
                    measured[name] = term.tally(partial(self.state_of, name), forward)
                except (IndexError, RuntimeError):
                    _refuse_labels(name, term, forward)
                    raise
                if watch is not None:
                    watch.buffers(name, term)
        if watch is not None:
            watch.read(self.method.terms, measured)
        if learns:
            forward.release()
            self._steps.append(forward)
        for name in measured:
            measured[name] = measured[name]._replace(seen=None)  # so that no graph is held
        return measured

    def vitals(self) -> Vitals:
        """Is every term's signal alive? Means over the steps looked at so far."""
        return summarise(self.pulse)

    def combine(self, measured: Mapping[str, TermResult], counts: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss: sum over terms of weight x total / count, with counts of a larger batch where given."""
        parts = []
        for name, term in self.method.terms.items():
            tally, kept, valid, _ = measured[name]
            count, weight = tally.count if counts is None else counts[name], term.weight_at(self.clock)
            mean = tally.total / (count + (count == 0))  # without any element 0 / 1
            self.figures[name] = Figure(mean.detach(), weight, kept, valid)
            parts.append(weight * mean if weight else mean.detach() * 0.0)
        return reduce(torch.add, parts)

    def forward(self, batch: Mapping[str, Any] | Sequence[Any]) -> Tensor:
        """The loss of one batch, a scalar."""
        return self.combine(self.measure(batch))

    @torch.no_grad()
    def update(self) -> None:
        """Let every state follow: call it once after each optimizer step.

        Raises:
            RecipeError: no loss was asked for (with gradient) since the last update.
            VitalsError: at a step that is looked at, a teacher moved that was to stay, or stayed that was to move.
        """
        if not self._steps:
            raise RecipeError("update() follows a step: call the objective on a batch, with gradient, before it")
        with self._vigil.over(self._steps, self.pulse) if self._vigil.opened is not None else nullcontext():
            for name, part, term in self._followers:
                part.update(self.states[name], self._steps, term)
        self._steps.clear()
        self.clock = self.clock.at(self.clock.step + 1)

    def passes(self) -> Passes:
        """What was computed since the last update."""
        passes = Passes()
        for forward in self._steps:
            passes += forward.cost()
        return passes

    @property
    def student(self) -> nn.Module:
        """The model that learns."""
        return self._student[0]

    def call_through(self, forward: Callable[[Tensor], Any]) -> None:
        """Call this instead of the model: a DDP or compiled wrapper around it."""
        self._student = (self._student[0], forward)

    def blame(self, measured: Mapping[str, TermResult]) -> tuple[str, list[int]]:
        """The first term whose total is not finite, and up to eight samples whose output is not."""
        name = next((n for n, m in measured.items() if not bool(torch.isfinite(m.tally.total))), next(iter(measured)))
        term, step = self.method.terms[name], self._steps[-1]
        rows, ids = (
            torch.isfinite(tensors(step.student(term.view, term.head))[0]).flatten(1).all(1),
            step.batch[term.view].id,
        )
        picked = (~rows if not bool(rows.all()) else rows).nonzero().squeeze(1)
        return name, (picked if ids is None else ids[picked])[:8].tolist()

    @torch.no_grad()
    def prepare(self, pool: GenerationData) -> None:
        """At the start of a generation: let teachers label the pool."""
        self._seed = pool.seed
        for name, part, _ in self._owners:
            part.prepare(self.states[name], pool)

    def eligible_ids(self) -> Tensor | None:
        """Unlabelled ids this generation may draw, or None for all."""
        teachers = ((self.states[n], p) for n, p, _ in self._owners if isinstance(p, Teacher))
        return next((ids for state, p in teachers if (ids := p.eligible_ids(state)) is not None), None)

    def get_extra_state(self) -> Tensor:
        return torch.tensor(astuple(self.clock))

    def set_extra_state(self, state: Tensor) -> None:
        self.clock = TrainingClock(*state.tolist())


def _refuse_labels(name: str, term: BaseTerm, step: Forward) -> None:
    """Refuse labels that are none of the model's classes, where a term has failed on them.

    Raises:
        DataError: there are some.
    """
    if not step.rows(term.view) or (y := step.batch[term.view].y) is None or y.is_floating_point() or not y.numel():
        return
    try:
        classes = step.student(term.view, term.head).shape[-1]
    except SpaceError:
        return
    if int(y.max()) >= classes:
        start = "; they seem to be counted from 1: subtract 1" if int(y.min()) == 1 and int(y.max()) == classes else ""
        raise DataError(
            f"term {name!r}: the batch has the label {int(y.max())}, and the model has {classes} outputs: labels are "
            f"0 to {classes - 1}, and -1 where there is none{start}"
        ) from None


def _unprefixed(name: str) -> str:
    """The name of a state without what `torch.compile` and DDP put before the names of a model."""
    return name.replace("_orig_mod.", "").replace(".module.module.", ".module.")


def _rename(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Load what was saved of a wrapped model into that of a bare one."""
    prefixed = {name: _unprefixed(name) for name in state if name.startswith(prefix) and _unprefixed(name) != name}
    if not prefixed:
        return
    own = {prefix + name for name in module.state_dict()}
    for name, bare in prefixed.items():
        if name not in own and bare in own:
            state[bare] = state.pop(name)


def _refuse_unless_lazy(name: str, term: BaseTerm) -> None:
    for part in (term.loss, term.gate):
        if part is not None and not part.lazy:
            raise SpaceError(
                f"term {name!r}: {type(part).__name__} needs all logits at once, and this model gives them a block "
                "at a time; take a loss or gate for tokens, such as TokenDivergence()"
            )


def untaught(method: Method) -> bool:
    """Does it compare features alone, of a model with heads beside it, so that nothing teaches the classifier?

    >>> from selfdistill.methods import recipes
    >>> untaught(recipes()["simsiam"]()), untaught(recipes()["ddgsd"]())
    (True, False)
    """
    if method.wrap_model is None:  # an encoder that fills in words has none
        return False
    return all(space_of(term.head) == "features" for term in method.terms.values())
