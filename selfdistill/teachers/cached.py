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
from ..core.step import Clock, Forward
from ..core.targets import Target
from ..errors import DataError, RecipeError, SpaceError
from ..models.networks import Scaled
from ..views import Views
from .weights import External, Frozen, Generation

if TYPE_CHECKING:
    from ..io.target_store import Layout, Store


@dataclass(frozen=True)
class Cached(Frozen):
    """A frozen teacher that is asked once for each sample and look; ``folder`` keeps its answers on disk.

    The view shows each sample in one way (no augmentation) or in ``views`` ways, the same ones in every epoch and run.
    All ``dtype`` outputs are kept or, of many classes, the ``top`` most probable ones with their true probabilities,
    and the others as one mass that they share evenly: nothing is renormalised. What is learnt from is what was kept,
    in the first epoch too. The folder is bound to the teacher's weights, the head and the view, and each target to the
    bits of the input it was made for. Without a folder answers are kept in memory and in the checkpoint, as a frozen
    teacher does by itself on a view without augmentation.

    Raises:
        RecipeError: the teacher is not a frozen one, or something else than all outputs is kept in memory.

    >>> Cached(Frozen(), folder="targets", views=4, dtype="float16")
    Cached(teacher=Frozen(view=None), folder='targets', views=4, top=0, dtype='float16')
    """

    view: str | None = field(default=None, init=False, repr=False, compare=False)  # the teacher's own
    teacher: Frozen = Frozen()
    folder: str | None = None
    views: int = 1
    top: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, Frozen) or isinstance(self.teacher, Cached):
            raise RecipeError(
                f"Cached keeps what Frozen, Generation or External say, not {self.teacher!r}, which moves"
            )
        if self.views < 1:
            raise RecipeError(f"views counts the ways in which a sample is shown, from 1 on, not {self.views}")
        if self.folder is None and (self.top or self.dtype != "float32"):
            raise RecipeError("in memory all outputs are kept as they are; give Cached a folder, or leave out top")
        object.__setattr__(self, "view", self.teacher.view)

    @property
    def origin(self) -> Teacher:
        return self.teacher

    @property
    def stores(self) -> bool:
        return True

    def module(self, model: nn.Module, given: BindArgs) -> nn.Module | None:
        return self.teacher.module(model, given)

    def start(self, model: nn.Module, given: BindArgs) -> nn.Module:
        state = super().start(model, given)
        if isinstance(state, FrozenCopy) and self.folder is not None:
            from ..io.tensors import digest

            mark = digest(state.module.state_dict())
            place = Path(self.folder, mark) if isinstance(self.teacher, Generation) else Path(self.folder)
            bound = {"teacher": mark, "looks": str(self.views)}
            if isinstance(state.module, Scaled):
                bound["unit"] = repr(given.scale)
            state.said = Shelf(place, bound, self.top, self.dtype)
        return state

    def space(self, head: str) -> str:
        if self.top and space_of(head) != "logits":
            raise SpaceError(f"the most probable outputs are those of logits; the head {head!r} is of {space_of(head)}")
        return super().space(head)

    def target(self, state: nn.Module, step: Forward, term: BaseTerm) -> Target:
        view = self.view or term.view
        if isinstance(state, FrozenCopy) and view not in step.batch.fixed and (self.folder or self.views > 1):
            raise SpaceError(
                f"view {view!r} looks anew in every epoch, and Cached keeps what a teacher said of the same inputs; "
                "give the view no augmentation or Cached views=4, and in a loop of your own name it in batch.fixed"
            )
        if isinstance(state, FrozenCopy) and isinstance(state.said, Shelf):
            state.said.show(step.addresses(view), step.batch[view].x, view, term.head)
        return super().target(state, step, term)


def pinned(method: Method) -> Views:
    """The views of a method, where those that `Cached` keeps show each sample in so many ways only.

    Raises:
        RecipeError: two terms want different numbers for one view.

    >>> from ..losses import KL
    >>> pinned(Method({"t": Term(Cached(Frozen(), views=4), KL())})).looks[0].fixed
    4
    """
    numbers = dict[str, int]()
    for term in method.terms.values():
        teacher = term.teacher
        if isinstance(teacher, Cached) and teacher.views > 1:
            view = teacher.view or term.view
            if numbers.setdefault(view, teacher.views) != teacher.views:
                raise RecipeError(
                    f"view {view!r} is kept in {numbers[view]} and in {teacher.views} ways; give one number"
                )
    looks = method.views.looks
    return replace(method.views, looks=tuple(replace(look, fixed=numbers.get(look.name, look.fixed)) for look in looks))


def stored(method: Method, folder: str) -> Method:
    """The method with what its frozen outside teachers say kept below a folder, for this run and for later ones.

    Each teacher, view and head has a folder of its own there, named by the teacher's weights.

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
            of = digest(load_model(teacher.source).state_dict())[:12]
            place = Path(folder, f"{of}-{teacher.view or term.view}-{term.head}")
            terms[name] = replace(term, teacher=Cached(teacher, folder=str(place)))
    if terms == method.terms:
        raise RecipeError(
            "--targets keeps what a frozen outside teacher says, as in distil('RUN'), and the method has "
            "none; leave it out"
        )
    return replace(method, terms=terms)


def live(objective: Objective, cache: bool) -> None:
    """Without ``cache`` let frozen teachers be asked at every step: nothing that they say is kept.

    Raises:
        RecipeError: the method says that it is to be kept.
    """
    if cache:
        return
    for name, term in objective.method.terms.items():
        if term.teacher is not None and term.teacher.stores:
            raise RecipeError(f"term {name!r} has Cached keep what its teacher says; leave it or --no-cache out")
    for state in objective.states.modules():
        if isinstance(state, FrozenCopy):
            state.keeps = False


class Shelf(nn.Module):
    """Stands where a `Table` of what was said stands; its rows lie in a `Store`, opened when the first is asked for.

    Its state is how many targets there are: saving it brings them to the disk, where a resumed run finds them.
    """

    def __init__(self, folder: Path, bound: dict[str, str], top: int, dtype: str) -> None:
        super().__init__()
        self.folder, self.bound, self.top, self.dtype = folder, bound, top, dtype
        self.store: Store | None = None
        self._shown, self._marks, self._raw = torch.zeros(0), torch.zeros(0), torch.zeros(0)

    @property
    def width(self) -> int:
        return 0 if self.store is None else self.store.layout.width

    def _layout(self, width: int) -> Layout:
        from ..io.target_store import Dense, Top

        return Top(width, self.top) if self.top else Dense(width, self.dtype)

    def show(self, keys: Tensor, x: Tensor, view: str, head: str) -> None:
        """What the teacher sees now, of which view and for which head; opens the store if it is there.

        Raises:
            CheckpointError: the folder has targets of another teacher, view or head.
            DataError: a sample is another input than the one its target was made for.
        """
        from ..io.target_store import marks

        if self.store is None:
            self._open(view, head)
        self._shown, self._marks = keys.cpu(), marks(x)
        if len(keys) and int(self._shown.min()) < 0:
            raise DataError(f"sample ids count from 0; a batch has {int(self._shown.min())}, of which nothing is kept")
        known = self._known()
        if self.store is None or not bool(known.any()):
            return
        then = torch.from_numpy(self.store.marks(self._shown[known].numpy()))
        other = then != self._marks[known]
        if bool(other.any()):
            key = int(self._shown[known][other][0])
            raise DataError(
                f"{self.folder}: the target of key {key} of view {view!r} was made for another input (other data, or "
                "another augmentation); give another folder"
            )

    def _open(self, view: str, head: str) -> None:
        from ..io.target_store import CARD, Store

        self.bound |= {"view": view, "head": head}
        if (self.folder / CARD).exists():
            self.store = Store(self.folder, None, self.bound)
            self.store.require(self._layout(self.width))

    def _known(self) -> Tensor:
        if self.store is None:
            return torch.zeros(len(self._shown), dtype=torch.bool)
        return torch.from_numpy(self.store.known(self._shown.numpy()))

    def read(self, keys: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values (rows, width) and which of them are kept (rows,)."""
        known = self._known()
        if self.store is None or not bool(known.any()):
            return torch.zeros(len(keys), width, device=keys.device), known.to(keys.device)
        columns, _ = self.store.read(self._shown[known].numpy())
        values = self.store.layout.decode(columns)
        if not bool(known.all()):
            values = torch.zeros(len(keys), width).index_put((known,), values)
        return values.to(keys.device), known.to(keys.device)

    def rounded(self, values: Tensor) -> Tensor:
        """What will be read of them."""
        if values.dim() != 2:
            raise SpaceError(f"Cached keeps one row of outputs a sample, not {tuple(values.shape)}; take another head")
        self._raw, layout = values, self._layout(values.shape[1])
        return values if self.dtype == "float32" and not self.top else layout.decode(layout.encode(values)).to(values)

    def write_new(self, keys: Tensor, values: Tensor) -> None:
        """Keep what was said of the rows that were shown last; under several processes each keeps the rows of all."""
        from ..io.target_store import Store

        if not bool(distributed.add((~self._known()).any().float().to(keys.device))):
            return  # then nobody asked the teacher either
        keys, seen, raw = (distributed.gather(part) for part in (keys, self._marks.to(keys.device), self._raw))
        layout = self._layout(raw.shape[1])
        if self.store is None:
            self.store = Store(self.folder, layout, self.bound)
        self.store.write(keys.cpu().numpy(), layout.encode(raw), marks=seen.cpu().numpy())

    def settle(self, clock: Clock) -> None:
        """Bring the epoch's targets to the disk."""
        if self.store is not None and (clock.step + 1) % clock.per_epoch == 0:
            self.store.flush()

    def get_extra_state(self) -> Tensor:
        if self.store is not None:
            self.store.flush()
        return torch.tensor(0 if self.store is None else len(self.store))

    def set_extra_state(self, state: Tensor) -> None:
        """What is no longer there (a shard that was damaged, say) the teacher is asked for again."""
