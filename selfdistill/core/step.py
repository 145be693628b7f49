"""One step: what is looked at (`Batch`), when (`Clock`), and what the models say about it (`Step`)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Beta
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import SpaceError
from .logits import Projection
from .memory import LargeModel
from .outputs import Composite, output_of

BETWEEN = "between"  # the view that is not forwarded: what is said of "x", mixed


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
    def of(cls, batch: Mapping[str, Any]) -> Batch:
        if isinstance(batch, Batch):
            return batch
        y, ids = batch.get("y"), batch.get("id")
        views = {name: value for name, value in batch.items() if name not in ("y", "id")}
        return cls({name: cls._rows(v, y, ids) for name, v in views.items()})

    @staticmethod
    def _rows(view: Any, y: Tensor | None, ids: Tensor | None) -> Rows:
        """A view's rows; one with labels and ids of its own is a mapping ``{"x": ..., "y": ..., "id": ...}``."""
        if isinstance(view, Mapping):
            return Rows(view["x"], view.get("y"), view.get("id"))
        return view if isinstance(view, Rows) else Rows(view, y, ids)


@dataclass(frozen=True)
class Clock:
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

    def at(self, step: int) -> Clock:
        """The same run at another step of this generation."""
        return replace(self, step=step, epoch=min(step // self.per_epoch, self.epochs - 1))


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
        return Passes(*(a + b for a, b in zip(self, other, strict=True)))

    def cost(self, teacher: float = 1.0) -> float:
        """Forward 1, backward 2; a teacher's forward costs ``teacher`` times the student's.

        >>> Passes(forward=10, backward=10, teacher=10, evaluation=5, saved=20).cost()
        40.0
        """
        return float(self.forward + 2 * self.backward + teacher * self.teacher)


def members(module: nn.Module | None) -> int:
    """How many models a module runs at once: a group of peers has several."""
    return module.each if isinstance(module, Composite) else 1


def copies(module: nn.Module | None) -> int:
    """How many copies of a row a module looks at: in training some transform it in several ways."""
    return module.copies if isinstance(module, Composite) and module.training else 1


class Step:
    """One batch seen by one model; each view is forwarded at most once, however many terms look at it.

    ``graded`` views keep their graph; ``quiet`` ones serve only as targets. ``fused`` sends all of them through the
    model as one batch (shared batch statistics); otherwise each view runs by itself, quiet ones without a graph.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        batch: Batch,
        clock: Clock,
        graded: tuple[str, ...] = ("x",),
        quiet: tuple[str, ...] = (),
        fused: bool = True,
        autocast: Callable[[], Any] = nullcontext,
        owner: nn.Module | None = None,
        mixing: float = 0.0,
    ) -> None:
        self.share = float(Beta(mixing, mixing).sample()) if mixing else 1.0  # of a row beside its partner
        batch = _with_mixtures(batch, self.share) if mixing else batch
        self.model, self.batch, self.clock, self.autocast = model, batch, clock, autocast
        self.owner = owner  # the module whose weights are trained, where ``model`` is a wrapper around it
        self.passes = Passes()
        self.keyed: set[str] = set()  # the views whose sample ids were asked for
        self.notes: dict[Hashable, Any] = {}  # what a part saw in this step and learns in its update, by the part's key
        self._outputs: dict[str | tuple[int, str], dict[str, Tensor]] = {}  # by view: of the student, or of a module
        self._spared: dict[tuple[int, str], int] = {}  # rows that a module was not asked about, its answers being kept
        if not any(view in batch for view in graded):
            raise SpaceError(
                f"the method looks at {' and '.join(map(repr, graded))}, and the batch has none of it (it has: "
                f"{', '.join(map(repr, batch)) or 'nothing'}); give inputs under those names"
            )
        between = BETWEEN in (*graded, *quiet)
        names = (*graded, "x") if between and "x" not in graded else graded
        self._graded, self._quiet = ([v for v in n if self.rows(v) and v != BETWEEN] for n in (names, quiet))
        if fused:
            self._forward(self._graded + self._quiet)
        else:
            for view in self._graded:
                self._forward([view])
            with torch.no_grad():
                for view in self._quiet:
                    self._forward([view])
        if between:
            self._outputs[BETWEEN] = {head: self.mixed(value) for head, value in self._outputs["x"].items()}

    @property
    def trained(self) -> nn.Module:
        """The module whose weights are trained."""
        module = self.model if self.owner is None else self.owner
        if not isinstance(module, nn.Module):
            raise SpaceError("the model is a plain function and has no weights that a teacher could follow")
        return module

    def rows(self, view: str) -> int:
        """How many rows a view has in this batch; an absent view has none."""
        return len(self.batch[view].x) if view in self.batch else 0

    def mixed(self, value: Tensor) -> Tensor:
        """Rows mixed with their partners by this step's share: the first with the last, and so on."""
        return self.share * value + (1.0 - self.share) * value.flip(0)

    def _forward(self, views: list[str]) -> None:
        if not views:
            return
        xs = [self.batch[view].x for view in views]
        rows = members(self.owner) * copies(self.owner) * sum(map(len, xs))
        self.passes += Passes(forward=rows, backward=rows if torch.is_grad_enabled() else 0)
        if len(xs) == 1:
            self._outputs[views[0]] = self._named(self.model, xs[0])
            return
        named = self._named(self.model, torch.cat(xs))
        parts = {head: torch.split(value, [len(x) for x in xs]) for head, value in named.items()}
        for i, view in enumerate(views):
            self._outputs[view] = {head: values[i] for head, values in parts.items()}

    def _named(self, model: Callable[[Tensor], Any], x: Tensor) -> dict[str, Tensor]:
        with self.autocast():
            output = model(x)
        if isinstance(output, Tensor):
            return {"": output}
        if not isinstance(output, Mapping):
            raise SpaceError(
                f"the model returned a {type(output).__name__}; a tensor or a mapping of named tensors is wanted"
            )
        named: dict[str, Any] = {h: v for h, v in output.items() if isinstance(v, Projection | Tensor) and len(v.shape)}
        if isinstance(self.owner, LargeModel) and model is self.model:
            named["logits"] = self.owner.logits(named)
        return named

    def student(self, view: str, head: str = "logits") -> Tensor:
        """The student's output, with gradient: (rows, ..., components), float32.

        Raises:
            SpaceError: the batch has no such view, or the model no such head.
        """
        if view not in self._outputs:
            raise self._absent(view)
        return output_of(self._outputs[view], head).float()

    def look(self, module: nn.Module, view: str, head: str = "logits") -> Tensor:
        """Another module's output on a view, without gradient; each module sees each view once."""
        key = (id(module), view)
        if key not in self._outputs:
            self.passes += Passes(teacher=members(module) * self.rows(view))
            with torch.no_grad():
                self._outputs[key] = self._named(module, _as_weights(self._view(view).x, module))
        return output_of(self._outputs[key], head).float()

    def spare(self, module: nn.Module, view: str) -> None:
        """Note that a module's answers on a view are kept, and it is not asked."""
        self._spared[id(module), view] = members(module) * self.rows(view)

    def spent(self) -> Passes:
        """What was computed, and what was saved; a module that another term did ask has saved nothing."""
        return self.passes + Passes(saved=sum(n for key, n in self._spared.items() if key not in self._outputs))

    def drawn(self, view: str, head: str, passes: int) -> Tensor:
        """The student's output in further passes, without gradient: (rows, passes, ..., components).

        Dropout draws anew in each; batch norm uses the rows of the view and keeps its running statistics.
        """
        key = (-passes, view)  # no module has such an id
        if key not in self._outputs:
            module = self.owner or self.model
            self.passes += Passes(teacher=passes * members(self.owner) * self.rows(view))
            with torch.no_grad(), _unmoved(self.owner):
                said = [self._named(module, self._view(view).x) for _ in range(passes)]
            self._outputs[key] = {name: torch.stack([s[name] for s in said], dim=1) for name in said[0]}
        return output_of(self._outputs[key], head).float()

    def answer(self, x: Tensor, head: str = "logits", wrapped: bool = True) -> Tensor:
        """The student's output for other inputs, in a forward of its own: (rows, ..., components).

        Batch norm uses these rows and keeps its running statistics. Without ``wrapped`` the module itself is called,
        not the engine around it: for gradients that the engine is to know nothing of.
        """
        grown = torch.is_grad_enabled()
        rows = members(self.owner) * len(x)
        self.passes += Passes(forward=rows, backward=rows if grown else 0)
        with _unmoved(self.owner):
            named = self._named(self.model if wrapped or self.owner is None else self.owner, x)
        return output_of(named, head).float()

    def otherwise(self, module: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The logits of a part of the student with other weights, in a forward of its own: (rows, ..., classes).

        Batch norm uses these rows and keeps its running statistics. It can be differentiated twice.
        """
        grown = torch.is_grad_enabled()
        self.passes += Passes(forward=len(x), backward=len(x) if grown else 0)

        def speak(x: Tensor) -> Any:
            return functional_call(module, dict(weights), (x,))

        with _unmoved(module), sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            return output_of(self._named(speak, x), "logits").float()

    def parted(self, share: float) -> tuple[Step, Step]:
        """The first rows of every view, and the rest: as two steps that hold what was said of the whole."""
        parts = (copy.copy(self), copy.copy(self))
        for i, part in enumerate(parts):
            part.batch, part.passes, part.keyed, cuts = Batch(), Passes(), set(), dict[str, slice]()
            part._spared = {}
            for view, (x, y, ids, *_) in self.batch.items():
                cut = cuts[view] = slice(*[(0, int(share * len(x))), (int(share * len(x)), None)][i])
                part.batch[view] = Rows(x[cut], y if y is None else y[cut], ids if ids is None else ids[cut])
            part.batch.fixed = self.batch.fixed
            part.batch.addresses = {view: a[cuts[view]] for view, a in self.batch.addresses.items()}
            part._outputs = {
                key: {head: value[cuts[key if isinstance(key, str) else key[1]]] for head, value in outputs.items()}
                for key, outputs in self._outputs.items()
            }
        return parts

    def asked(self, module: nn.Module, view: str) -> bool:
        """Was this module asked about the view in this step?"""
        return (id(module), view) in self._outputs

    def labels(self, view: str) -> Tensor:
        """Labels of a view's rows; -1 (or nan) where a row has none."""
        y = self._view(view).y
        if y is None and view == "mixed":
            raise SpaceError(
                "a row of view 'mixed' has two labels; MixedLabels gives both, and a gate must ask for none"
            )
        if y is None:
            raise SpaceError(f"view {view!r} carries no labels; give the batch its 'y'")
        return self._for_each_row(view, "labels", y)

    def ids(self, view: str) -> Tensor:
        """Sample ids of a view's rows: what memories are keyed by."""
        ids = self._view(view).id
        if ids is None and view == "mixed":
            raise SpaceError("a row of view 'mixed' is two samples and has no id; remember those of view 'x'")
        if ids is None:
            raise SpaceError(
                f"view {view!r} carries no sample ids, which a memory is keyed by; give the batch its 'id'"
            )
        if ids.is_floating_point():
            raise SpaceError(f"the sample ids of view {view!r} are {ids.dtype}; they are whole numbers")
        self.keyed.add(view)
        return self._for_each_row(view, "sample ids", ids)

    def addresses(self, view: str) -> Tensor:
        """What a fixed view's rows are remembered by: their sample ids, or the numbers of sample and way."""
        return self.batch.addresses.get(view, self.ids(view))

    def _for_each_row(self, view: str, what: str, given: Tensor) -> Tensor:
        rows = len(self._view(view).x)
        if given.dim() == 0 or len(given) != rows:
            raise SpaceError(f"view {view!r} has {rows} rows and {what} of shape {tuple(given.shape)}; give one a row")
        return given

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


def _with_mixtures(batch: Batch, share: float) -> Batch:
    """The batch with the views ``mixed`` and ``between``; see `views`."""
    x = batch["x"].x if "x" in batch else None
    if x is None or not x.is_floating_point():
        raise SpaceError("rows are mixed by their numbers: the batch needs a view 'x' of floating-point inputs")
    whole = Batch({**batch, "mixed": Rows(share * x + (1.0 - share) * x.flip(0)), BETWEEN: batch["x"]})
    whole.fixed = batch.fixed
    return whole


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
