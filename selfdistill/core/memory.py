"""Memories: one row per sample, keyed by sample id, so that no shuffling can mix them up; and running means."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from . import distributed
from .logits import Projection


class Buffers(nn.Module):
    """Buffers whose size is learnt from the data; loading takes the saved size."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in list(self._buffers):
            if prefix + name in state_dict:
                device = getattr(self, name).device  # the saved size, but where this module lives
                self._buffers[name] = state_dict[prefix + name].to(device, copy=True)
        super()._load_from_state_dict(dict(state_dict), prefix, *rest)


class Inherited(nn.Module):
    """A state of which the next generation inherits tensors, whatever model it begins with."""

    def carry(self) -> dict[str, Tensor]:
        """What later generations inherit, on the CPU."""
        raise NotImplementedError(f"{type(self).__name__} does not say what later generations inherit")

    def inherit(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what an earlier generation has left."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it inherits")


TABLE = 1 << 22  # ids below this, or below four times their number, are looked up in a table


BLOCK = 1 << 26  # bytes


class RowIndex:
    """The row of each sample id, counted from 1: a table by id, or sorted runs of ids where ids are large and few.

    A large id takes 12 bytes, whatever its size.
    """

    def __init__(self) -> None:
        self.count = 0
        self.table: Tensor | None = torch.zeros(0, dtype=torch.int32)
        self.runs: list[tuple[Tensor, Tensor]] = []  # ids ascending, and the row of each; each run is much shorter

    def find(self, ids: Tensor) -> Tensor:
        """The row of each id; 0 where it has none."""
        if self.table is not None:
            if len(ids) and int(ids.max()) >= len(self.table):
                inside = ids < len(self.table)
                rows = torch.zeros_like(ids)
                rows[inside] = self.table[ids[inside]].long()
                return rows
            return self.table[ids].long()
        rows = torch.zeros_like(ids)
        for run, places in self.runs:
            at = torch.searchsorted(run, ids).clamp_(max=len(run) - 1)
            rows = torch.where(run[at] == ids, places[at].long(), rows)
        return rows

    def add(self, ids: Tensor) -> None:
        """Give new ids, each of them once and ascending, the next rows."""
        first, self.count = self.count + 1, self.count + len(ids)
        rows = torch.arange(first, self.count + 1, dtype=torch.int32, device=ids.device)
        size = 1 << int(ids[-1]).bit_length()
        if self.table is not None and size > max(TABLE, 4 * self.count):
            known = self.table.nonzero().squeeze(1)
            self.runs = [(known, self.table[known])] if len(known) else []
            self.table = None
        if self.table is None:
            self._add_run(ids, rows)
            return
        if size > len(self.table):
            self.table = torch.cat([self.table, self.table.new_zeros(size - len(self.table))])
        self.table[ids] = rows

    def _add_run(self, ids: Tensor, rows: Tensor) -> None:
        """Runs of similar length become one, so that there are few of them."""
        self.runs.append((ids, rows))
        while len(self.runs) > 1 and 8 * len(self.runs[-1][0]) >= len(self.runs[-2][0]):
            (a, rows_a), (b, rows_b) = self.runs[-2:]
            ids, order = torch.cat([a, b]).sort()
            self.runs[-2:] = [(ids, torch.cat([rows_a, rows_b])[order])]

    def items(self) -> tuple[Tensor, Tensor]:
        """All ids, ascending, and their rows."""
        if self.table is not None:
            ids = self.table.nonzero().squeeze(1)
            return ids, self.table[ids].long()
        ids, order = torch.cat([run for run, _ in self.runs]).sort()
        return ids, torch.cat([rows for _, rows in self.runs])[order].long()

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.table = None if self.table is None else self.table.to(device)
        self.runs = [(ids.to(device), rows.to(device)) for ids, rows in self.runs]


class RowBlocks:
    """Rows of numbers that grow without being copied: in blocks of at most 64 MiB; row 0 is zero."""

    def __init__(self, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.width, self.dtype = width, dtype
        self.size = max(2, BLOCK // max(1, width * dtype.itemsize))  # rows of a whole block
        self.blocks = [torch.zeros(1, width, dtype=dtype, device=device)]
        self.room = 1  # rows of all blocks, row 0 among them

    def reserve(self, rows: int) -> None:
        """Make room for so many rows beside row 0; doubling keeps the cost of growing constant per row."""
        first, device = self.blocks[0], self.blocks[0].device
        if len(first) <= min(rows, self.size - 1):
            grown = min(self.size, 1 << max(rows, 1).bit_length())
            self.blocks[0] = torch.empty(grown, self.width, dtype=self.dtype, device=device)
            self.blocks[0][: len(first)] = first
        while len(self.blocks) * self.size <= rows:
            self.blocks.append(torch.empty(self.size, self.width, dtype=self.dtype, device=device))
        self.room = sum(len(block) for block in self.blocks)

    def take(self, rows: Tensor) -> Tensor:
        """The rows (n, width) of these numbers."""
        if len(self.blocks) == 1:
            return self.blocks[0][rows]
        values = torch.empty(len(rows), self.width, dtype=self.dtype, device=rows.device)
        for block, mine in self._by_block(rows):
            values[mine] = block[0][rows[mine] - block[1]]
        return values

    def put(self, rows: Tensor, values: Tensor) -> None:
        """Write rows that have room."""
        values = values.to(self.dtype)
        if len(self.blocks) == 1:
            self.blocks[0][rows] = values
            return
        for block, mine in self._by_block(rows):
            block[0][rows[mine] - block[1]] = values[mine]

    def _by_block(self, rows: Tensor) -> Iterator[tuple[tuple[Tensor, int], Tensor]]:
        number = rows // self.size
        for i in number.unique().tolist():
            yield (self.blocks[i], i * self.size), number == i


class SampleMemory(Buffers):
    """A value for each sample id, which grows with the number of ids, however large they are.

    Args:
        predictions: the values are predictions, which `compact` may store in fewer bits.
        distributions: they are probabilities, of which it may store the largest alone.

    >>> table = SampleMemory()
    >>> table.write(torch.tensor([1 << 60]), torch.tensor([[0.2, 0.8]]))
    >>> values, seen = table.read(torch.tensor([1 << 60, 1]), width=2)
    >>> seen.tolist(), values[0].tolist() == torch.tensor([0.2, 0.8]).tolist()
    ([True, False], True)
    """

    SAVED = frozenset({"index", "blocks", "width"})  # attributes that its `state_dict` holds

    def __init__(self, predictions: bool = False, distributions: bool = False) -> None:
        super().__init__()
        self.predictions, self.distributions = predictions, distributions
        self.dtype, self.top = torch.float32, 0
        self.index, self.blocks = RowIndex(), list[RowBlocks]()
        self.width = 0  # of a value

    def __len__(self) -> int:
        """The number of ids that were written."""
        return self.index.count

    @property
    def keys(self) -> Tensor:
        """The ids that were written (rows,), ascending."""
        return self.index.items()[0]

    @property
    def stored(self) -> Tensor:
        """Their values (rows, width), in the order of `keys`."""
        ids = self.keys
        return self.read(ids, self.width)[0] if self.blocks else torch.zeros(0, self.width, device=ids.device)

    def compact(self, dtype: torch.dtype, top: int = 0) -> None:
        """Store predictions in another precision, and of probabilities only the ``top`` largest of each row.

        The others share what is left of the row's sum. It has no effect on a memory of anything else.
        """
        self.dtype = dtype if self.predictions else torch.float32
        self.top = top if self.distributions else 0

    def row_bytes(self, width: int) -> int:
        """Bytes that a value of so many numbers takes, with its id."""
        size = self.dtype.itemsize
        return 12 + (self.top * (size + 4) + size if 0 < self.top < width else width * size)

    def rounded(self, values: Tensor) -> Tensor:
        """What will be read of values that are written."""
        return values if self.dtype == torch.float32 else values.to(self.dtype).float()

    def settle(self, clock: object) -> None:
        """A step is over."""

    def _apply(self, fn: Any, recurse: bool = True) -> SampleMemory:
        device = fn(torch.empty(0)).device  # values keep their precision
        self._move(device)
        return super()._apply(fn, recurse)  # type: ignore[no-any-return, no-untyped-call]

    def _move(self, device: torch.device) -> None:
        self.index.to(device)
        for part in self.blocks:
            part.blocks = [block.to(device) for block in part.blocks]

    def _rows(self, ids: Tensor, width: int) -> Tensor:
        """The row of each id, 0 for those without; values of another width take the place of all."""
        if len(ids) and int(ids.min()) < 0:
            raise DataError(
                f"sample ids count from 0; a batch has {int(ids.min())}, which would mix up samples in a memory"
            )
        if self.width != width or not self.blocks:
            self._start(width, ids.device)
        elif self.blocks[0].blocks[0].device != ids.device:
            self._move(ids.device)
        return self.index.find(ids)

    def _start(self, width: int, device: torch.device) -> None:
        self.index, self.width, k = RowIndex(), width, self.top
        self.index.to(device)
        sparse = 0 < k < width
        self.blocks = [RowBlocks(k + 1 if sparse else width, self.dtype, device)]
        self.blocks += [RowBlocks(k, torch.int32, device)] if sparse else []

    def read(self, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values (rows, width) and which of them were ever written (rows,)."""
        rows = self._rows(ids.long(), width)
        values = self.blocks[0].take(rows).float()
        if len(self.blocks) == 2:  # the largest, and what each of the others has
            columns = self.blocks[1].take(rows).long()
            values = values[:, -1:].expand(-1, width).scatter(1, columns, values[:, :-1])
        return values, rows > 0

    def write(self, ids: Tensor, values: Tensor) -> None:
        """Store rows; under several processes every process stores the rows of all."""
        ids, values = ids.long(), values.float()
        if distributed.size() > 1:
            ids, values = distributed.gather(ids), distributed.gather(values)
        rows = self._rows(ids, values.shape[1])
        if bool((rows == 0).any()):
            self.index.add(ids[rows == 0].unique())
            for part in self.blocks:
                if self.index.count >= part.room:
                    part.reserve(self.index.count)
            rows = self.index.find(ids)
        if len(self.blocks) == 2:
            largest, columns = values.topk(self.top, dim=1)
            rest = (values.sum(1, keepdim=True) - largest.sum(1, keepdim=True)) / (self.width - self.top)
            self.blocks[1].put(rows, columns)
            values = torch.cat([largest, rest], dim=1)
        self.blocks[0].put(rows, values)

    def write_new(self, ids: Tensor, values: Tensor) -> None:
        """Store the rows that were never written; what was written first stays."""
        new = self._rows(ids.long(), values.shape[1]) == 0
        self.write(ids[new], values[new])

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        ids, rows = self.index.items()
        destination[prefix + "keys"] = ids
        for name, part in zip(("values", "columns"), self.blocks, strict=False):
            destination[prefix + name] = part.take(rows)
        destination[prefix + "width"] = torch.tensor(self.width)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = {name: state_dict.get(prefix + name) for name in ("keys", "values", "columns", "width", "seen")}
        others = {name: value for name, value in state_dict.items() if name.removeprefix(prefix) not in own}
        super()._load_from_state_dict(others, prefix, *rest)
        ids, width = own["keys"], own["width"]
        if own["seen"] is not None and own["values"] is not None:  # written by id, before large ids were compact
            ids, width = own["seen"].nonzero().squeeze(1), own["values"].shape[1]
            own["values"] = own["values"][ids]
        if ids is None or width is None:
            rest[2].append(prefix + "keys")  # the names that are missing
            return
        device = self.blocks[0].blocks[0].device if self.blocks else ids.device
        self.index, self.blocks, self.width = RowIndex(), [], int(width)
        self.index.to(device)
        parts = [part for part in (own["values"], own["columns"]) if part is not None]
        if len(ids):
            self.index.add(ids.to(device))
        for part in parts:
            blocks = RowBlocks(part.shape[1], part.dtype, device)
            blocks.reserve(len(ids))
            blocks.put(torch.arange(1, len(ids) + 1, device=device), part.to(device))
            self.blocks.append(blocks)


def averages(decay: float) -> None:
    """Refuse what no running mean can keep of itself a step.

    Raises:
        RecipeError: a decay outside [0, 1).
    """
    if not 0.0 <= decay < 1.0:
        raise RecipeError(f"the decay of a running mean lies in [0, 1), not {decay}")


def spoken(p: Tensor, valid: Tensor | None) -> Tensor:
    """Distributions (rows, ..., classes) of the elements that say something, of all processes: (elements, classes)."""
    return distributed.gather(p.flatten(0, -2) if valid is None else p[valid])


class WeightView(nn.Module):
    """Weights of a teacher that answer through the student's own layers, so that no second model is in memory."""

    def follow(self, student: nn.Module, share: float) -> None:
        """Move by this share of the distance to the student's weights."""
        raise RecipeError(f"{type(self).__name__} holds weights that do not follow the student")


class LargeModel(nn.Module):
    """A model that is too large to be copied, and has too many logits to hold them all.

    It says how its logits are read from its outputs, and how the weights of a teacher are held: as a copy, with an
    adapter switched off, or put in the place of its own for one look.
    """

    def logits(self, outputs: Mapping[str, Tensor]) -> Projection | Tensor:
        """Logits of its outputs, mostly lazy."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its logits are read")

    def frozen(self) -> nn.Module:
        """The weights that training began with."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds a frozen teacher")

    def holding(self, other: nn.Module) -> nn.Module:
        """The weights of another model of its kind, as they are now."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds other weights")

    def average(self) -> nn.Module:
        """Its weights as they are now, to `follow` it as a moving average."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds an average")

    def external(self, source: str | None, module: nn.Module | None) -> nn.Module:
        """Another model: the one that is given, or that of a name or folder."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds another model")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within the wrappers of `torch.compile` and of DDP, whose names have no prefix.

    >>> model = nn.Linear(3, 2)
    >>> unwrapped(torch.compile(model)) is model
    True
    """
    while True:
        if "_orig_mod" in model._modules:
            model = model.get_submodule("_orig_mod")
        elif isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            model = model.module
        else:
            return model


def copy_model(model: nn.Module) -> nn.Module:
    """A copy of a model in float32, which shares nothing with it.

    Weights that a hook computes before each pass (the old ``weight_norm``) are copied as numbers.

    Raises:
        RecipeError: the model holds something that cannot be copied.
    """
    model, numbers = unwrapped(model), dict[int, Any]()
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                numbers[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, numbers).float()
    except (TypeError, RuntimeError, AttributeError, ValueError) as error:
        raise RecipeError(
            f"a teacher needs a copy of the model, and {type(model).__name__} cannot be copied "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}); "
            "give it a __deepcopy__, or keep locks, files and generators out of its attributes"
        ) from error


class FrozenCopy(nn.Module):
    """A module that no optimizer touches, in a mode that no outer ``train()`` changes; caches its outputs."""

    def __init__(self, module: nn.Module, train: bool = False) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.cache: Any = SampleMemory()  # or StoredTargets
        self.cacheable = True
        self._mode = train
        self.train(train)

    def train(self, mode: bool = True) -> FrozenCopy:
        super().train(self._mode)
        return self
