"""Teachers of streams: a reservoir of past rows with what was said of them, and the classes of earlier tasks.

A reservoir is a uniform sample of all rows so far. It is saved with the objective, and the next generation inherits it,
which is the next task of a stream.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.memory import Buffers, Inherited
from ..core.outputs import output_of, space_of
from ..core.parts import BaseTerm, BindArgs, GenerationData, Teacher
from ..core.step import Batch, Forward, Rows
from ..core.targets import Target
from ..errors import RecipeError
from ..losses.distributions import UNKNOWN
from ..rng import Address
from .labels import Labels
from .memories import memory_space
from .weights import Generation

FIELDS = ("x", "y", "logits", "id")
BLOCK = 1024  # rows that are refreshed at once


class Reservoir(Buffers, Inherited):
    """A uniform sample of the rows so far, at most ``room``: inputs, labels, the student's logits, ids.

    ``seen`` counts the rows that were offered. Row n (from 0) takes a place that the address (seed, n) draws.

    >>> reservoir = Reservoir(2)
    >>> reservoir.add(torch.eye(3), torch.arange(3), torch.zeros(3, 3), torch.arange(3))
    >>> len(reservoir), int(reservoir.seen)
    (2, 3)
    """

    x: Tensor
    y: Tensor
    logits: Tensor
    id: Tensor
    seen: Tensor

    def __init__(self, room: int, previous: nn.Module | None = None) -> None:
        super().__init__()
        self.room, self.seed, self.previous = room, 0, (previous,)  # a tuple: referred to, not owned
        for name in FIELDS:
            self.register_buffer(name, torch.zeros(0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def __len__(self) -> int:
        """The number of rows that it holds."""
        return len(self.x)

    def places(self, numbers: Tensor) -> Tensor:
        """The place of each row by its number; one from ``room`` on is none."""
        u = rng.uniform((self.seed, "reservoir"), numbers, 2).double()
        drawn = ((u[:, 0] + u[:, 1] / (1 << 24)) * (numbers + 1)).long()
        return torch.where(numbers < self.room, numbers, drawn)

    def add(self, x: Tensor, y: Tensor, logits: Tensor, ids: Tensor) -> None:
        """Offer rows, in their order."""
        rows, first = (x, y, logits, ids), int(self.seen)
        places = self.places(torch.arange(first, first + len(x), device=x.device))
        last = {place: row for row, place in enumerate(places.tolist()) if place < self.room}  # a later row stays
        to, which = (torch.tensor(list(part), dtype=torch.int64, device=x.device) for part in (last, last.values()))
        more = min(self.room, first + len(x)) - len(self)
        for name, values in zip(FIELDS, rows, strict=True):
            before = self._buffers[name]
            if before is None or not len(before):
                before = values.new_zeros(0, *values.shape[1:])
            grown = torch.cat([before, values.new_zeros(max(0, more), *values.shape[1:])])
            grown[to] = values[which].detach()
            self._buffers[name] = grown
        self.seen = self.seen + len(x)

    def carry(self) -> dict[str, Tensor]:
        return {name: buffer.cpu() for name, buffer in self.named_buffers()} if len(self) else {}

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in tensors.items():
            self._buffers[name] = value.to(self.seen.device, copy=True)
        if len(self) < int(self.seen):  # a sample of more rows cannot grow: the others are gone
            self.room = min(self.room, len(self))

    @torch.no_grad()
    def refresh(self, model: nn.Module, head: str) -> None:
        """Take what a model says of the rows now in the place of what was said when they came."""
        self.logits = torch.cat([output_of(_named(model(x)), head).float() for x in self.x.split(BLOCK)])


def _named(output: Any) -> dict[str, Tensor]:
    return dict(output) if isinstance(output, Mapping) else {"": output}


@dataclass(frozen=True)
class Stored(Teacher[Reservoir]):
    """What the student said of rows when they came, kept in a reservoir that supplies the rows of the term's view.

    Rows of the view ``source`` are offered to the reservoir in the first epoch of each generation, with the outputs
    from before the optimizer's step. With ``refresh`` the outputs are computed anew when a generation begins.

    Args:
        memory: rows that the reservoir holds.
        count: rows that are drawn for each step.
        refresh: whether outputs are renewed at the start of a generation.
        source: the view whose rows are kept; another term learns on it.

    Raises:
        RecipeError: there is no room for a row, or none is drawn.
    """

    memory: int = 200
    count: int = 32
    refresh: bool = False
    source: str = "x"

    def __post_init__(self) -> None:
        for name in ("memory", "count"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{type(self).__name__}: {name} counts rows, from 1 on, not {getattr(self, name)}")

    def key(self, term: BaseTerm) -> Hashable:
        return Reservoir, self.memory, self.refresh, self.source, term.head

    def start(self, model: nn.Module, args: BindArgs) -> Reservoir:
        return Reservoir(self.memory, args.previous)

    def prepare(self, state: Reservoir, pool: GenerationData) -> None:
        state.seed, previous = pool.seed, state.previous[0]
        if self.refresh and previous is not None and len(state):
            state.refresh(previous, "logits" if pool.targets.dtype == torch.int64 else "values")

    def rows(self, state: Reservoir, batch: Batch, address: Address) -> Rows | None:
        if not len(state):
            return None
        places = torch.tensor(rng.sample(address, len(state), min(self.count, len(state))), device=state.x.device)
        return Rows(state.x[places], state.y[places], state.id[places], extra={"logits": state.logits[places]})

    def target(self, state: Reservoir, forward: Forward, term: BaseTerm) -> Target:
        logits = forward.batch[term.view].extra.get("logits")
        if logits is None:  # rows that came with the batch, of which nothing is stored
            student = forward.student(term.view, term.head)
            silent = student.new_zeros(student.shape[:-1], dtype=torch.bool)
            return Target(torch.zeros_like(student), space_of(term.head), silent)
        return Target(logits, space_of(term.head))

    @torch.no_grad()
    def update(self, state: Reservoir, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for forward in forwards:
            if forward.clock.epoch or not forward.rows(self.source):
                continue
            student, rows = forward.student(self.source, term.head), forward.batch[self.source]
            ids = forward.ids(self.source) if rows.id is not None else torch.arange(len(student)) + state.seen.cpu()
            offered = (rows.x, forward.labels(self.source), student, ids.to(student.device))
            state.add(*(distributed.gather(part) for part in offered))


@dataclass(frozen=True)
class StoredLabels(Stored):
    """The labels of the rows of a reservoir, which it shares with a `Stored` of the same fields."""

    labels: ClassVar[bool] = True

    def space(self, head: str) -> str:
        return Labels().space(head)

    def target(self, state: Reservoir, forward: Forward, term: BaseTerm) -> Target:
        return Labels().target(state, forward, term)


class SeenClasses(Inherited):
    """A frozen generation, and the classes that labels have had: in this generation too, and before it (``known``)."""

    seen: Tensor
    known: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))
        self.register_buffer("known", torch.zeros(0, dtype=torch.bool))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in ("seen", "known"):
            if prefix + name in state_dict:
                self._buffers[name] = state_dict[prefix + name].to(self.seen.device, copy=True)
        super()._load_from_state_dict(dict(state_dict), prefix, *rest)

    def carry(self) -> dict[str, Tensor]:
        return {"seen": self.seen.cpu()} if len(self.seen) else {}

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        self.seen = self.known = tensors["seen"].to(self.seen.device, copy=True)


@dataclass(frozen=True)
class EarlierTasks(Generation):
    """The last accepted generation, on the classes alone that the generations so far had rows of.

    The logits of the others are `UNKNOWN`, so `KnownKL` compares the rest (learning without forgetting, 2016). Where
    nothing tells the classes it is taken to know them all.
    """

    def space(self, head: str) -> str:
        memory_space(self, head, values=False)
        return "logits"

    def start(self, model: nn.Module, args: BindArgs) -> SeenClasses:
        return SeenClasses(super().start(model, args))

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        assert isinstance(state, SeenClasses)
        answer = Generation(self.view).target(state.inner, forward, term)
        known = torch.zeros(answer.value.shape[-1], dtype=torch.bool, device=answer.value.device)
        known[: len(state.known)] = state.known
        if not bool(known.any()):
            return answer
        return Target(answer.value.masked_fill(~known, UNKNOWN), answer.space, answer.valid)

    @torch.no_grad()
    def update(self, state: nn.Module, forwards: Sequence[Forward], term: BaseTerm) -> None:
        assert isinstance(state, SeenClasses)
        Generation(self.view).update(state.inner, forwards, term)
        for forward in forwards:
            if forward.rows(term.view):
                y = distributed.gather(forward.labels(term.view))
                seen = y.new_zeros(forward.student(term.view, term.head).shape[-1], dtype=torch.bool)
                seen[: len(state.seen)] = state.seen
                seen[y[y >= 0]] = True
                state.seen = seen
