"""Do sample ids belong to the samples? A memory keyed by ids that do not is one of other samples.

Vitals of states: do averages move, do frozen teachers stay, is everything that changes also saved?

A `StateWatch` belongs to an objective and is no state: it remembers a few entries of each tensor between the looks, and
forgets them when a ``state_dict`` is loaded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import distributed
from ..memory import FrozenCopy, SampleMemory, WeightView
from ..parts import BaseTerm, Part, Teacher
from ..step import Forward, TrainingClock
from .summary import TermHealth, fail

MOST = 65536  # ids remembered


class Remembered:
    """The first label seen with each sample id, at looks only."""

    def __init__(self) -> None:
        self.first: dict[int, int] = {}
        self.again, self.other = 0, 0

    def see(self, terms: Mapping[str, BaseTerm], forward: Forward) -> None:
        """Compare the labels of a step with those remembered, where a term uses ids.

        Raises:
            VitalsError: the same ids come with other labels, about as often as if they were drawn by chance.
        """
        for view in forward.keyed:
            rows = forward.batch[view]
            if rows.y is None or rows.id is None or rows.y.is_floating_point() or rows.y.dim() != 1:
                continue
            for i, label in zip(rows.id.tolist(), rows.y.tolist(), strict=True):
                if label < 0:
                    continue
                if i in self.first:
                    self.again, self.other = self.again + 1, self.other + (self.first[i] != label)
                elif len(self.first) < MOST:
                    self.first[i] = label
        if self.other < 16:
            return
        counts = Counter(self.first.values())
        chance = 1.0 - sum((n / len(self.first)) ** 2 for n in counts.values())
        if self.other > 0.5 * chance * self.again:  # a label that was corrected in between is no reason
            name = _asking(terms, forward)
            fail(
                "ids-misaligned",
                name,
                f"{self.other} of {self.again} sample ids that came again had another label, "
                f"{chance:.0%} would by chance",
                "give each sample one id and shuffle inputs, labels and ids together",
            )


def _asking(terms: Mapping[str, BaseTerm], forward: Forward) -> str:
    """The term that needs the ids: one on a view with ids, and rather not that of the labels."""
    keyed = [name for name, term in terms.items() if term.view in forward.keyed]
    return next((n for n in keyed if not by_labels(terms[n])), [*keyed, *terms][0])


def by_labels(term: BaseTerm) -> bool:
    """Whether the target of the term is the label."""
    return any(isinstance(part, Teacher) and part.labels for part in term.parts())


SOME = 256  # entries of a tensor that are compared, evenly spread; up to twice as many where it does not divide


_ITS_OWN = frozenset(vars(nn.Module()))  # what every module has, and what no state_dict is for


@dataclass
class _Kept:
    """A held module at the last look: entries of its weights, of its floating buffers and the student's; counters."""

    weights: Tensor
    buffers: Tensor
    students: Tensor
    counters: dict[str, tuple[float, float]]  # the teacher's and the student's


@dataclass
class _Suspicion:
    """Looks in a row at which an average hardly moved, or its statistics did not; looks at which an attribute moved."""

    stuck: int = 0
    lost: int = 0
    loose: dict[str, int] = field(default_factory=dict)


class StateWatch:
    """Watches the states of an objective: `open` before the terms of a step, `over` while the states follow."""

    def __init__(self, states: nn.ModuleDict, owners: list[tuple[str, Part, BaseTerm]], keys: dict[Any, str]) -> None:
        self.states, self.owners, self.keys, self.rows = states, owners, keys, Remembered()
        self.opened: dict[str, Tensor] | None = None  # weights before the step's terms; None: not looked at
        self._loose: dict[str, dict[str, Any]] = {}
        self._kept: dict[str, _Kept] = {}
        self._suspicions: dict[str, _Suspicion] = {}
        states.register_load_state_dict_post_hook(self._forget)

    def _forget(self, module: nn.Module, incompatible: object) -> None:
        self.opened, self._kept, self._suspicions = None, {}, {}

    def open(self) -> None:
        """A step that is looked at begins; its further micro-batches change nothing."""
        if self.opened is None:
            self.opened = {key: _entries(module.parameters()) for key, _, module in self._held()}
            self._loose = {key: _loose(self.states[key]) for key, _, _ in self.owners}

    @contextmanager
    def over(self, forwards: Sequence[Forward], pulses: Mapping[str, TermHealth]) -> Iterator[None]:
        """Around the update of the states, after the optimizer's step.

        Raises:
            VitalsError: a frozen teacher has moved, an average stands still, or its statistics are lost.
        """
        if self.opened is None or forwards[0].module is None:
            yield
            return
        entries, student, clock = (
            {key: _entries(m.parameters()) for key, _, m in self._held()},
            forwards[0].owner,
            forwards[0].clock,
        )
        for key, part, _ in self._held():
            self._frozen(key, part, entries[key])
        yield
        for key, part, module in self._held():
            suspicion = self._suspicions.setdefault(key, _Suspicion())
            record = _look(module, student)
            self._average(key, part, module, (entries[key], record.weights, _entries(student.parameters())), clock)
            self._statistics(key, part, record, suspicion)
            self._kept[key] = record
            if (gap := _distance(module, student)) is not None:
                for name in self._terms(key):
                    pulses[name].add("weight_distance", gap)
        self._unsaved(pulses)
        self.opened = None

    def _held(self) -> list[tuple[str, Part, nn.Module]]:
        """The owners that hold a module, by the state's key."""
        held = [(key, part, self.states[key]) for key, part, _ in self.owners]
        return [
            (key, part, state.module)
            for key, part, state in held
            if isinstance(state, FrozenCopy) and not isinstance(state.module, WeightView)
        ]

    def _terms(self, key: str) -> list[str]:
        return [name for (name, _), state_key in self.keys.items() if state_key == key]

    def _frozen(self, key: str, part: Part, current: Tensor) -> None:
        """Check that only ``update`` has moved a teacher's weights, and nothing a frozen teacher's."""
        frozen = isinstance(part, Teacher) and part.immovable
        if not frozen and not (isinstance(part, Teacher) and part.averaging_rate(TrainingClock()) is not None):
            return  # a part of one's own may be moved by one's own loop
        past = [(self.opened or {}).get(key)]
        past += [self._kept[key].weights] if frozen and key in self._kept else []
        if any(earlier is not None and _has_changed(earlier, current) for earlier in past):
            fail(
                "frozen-teacher-moved",
                self._terms(key)[0],
                f"the weights of its teacher ({type(part).__name__}) were changed from outside",
                "give the teacher modules of its own that no optimizer has and nobody copies "
                "into, or let Ema follow the student",
            )

    def _average(
        self, key: str, part: Part, module: nn.Module, triple: tuple[Tensor, Tensor, Tensor], clock: TrainingClock
    ) -> None:
        """Check that the average moves by (1 - decay) of its distance: in low precision small updates round away."""
        old, new, student = (entries.float() for entries in triple)
        rate = part.averaging_rate(clock) if isinstance(part, Teacher) else None
        if rate is None or len({len(s) for s in triple}) > 1:
            return
        coarse = any(p.is_floating_point() and p.element_size() < 4 for p in module.parameters())
        expected = rate * (student - old).abs()
        must_move = (student - old).abs() > (1e-3 if coarse else 1e-2) * old.abs()  # less than that float32 rounds too
        unmoved = must_move & ((new - old).abs() < 0.1 * expected)
        expected_count, unmoved_count = torch.stack([must_move.sum(), unmoved.sum()]).tolist()
        suspicion = self._suspicions[key]
        # not by norms: entries near 0, as biases are at first, still move in low precision
        suspicion.stuck = suspicion.stuck + 1 if unmoved_count > 0.75 * expected_count else 0
        if rate and suspicion.stuck >= 3:
            fail(
                "stuck-average",
                self._terms(key)[0],
                f"at {suspicion.stuck} looks {unmoved_count / expected_count:.0%} "
                f"of its average ({next(module.parameters()).dtype}) moved by less than a tenth of what {part!r} says",
                "keep the average in float32: cast the model before bind, and not the objective",
            )

    def _statistics(self, key: str, part: Part, current: _Kept, suspicion: _Suspicion) -> None:
        """An average of weights needs the statistics that go with them."""
        earlier = self._kept.get(key)
        if earlier is None or (isinstance(part, Teacher) and part.frozen):
            return
        shrunk = [
            name
            for name, (teacher_count, student_count) in current.counters.items()
            if name in earlier.counters
            and teacher_count < earlier.counters[name][0]
            and student_count >= earlier.counters[name][1]
        ]
        follows = _has_changed(earlier.weights, current.weights) and _has_changed(earlier.students, current.students)
        unmoved = follows and earlier.buffers.shape == current.buffers.shape == current.students.shape
        if unmoved:
            unmoved = bool((earlier.buffers == current.buffers)[earlier.students != current.students].all())
        suspicion.lost = suspicion.lost + 1 if unmoved else 0
        if shrunk or suspicion.lost >= 3:
            fault = f"counter {shrunk[0]} shrinks" if shrunk else "running statistics never move, while its weights do"
            fail(
                "lost-buffers",
                self._terms(key)[0],
                f"its teacher's {fault} and the student's go on",
                "average floating buffers like weights, and copy integer ones",
            )

    def _unsaved(self, pulses: Mapping[str, TermHealth]) -> None:
        """Warn of attributes that change and are in no ``state_dict``."""
        for key, _, _ in self.owners:
            current, suspicion = _loose(self.states[key]), self._suspicions.setdefault(key, _Suspicion())
            for name, earlier in self._loose[key].items():
                if name in current and not _is_same(earlier, current[name]):
                    suspicion.loose[name] = suspicion.loose.get(name, 0) + 1
            for name in [name for name, looks in suspicion.loose.items() if looks >= 2]:
                for term in self._terms(key):
                    pulses[term].note(
                        f"the state of term {term!r} changes in {name!r}, which its state_dict does not hold: it is "
                        "lost on resume; register it as a buffer"
                    )
        self._loose = {}


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _entries(tensors: Iterable[Tensor]) -> Tensor:
    """A few entries of each tensor: enough to see it move."""
    flat = [_local(t.detach()).reshape(-1) for t in tensors]
    parts = [t[:: max(1, len(t) // SOME)] for t in flat]
    return torch.cat([p.to(parts[0].device) for p in parts]).clone() if parts else torch.zeros(0)


def _has_changed(earlier: Tensor, current: Tensor) -> bool:
    """Whether an entry changed; False where shape, precision or device have."""
    comparable = (earlier.shape, earlier.dtype, earlier.device) == (current.shape, current.dtype, current.device)
    return comparable and not bool(((earlier == current) | (earlier.isnan() & current.isnan())).all())


def _plain_name(name: str) -> str:
    """A parameter's name without the prefixes of DDP and torch.compile."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


def _look(module: nn.Module, student: nn.Module) -> _Kept:
    teacher_buffers, student_buffers = (
        {_plain_name(name): _local(b) for name, b in m.named_buffers()} for m in (module, student)
    )
    common = [
        n for n in teacher_buffers if n in student_buffers and teacher_buffers[n].shape == student_buffers[n].shape
    ]
    floating = [n for n in common if teacher_buffers[n].is_floating_point()]
    counting = [n for n in common if n.rpartition(".")[2] == "num_batches_tracked"]
    counts = [
        [float(x) for x in torch.stack([b[n] for n in counting]).tolist()] if counting else []
        for b in (teacher_buffers, student_buffers)
    ]
    return _Kept(
        _entries(module.parameters()),
        _entries(teacher_buffers[n] for n in floating),
        _entries(student_buffers[n] for n in floating),
        dict(zip(counting, zip(*counts, strict=True), strict=True)),
    )


def _distance(teacher: nn.Module, student: nn.Module) -> float | None:
    """||teacher - student|| / ||student|| over all weights; None where they are no weights of one layout."""
    teacher_weights, student_weights = (
        {_plain_name(name): _local(p.detach()) for name, p in m.named_parameters()} for m in (teacher, student)
    )
    if (
        not teacher_weights
        or teacher_weights.keys() != student_weights.keys()
        or any(teacher_weights[n].shape != student_weights[n].shape for n in teacher_weights)
    ):
        return None
    sums = [
        torch.stack([(teacher_weights[n].float() - w.float()).square().sum(), w.float().square().sum()])
        for n, w in student_weights.items()
    ]
    totals = torch.stack(sums).sum(0)
    if any(hasattr(p, "to_local") for p in student.parameters()):  # each process has summed its part
        totals = distributed.add(totals)
    gap, size = totals.tolist()
    return math.sqrt(gap / size) if size > 0 else None


def _loose(state: nn.Module) -> dict[str, Any]:
    """The attributes outside a ``state_dict`` that may change: tensors, numbers, lengths of collections."""
    attributes: dict[str, Any] = {}
    for path, module in state.named_modules():
        if isinstance(state, FrozenCopy) and path.startswith("module"):
            continue  # a model keeps what it likes
        module_type = type(module)
        saves = (module_type.get_extra_state, module_type.state_dict, module_type._save_to_state_dict)
        memory = module_type._save_to_state_dict is SampleMemory._save_to_state_dict
        saving = SampleMemory if memory else nn.Module
        if saves != (saving.get_extra_state, saving.state_dict, saving._save_to_state_dict):
            continue  # it says itself what it saves
        loose = {
            n: v for n, v in vars(module).items() if n not in _ITS_OWN and not (memory and n in SampleMemory.SAVED)
        }
        loose |= {n: module._buffers[n] for n in module._non_persistent_buffers_set}
        for name, value in loose.items():
            if isinstance(value, Tensor) and not value.is_inference():
                attributes[f"{path}.{name}".lstrip(".")] = (value, value._version)
            elif isinstance(value, int | float | list | dict | set):
                attributes[f"{path}.{name}".lstrip(".")] = (
                    None,
                    value if isinstance(value, int | float) else len(value),
                )
    return attributes


def _is_same(earlier: tuple[Any, Any], current: tuple[Any, Any]) -> bool:
    return earlier[0] is current[0] and bool(earlier[1] == current[1])
