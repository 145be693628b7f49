"""The cached teacher: the predictions of a frozen teacher, computed once for each sample and view and kept on disk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.memory import FrozenCopy
from ..core.objective import Method, Objective
from ..core.outputs import space_of
from ..core.parts import BaseTerm, BindArgs, Teacher, Term
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..errors import DataError, RecipeError, SpaceError
from ..models.networks import Scaled
from ..views import Views
from .weights import External, Frozen, Generation

if TYPE_CHECKING:
    from ..io.target_store import Layout, Store


@dataclass(frozen=True)
class CachedTeacher(Frozen):
    """A frozen teacher whose output is computed once for each sample and augmentation and stored in ``folder``.

    The view has one augmentation of each sample (none at all) or ``views`` fixed ones, equal in every epoch and run.
    The store holds all outputs as ``dtype`` or, for many classes, the ``top`` most probable ones with their true
    probabilities; the others share the remaining mass evenly, so nothing is renormalised. The student learns from the
    stored values, in the first epoch too. The folder is bound to the teacher's weights, the head and the view, and each
    target to the bits of its input. Without a folder the outputs are kept in memory and in the checkpoint, as a frozen
    teacher does by itself on a view without augmentation.

    Raises:
        RecipeError: the teacher is not frozen, or ``top`` or another ``dtype`` comes without a folder.

    >>> CachedTeacher(Frozen(), folder="targets", views=4, dtype="float16")
    CachedTeacher(teacher=Frozen(view=None), folder='targets', views=4, top=0, dtype='float16')
    """

    view: str | None = field(default=None, init=False, repr=False, compare=False)  # the teacher's own
    teacher: Frozen = Frozen()
    folder: str | None = None
    views: int = 1
    top: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Frozen) or isinstance(self.teacher, CachedTeacher):
            raise RecipeError(
                f"CachedTeacher takes Frozen, Generation or External, not {self.teacher!r}, whose weights change"
            )
        if self.views < 1:
            raise RecipeError(f"views counts the ways in which a sample is shown, from 1 on, not {self.views}")
        if self.folder is None and (self.top or self.dtype != "float32"):
            raise RecipeError("top and dtype are for outputs on disk; give CachedTeacher a folder, or leave them out")
        object.__setattr__(self, "view", self.teacher.view)

    @property
    def origin(self) -> Teacher:
        return self.teacher

    @property
    def stores(self) -> bool:
        return True

    def module(self, model: nn.Module, args: BindArgs) -> nn.Module | None:
        return self.teacher.module(model, args)

    def start(self, model: nn.Module, args: BindArgs) -> nn.Module:
        state = super().start(model, args)
        if isinstance(state, FrozenCopy) and self.folder is not None:
            from ..io.tensors import digest

            fingerprint = digest(state.module.state_dict())
            folder = Path(self.folder, fingerprint) if isinstance(self.teacher, Generation) else Path(self.folder)
            metadata = {"teacher": fingerprint, "looks": str(self.views)}
            if isinstance(state.module, Scaled):
                metadata["unit"] = repr(args.scale)
            state.cache = StoredTargets(folder, metadata, self.top, self.dtype)
        return state

    def space(self, head: str) -> str:
        if self.top and space_of(head) != "logits":
            raise SpaceError(f"the most probable outputs are those of logits; the head {head!r} is of {space_of(head)}")
        return super().space(head)

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        view = self.view or term.view
        if isinstance(state, FrozenCopy) and view not in forward.batch.fixed and (self.folder or self.views > 1):
            raise SpaceError(
                f"view {view!r} has other augmentations in every epoch, and CachedTeacher stores outputs for equal "
                "inputs; give the view no augmentation or CachedTeacher views=4, and in a loop of your own name it in "
                "batch.fixed"
            )
        if isinstance(state, FrozenCopy) and isinstance(state.cache, StoredTargets):
            state.cache.show(forward.addresses(view), forward.batch[view].x, view, term.head)
        return super().target(state, forward, term)


def fixed_views(method: Method) -> Views:
    """The views of a method, where those that `CachedTeacher` keeps show each sample in so many ways only.

    Raises:
        RecipeError: two terms want different numbers for one view.

    >>> from ..losses import KL
    >>> fixed_views(Method({"t": Term(CachedTeacher(Frozen(), views=4), KL())})).views[0].fixed
    4
    """
    numbers = dict[str, int]()
    for term in method.terms.values():
        teacher = term.teacher
        if isinstance(teacher, CachedTeacher) and teacher.views > 1:
            view = teacher.view or term.view
            if numbers.setdefault(view, teacher.views) != teacher.views:
                raise RecipeError(
                    f"view {view!r} has {numbers[view]} and {teacher.views} fixed augmentations; give one number"
                )
    views = method.views.views
    return replace(method.views, views=tuple(replace(view, fixed=numbers.get(view.name, view.fixed)) for view in views))


def store_targets(method: Method, folder: str) -> Method:
    """The method with the outputs of its frozen external teachers stored below a folder, for this run and later ones.

    Each teacher, view and head has a folder of its own, named by a digest of the teacher's weights.

    Raises:
        RecipeError: the method has no such teacher.
        CheckpointError: a teacher's folder has no model.
    """
    from ..io.tensors import digest
    from ..models.store import load_model

    terms = dict(method.terms)
    for name, term in method.terms.items():
        teacher = term.teacher
        if isinstance(term, Term) and isinstance(teacher, External) and teacher.source is not None:
            fingerprint = digest(load_model(teacher.source).state_dict())[:12]
            path = Path(folder, f"{fingerprint}-{teacher.view or term.view}-{term.head}")
            terms[name] = replace(term, teacher=CachedTeacher(teacher, folder=str(path)))
    if terms == method.terms:
        raise RecipeError(
            "--targets stores the outputs of a frozen external teacher, as in distil('RUN'), and the method has none; "
            "leave it out"
        )
    return replace(method, terms=terms)


def set_cache(objective: Objective, cache: bool) -> None:
    """Set whether frozen teachers keep their outputs; without ``cache`` they are computed in every step.

    Raises:
        RecipeError: ``cache`` is False and the method has a `CachedTeacher`.
    """
    if cache:
        return
    for name, term in objective.method.terms.items():
        if term.teacher is not None and term.teacher.stores:
            raise RecipeError(f"term {name!r} has a CachedTeacher, which needs the cache; leave it or --no-cache out")
    for state in objective.states.modules():
        if isinstance(state, FrozenCopy):
            state.cacheable = False


class StoredTargets(nn.Module):
    """A memory of outputs whose rows lie in a `Store` on disk, opened at the first use.

    Its state is the number of targets. Saving it flushes the store, so that a resumed run finds them on disk.
    """

    def __init__(self, folder: Path, metadata: dict[str, str], top: int, dtype: str) -> None:
        super().__init__()
        self.folder, self.bound, self.top, self.dtype = folder, metadata, top, dtype
        self.store: Store | None = None
        self._keys, self._marks, self._raw = torch.zeros(0), torch.zeros(0), torch.zeros(0)

    @property
    def width(self) -> int:
        return 0 if self.store is None else self.store.layout.width

    def _layout(self, width: int) -> Layout:
        from ..io.target_store import Dense, Top

        return Top(width, self.top) if self.top else Dense(width, self.dtype)

    def show(self, keys: Tensor, x: Tensor, view: str, head: str) -> None:
        """Set the inputs of the current batch with their view and head; opens the store if it exists.

        Raises:
            CheckpointError: the folder has targets of another teacher, view or head.
            DataError: the input of a sample differs from the one that its target was computed for.
        """
        from ..io.target_store import marks

        if self.store is None:
            self._open(view, head)
        self._keys, self._marks = keys.cpu(), marks(x)
        if len(keys) and int(self._keys.min()) < 0:
            raise DataError(
                f"sample ids count from 0, so that a store can hold them; a batch has {int(self._keys.min())}"
            )
        stored = self._is_stored()
        if self.store is None or not bool(stored.any()):
            return
        stored_marks = torch.from_numpy(self.store.marks(self._keys[stored].numpy()))
        changed = stored_marks != self._marks[stored]
        if bool(changed.any()):
            key = int(self._keys[stored][changed][0])
            raise DataError(
                f"{self.folder}: the target of key {key} of view {view!r} was computed for another input (other data, "
                "or another augmentation); give another folder"
            )

    def _open(self, view: str, head: str) -> None:
        from ..io.target_store import CARD, Store

        self.bound |= {"view": view, "head": head}
        if (self.folder / CARD).exists():
            self.store = Store(self.folder, None, self.bound)
            self.store.require(self._layout(self.width))

    def _is_stored(self) -> Tensor:
        if self.store is None:
            return torch.zeros(len(self._keys), dtype=torch.bool)
        return torch.from_numpy(self.store.contains(self._keys.numpy()))

    def read(self, keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values (rows, width) and a mask (rows,) of the stored ones."""
        stored = self._is_stored()
        if self.store is None or not bool(stored.any()):
            return torch.zeros(len(keys), width, device=keys.device), stored.to(keys.device)
        columns, _ = self.store.read(self._keys[stored].numpy())
        values = self.store.layout.decode(columns)
        if not bool(stored.all()):
            values = torch.zeros(len(keys), width).index_put((stored,), values)
        return values.to(keys.device), stored.to(keys.device)

    def rounded(self, values: Tensor) -> Tensor:
        """The values as the store will return them."""
        if values.dim() != 2:
            raise SpaceError(
                f"CachedTeacher stores one row of outputs a sample, not {tuple(values.shape)}; take another head"
            )
        self._raw, layout = values, self._layout(values.shape[1])
        return values if self.dtype == "float32" and not self.top else layout.decode(layout.encode(values)).to(values)

    def write_new(self, keys: Tensor, values: Tensor) -> None:
        """Store the outputs of the current batch; under several processes each one stores the rows of all."""
        from ..io.target_store import Store

        if not bool(distributed.add((~self._is_stored()).any().float().to(keys.device))):
            return  # then no process ran the teacher either
        keys, marks, raw = (distributed.gather(part) for part in (keys, self._marks.to(keys.device), self._raw))
        layout = self._layout(raw.shape[1])
        if self.store is None:
            self.store = Store(self.folder, layout, self.bound)
        self.store.write(keys.cpu().numpy(), layout.encode(raw), marks=marks.cpu().numpy())

    def settle(self, clock: TrainingClock) -> None:
        """Flush the store at the end of an epoch."""
        if self.store is not None and (clock.step + 1) % clock.per_epoch == 0:
            self.store.flush()

    def get_extra_state(self) -> Tensor:
        if self.store is not None:
            self.store.flush()
        return torch.tensor(0 if self.store is None else len(self.store))

    def set_extra_state(self, state: Tensor) -> None:
        """Do nothing: targets that are missing (in a damaged shard, say) are computed again."""
