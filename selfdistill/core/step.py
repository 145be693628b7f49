"""What a step looks at (`Batch`), when (`TrainingClock`), and what the models answer (`Forward`)."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import DataError, SpaceError
from .logits import Projection
from .memory import LargeModel
from .outputs import MAIN, Composite, output_of


class Rows(NamedTuple):
    """What one view shows the model: inputs (rows first), and the label and sample id of each row, where known.

    ``align`` are the rows of the student's view that these belong to, (rows,), where they are not all, ascending.
    ``extra`` is whatever else is known of each row: for sequences a ``mask`` (rows, T) that is False for padding; for
    completions ``reward`` and ``group`` (rows,) and ``log_prob`` (rows, T) under what drew them.
    """

    x: Tensor
    y: Tensor | None = None
    id: Tensor | None = None
    align: Tensor | None = None
    extra: Mapping[str, Tensor] = MappingProxyType({})

    def __reduce__(self) -> tuple[type[Rows], tuple[Any, ...]]:  # a mapping that cannot change cannot be sent
        return Rows, (*self[:4], dict(self.extra))

    def to(self, device: torch.device) -> Rows:
        """The same rows on a device."""
        y, ids, align = (None if value is None else value.to(device) for value in self[1:4])
        return Rows(self.x.to(device), y, ids, align, {name: value.to(device) for name, value in self.extra.items()})


class Batch(dict[str, Rows]):
    """Views by name. `Batch.of` reads the flat form ``{"x": ..., "y": ..., "id": ..., "weak": ...}`` of a plain loop.

    ``fixed`` names the views whose inputs depend on the sample alone: there a frozen teacher is asked only once. One
    that shows each sample in several ways has in ``addresses`` a number (rows,) for each sample and way.
    """

    fixed: frozenset[str] = frozenset()
    addresses: Mapping[str, Tensor] = MappingProxyType({})

    @classmethod
    def of(cls, batch: Mapping[str, Any] | Sequence[Any]) -> Batch:
        """A flat batch as views; one that is a `Batch` already is returned as it is.

        A pair or triple, as most loaders give it, is ``x``, ``y`` and ``id``. Arrays and lists become tensors.

        Raises:
            DataError: something else, or labels or ids that are no numbers.

        >>> Batch.of([torch.ones(2, 3), [0, 1]])["x"].y
        tensor([0, 1])
        """
        if isinstance(batch, Batch):
            return batch
        if isinstance(batch, Sequence) and 1 <= len(batch) <= 3:
            batch = dict(zip(("x", "y", "id"), batch, strict=False))
        if not isinstance(batch, Mapping):
            raise DataError(
                f"a batch is a {type(batch).__name__}; give (x, y), (x, y, ids) or a mapping such as "
                "{'x': inputs, 'y': labels, 'id': ids}"
            )
        y, ids = batch.get("y"), batch.get("id")
        views = {name: value for name, value in batch.items() if name not in ("y", "id")}
        return cls({name: cls._rows(v, y, ids) for name, v in views.items()})

    def to(self, device: torch.device) -> Batch:
        """The same views on a device."""
        moved = Batch({name: rows.to(device) for name, rows in self.items()})
        moved.fixed = self.fixed
        moved.addresses = {name: address.to(device) for name, address in self.addresses.items()}
        return moved

    @staticmethod
    def _rows(view: Any, y: Any, ids: Any) -> Rows:
        """A view's rows; one with labels and ids of its own is a mapping ``{"x": ..., "y": ..., "id": ...}``."""
        if isinstance(view, Rows):
            return view
        if isinstance(view, Mapping):
            if "x" not in view:
                raise DataError(f"a view of the batch has {', '.join(map(repr, view)) or 'nothing'}; give it its 'x'")
            view, y, ids = view["x"], view.get("y"), view.get("id")
        return Rows(_tensor(view, "inputs"), _tensor(y, "labels"), _tensor(ids, "sample ids"))


def _tensor(value: Any, what: str) -> Any:
    """An array or a list as a tensor; doubles become float32, as the weights are.

    Raises:
        DataError: it holds no numbers.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        return value if what == "inputs" else _whole(value)
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the {what} of a batch are no numbers ({type(error).__name__}: {str(error).splitlines()[0]}); give a "
            f"tensor, an array or a list of numbers{', classes counted from 0' if what == 'labels' else ''}"
        ) from None
    if tensor.dtype == torch.float64:
        return tensor.float()
    return tensor if what == "inputs" else _whole(tensor)


def _whole(value: Tensor) -> Tensor:
    """Whole numbers of any kind as int64, which indexing needs."""
    return value if value.dtype == torch.int64 or value.is_floating_point() else value.long()


@dataclass(frozen=True)
class TrainingClock:
    """Where the run is: generation, epoch and step within the generation, all counted from 0.

    ``epochs`` of ``per_epoch`` steps each are the generation's length, unless ``steps`` cuts it short.
    """

    generation: int = 0
    generations: int = 1
    epoch: int = 0
    epochs: int = 1
    step: int = 0
    per_epoch: int = 1
    steps: int = 0

    @property
    def length(self) -> int:
        """Steps in this generation."""
        return self.steps or self.epochs * self.per_epoch

    @property
    def progress(self) -> float:
        """Share of the generation's steps done, in [0, 1]."""
        return min(1.0, self.step / self.length)

    def at(self, step: int) -> TrainingClock:
        """The same run at another step of this generation."""
        return replace(self, step=step, epoch=min(step // self.per_epoch, self.epochs - 1))

    @property
    def observed(self) -> bool:
        """Is this one of the few steps that the vitals look at? Steps 1, 2, 4, ... 32 and every fiftieth, from 1.

        >>> [step + 1 for step in range(120) if TrainingClock(step=step).observed]
        [1, 2, 4, 8, 16, 32, 50, 100]
        """
        done = self.step + 1
        return done % 50 == 0 or (done <= 32 and done & (done - 1) == 0)


class Passes(NamedTuple):
    """What was computed, in samples: forward and backward passes of the student, forward passes of teachers.

    ``evaluation`` are forward passes that no training needs: the audit split. ``saved`` were not computed and cost
    nothing: a frozen teacher's answers were kept.
    """

    forward: int = 0
    backward: int = 0
    teacher: int = 0
    evaluation: int = 0
    saved: int = 0

    def __add__(self, other: object) -> Passes:  # not a tuple's: the counts add
        if not isinstance(other, Passes):
            return NotImplemented
        return Passes(*map(operator.add, self, other))

    def cost(self, teacher: float = 1.0) -> float:
        """Forward 1, backward 2; a teacher's forward costs ``teacher`` times the student's.

        >>> Passes(forward=10, backward=10, teacher=10, evaluation=5, saved=20).cost()
        40.0
        """
        return float(self.forward + 2 * self.backward + teacher * self.teacher)


def members(module: nn.Module | None) -> int:
    """How many models a module runs at once: a group of peers has several."""
    return module.forward_passes if isinstance(module, Composite) else 1


class DerivedViews:
    """Views that are made of others when a batch is looked at; by default none."""

    def draw(self) -> DerivedViews:
        """The same for one batch, with all that is drawn for it."""
        return self

    def extend(self, batch: Batch) -> Batch:
        """The batch with the views that have inputs."""
        return batch

    def sources(self, views: tuple[str, ...]) -> tuple[str, ...]:
        """What is forwarded for these views."""
        return views

    def outputs(self, views: tuple[str, ...], of: Callable[[str], dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """The outputs by view and head of those that are not forwarded, from the outputs ``of`` others."""
        return {}

    def lacking(self, view: str, what: str) -> str | None:
        """Why a view has no ``labels`` or no ``ids``; None if it is not one of these."""
        return None


@dataclass(frozen=True)
class ForwardPlan:
    """How the views of a batch go through the student.

    ``graded`` views keep their graph; ``quiet`` ones serve only as targets. ``fused`` sends all of them through the
    model as one batch (shared batch statistics); otherwise each view runs by itself, quiet ones without a graph.
    ``autocast`` makes the context of the passes, ``derived`` further views of the rows.
    """

    graded: tuple[str, ...] = ("x",)
    quiet: tuple[str, ...] = ()
    fused: bool = True
    autocast: Callable[[], Any] = nullcontext
    derived: DerivedViews | None = None


class Dropout(NamedTuple):
    """So many further passes of the student with dropout on, as a source of outputs."""

    passes: int


Source = nn.Module | Dropout | None  # who answers: another module, further passes of the student, or (None) the student


class Forward:
    """One batch seen by one model; each view is forwarded at most once, however many terms look at it.

    `run` forwards the views of the plan; until then nothing is computed. ``module`` is the module whose weights are
    trained, where ``model`` is a wrapper around it; None for a plain function. ``keyed`` are the views whose sample ids
    were asked for, ``notes`` what a part saw in this step and learns in its update, by the part's key.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        batch: Batch,
        clock: TrainingClock,
        plan: ForwardPlan | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self.model, self.batch, self.clock, self.plan = model, batch, clock, plan or ForwardPlan()
        self.module = model if module is None and isinstance(model, nn.Module) else module
        self.derived: DerivedViews | None = None
        self.passes = Passes()
        self.keyed: set[str] = set()
        self.notes: dict[Hashable, Any] = {}
        self._outputs: dict[tuple[str, Source], dict[str, Tensor]] = {}
        self._skipped: dict[tuple[str, Source], int] = {}  # rows that a module was not asked about: answers are kept

    @property
    def owner(self) -> nn.Module:
        """The module whose weights are trained.

        Raises:
            SpaceError: the model is a plain function.
        """
        if self.module is None:
            raise SpaceError("the model is a plain function and has no weights that a teacher could follow")
        return self.module

    def run(self) -> Forward:
        """Forward the views of the plan, and return this.

        Raises:
            SpaceError: the batch has none of the views that terms learn on.
        """
        plan = self.plan
        graded, quiet = plan.graded, plan.quiet
        if plan.derived is not None:
            self.derived = plan.derived.draw()
            self.batch = self.derived.extend(self.batch)
            graded = self.derived.sources(graded)
            quiet = tuple(view for view in self.derived.sources(quiet) if view not in graded)
        if self.batch.keys().isdisjoint(plan.graded):
            raise SpaceError(
                f"the method looks at {' and '.join(map(repr, plan.graded))}, and the batch has none of it (it has: "
                f"{', '.join(map(repr, self.batch)) or 'nothing'}); give inputs under those names"
            )
        if plan.fused:
            self._forward((*graded, *quiet))
        else:
            for view in graded:
                self._forward((view,))
            with torch.no_grad():
                for view in quiet:
                    self._forward((view,))
        if self.derived is not None:
            made = self.derived.outputs((*plan.graded, *plan.quiet), lambda view: self._outputs[view, None])
            self._outputs |= {(view, None): heads for view, heads in made.items()}
        return self

    def _forward(self, views: tuple[str, ...]) -> None:
        """The student's outputs on those of the views that have rows, in one pass."""
        module, shown, xs, sizes = self.module, [], [], []
        for view in views:
            if view in self.batch and len(self.batch[view].x):
                shown.append(view)
                xs.append(self.batch[view].x)
                sizes.append(len(xs[-1]))
        if not shown:
            return
        rows = sum(sizes)
        if isinstance(module, Composite):
            rows *= module.forward_passes * (module.copies if module.training else 1)
        self.passes += Passes(rows, rows if torch.is_grad_enabled() else 0)
        if len(shown) == 1:
            self._outputs[shown[0], None] = self._named(self.model, xs[0])
            return
        named = self._named(self.model, torch.cat(xs))
        parts = {head: torch.split(value, sizes) for head, value in named.items()}
        for i, view in enumerate(shown):
            self._outputs[view, None] = {head: values[i] for head, values in parts.items()}

    def _named(self, model: Callable[[Tensor], Any], x: Tensor) -> dict[str, Tensor]:
        with self.plan.autocast():
            output = model(x)
        if isinstance(output, Tensor):
            return {"": output}
        if not isinstance(output, Mapping):
            raise SpaceError(
                f"the model returned a {type(output).__name__}; a tensor or a mapping of named tensors is wanted"
            )
        named: dict[str, Any] = {h: v for h, v in output.items() if isinstance(v, Projection | Tensor) and len(v.shape)}
        if isinstance(self.module, LargeModel) and model is self.model:
            named |= self.module.heads(named)
        return named

    def rows(self, view: str) -> int:
        """How many rows a view has in this batch; an absent view has none."""
        return len(self.batch[view].x) if view in self.batch else 0

    def student(self, view: str, head: str = "logits") -> Tensor:
        """The student's output, with gradient: (rows, ..., components), float32.

        Raises:
            SpaceError: the batch has no such view, or the model no such head.
        """
        outputs = self._outputs.get((view, None))
        if outputs is None:
            raise self._absent(view)
        value = outputs.get(head)
        if value is None:  # a bare tensor is the main head
            value = outputs[""] if head in MAIN and "" in outputs else output_of(outputs, head)
        return value.float()

    def teacher_output(self, module: nn.Module, view: str, head: str = "logits") -> Tensor:
        """Another module's output on a view, without gradient; each module sees each view once."""
        key = (view, module)
        if key not in self._outputs:
            self.passes += Passes(teacher=members(module) * self.rows(view))
            with torch.no_grad():
                self._outputs[key] = self._named(module, _as_weights(self._view(view).x, module))
        return output_of(self._outputs[key], head).float()

    def has_output(self, module: nn.Module, view: str) -> bool:
        """Was this module asked about the view in this step?"""
        return (view, module) in self._outputs

    def skip(self, module: nn.Module, view: str) -> None:
        """Note that a module's answers on a view are kept, and it is not asked."""
        self._skipped[view, module] = members(module) * self.rows(view)

    def cost(self) -> Passes:
        """What was computed, and what was saved; a module that another term did ask has saved nothing."""
        if not self._skipped:
            return self.passes
        return self.passes + Passes(saved=sum(n for key, n in self._skipped.items() if key not in self._outputs))

    def dropout_outputs(self, view: str, head: str, passes: int) -> Tensor:
        """The student's output in further passes, without gradient: (rows, passes, ..., components).

        Dropout draws anew in each; batch norm uses the rows of the view and keeps its running statistics.
        """
        key = (view, Dropout(passes))
        if key not in self._outputs:
            model = self.module or self.model
            self.passes += Passes(teacher=passes * members(self.module) * self.rows(view))
            with torch.no_grad(), _unmoved(self.module):
                outputs = [self._named(model, self._view(view).x) for _ in range(passes)]
            self._outputs[key] = {name: torch.stack([o[name] for o in outputs], dim=1) for name in outputs[0]}
        return output_of(self._outputs[key], head).float()

    def answer(self, x: Tensor, head: str = "logits", wrapped: bool = True) -> Tensor:
        """The student's output for other inputs, in a forward of its own: (rows, ..., components).

        Batch norm uses these rows and keeps its running statistics. Without ``wrapped`` the module itself is called,
        not the engine around it: for gradients that the engine is to know nothing of.
        """
        rows = members(self.module) * len(x)
        self.passes += Passes(rows, rows if torch.is_grad_enabled() else 0)
        with _unmoved(self.module):
            named = self._named(self.model if wrapped or self.module is None else self.module, x)
        return output_of(named, head).float()

    def with_weights(self, module: nn.Module, weights: Mapping[str, Tensor], x: Tensor, head: str = "logits") -> Tensor:
        """The output of a part of the student with other weights, in a forward of its own: (rows, ..., components).

        Batch norm uses these rows and keeps its running statistics. It can be differentiated twice.
        """
        self.passes += Passes(len(x), len(x) if torch.is_grad_enabled() else 0)

        def call(x: Tensor) -> Any:
            return functional_call(module, dict(weights), (x,))

        with _unmoved(module), sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            return output_of(self._named(call, x), head).float()

    def split(self, share: float) -> tuple[Forward, Forward]:
        """The first rows of every view, and the rest, each with what was answered of the whole."""
        cuts = {view: int(share * len(rows.x)) for view, rows in self.batch.items()}
        first = self._part({view: slice(0, cut) for view, cut in cuts.items()})
        return first, self._part({view: slice(cut, None) for view, cut in cuts.items()})

    def _part(self, cuts: Mapping[str, slice]) -> Forward:
        """The same for some rows of each view."""
        part = copy.copy(self)
        part.batch, part.passes, part.keyed, part._skipped = Batch(), Passes(), set(), {}
        for view, (x, y, ids, *_) in self.batch.items():
            cut = cuts[view]
            part.batch[view] = Rows(x[cut], y if y is None else y[cut], ids if ids is None else ids[cut])
        part.batch.fixed = self.batch.fixed
        part.batch.addresses = {view: a[cuts[view]] for view, a in self.batch.addresses.items()}
        part._outputs = {
            (view, source): {head: value[cuts[view]] for head, value in outputs.items()}
            for (view, source), outputs in self._outputs.items()
        }
        return part

    def labels(self, view: str) -> Tensor:
        """Labels of a view's rows; -1 (or nan) where a row has none."""
        rows = self.batch[view] if view in self.batch else self._view(view)
        if rows.y is None:
            raise SpaceError(
                self._lacking(view, "labels") or f"view {view!r} carries no labels; give the batch its 'y'"
            )
        if rows.y.dim() == 0 or len(rows.y) != len(rows.x):
            raise self._uneven(view, "labels", rows.y)
        return rows.y if rows.y.is_floating_point() else rows.y.long()

    def ids(self, view: str) -> Tensor:
        """Sample ids of a view's rows: what memories are keyed by."""
        rows = self.batch[view] if view in self.batch else self._view(view)
        if rows.id is None:
            raise SpaceError(
                self._lacking(view, "ids")
                or f"view {view!r} carries no sample ids, which a memory is keyed by; give the batch its 'id'"
            )
        if rows.id.is_floating_point():
            raise SpaceError(f"the sample ids of view {view!r} are {rows.id.dtype}; they are whole numbers")
        if rows.id.dim() == 0 or len(rows.id) != len(rows.x):
            raise self._uneven(view, "sample ids", rows.id)
        self.keyed.add(view)
        return rows.id.long()

    def addresses(self, view: str) -> Tensor:
        """What a fixed view's rows are remembered by: their sample ids, or the numbers of sample and way."""
        return self.batch.addresses.get(view, self.ids(view))

    def _lacking(self, view: str, what: str) -> str | None:
        return None if self.derived is None else self.derived.lacking(view, what)

    def _uneven(self, view: str, what: str, value: Tensor) -> SpaceError:
        rows = self.rows(view)
        return SpaceError(f"view {view!r} has {rows} rows and {what} of shape {tuple(value.shape)}; give one a row")

    def _view(self, view: str) -> Rows:
        if view not in self.batch:
            raise self._absent(view)
        return self.batch[view]

    def _absent(self, view: str) -> SpaceError:
        if view in self.batch:
            return SpaceError(f"no term looks at view {view!r}, so the model was not asked about it; add one that does")
        have = ", ".join(sorted(self.batch)) or "none"
        return SpaceError(f"view {view!r} is not in the batch (views there: {have}); name it in the method's views")

    def release(self) -> None:
        """Cut the outputs off their graph; what the states need for their update stays."""
        for outputs in self._outputs.values():
            for head, value in outputs.items():
                outputs[head] = value.detach()


def _as_weights(x: Tensor, module: nn.Module) -> Tensor:
    """Inputs in the precision of a module's weights: a teacher may be float32 where the student is not."""
    first = next((p for p in module.parameters() if p.is_floating_point()), None)
    return x.to(first.dtype) if first is not None and x.is_floating_point() else x


@contextmanager
def _unmoved(module: nn.Module | None) -> Iterator[None]:
    """Within it batch norm takes the statistics of its batch, as in training, and adds nothing to its running ones."""
    norms = [m for m in (module.modules() if module is not None else ()) if isinstance(m, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm, tracks in zip(norms, before, strict=True):
            norm.track_running_stats = tracks
