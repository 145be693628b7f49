"""Memories: one row per sample, keyed by sample id, so that no shuffling can mix them up; and running means."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, RecipeError
from ..rng import mix_tensor
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


FULL = 0.7  # the share of the hash table that may be in use: a search takes some three trials at most, on average


LEAST, CHUNK = 1 << 10, 1 << 16  # its smallest number of places, and the ids that are put into it at a time


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

    def used(self, rows: int) -> Iterator[Tensor]:
        """The blocks of rows 1 to ``rows``, without a copy."""
        for i, block in enumerate(self.blocks):
            part = block[int(i == 0) : rows + 1 - i * self.size]
            if len(part) or i == 0:
                yield part

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.blocks = [block.to(device) for block in self.blocks]

    def _by_block(self, rows: Tensor) -> Iterator[tuple[tuple[Tensor, int], Tensor]]:
        number = rows // self.size
        for i in number.unique().tolist():
            yield (self.blocks[i], i * self.size), number == i


class RowIndex:
    """The row of each sample id, counted from 1: a table by id, or a hash table where ids are large and few.

    A large id takes 14 to 16 bytes, whatever its size, and no more while the table grows. A place is tried after the
    other (random probing), and a place holds the row alone, whose id is kept by row.
    """

    def __init__(self) -> None:
        self.count = 0
        self.table: Tensor | None = torch.zeros(0, dtype=torch.int32)
        self.places = torch.zeros(0, dtype=torch.int32)  # of the hash table: rows, 0 where there is none
        self.ids = RowBlocks(1, torch.int64, self.places.device)

    def find(self, ids: Tensor) -> Tensor:
        """The row of each id; 0 where it has none."""
        if self.table is not None:
            if len(ids) and int(ids.max()) >= len(self.table):
                inside = ids < len(self.table)
                rows = torch.zeros_like(ids)
                rows[inside] = self.table[ids[inside]].long()
                return rows
            return self.table[ids].long()
        rows, open_, trial = torch.zeros_like(ids), torch.arange(len(ids), device=ids.device), 0
        while len(open_):
            row = self.places[self._place(ids[open_], trial)].long()
            equal = (row > 0) & (self.ids.take(row)[:, 0] == ids[open_])
            rows[open_[equal]] = row[equal]
            open_, trial = open_[(row > 0) & ~equal], trial + 1
        return rows

    def add(self, ids: Tensor) -> None:
        """Give new ids, each of them once, the next rows."""
        first, self.count = self.count + 1, self.count + len(ids)
        rows = torch.arange(first, self.count + 1, dtype=torch.int32, device=ids.device)
        size = 1 << int(ids.max()).bit_length()
        if self.table is not None and size > max(TABLE, 4 * self.count):
            (earlier,) = self.saved()
            self.table = None
            self._append(1, earlier)
        if self.table is None:
            self._append(first, ids)
            return
        if size > len(self.table):
            self.table = torch.cat([self.table, self.table.new_zeros(size - len(self.table))])
        self.table[ids] = rows

    def _append(self, first: int, ids: Tensor) -> None:
        """Put ids, whose rows begin with the first, into the hash table, which grows by a quarter where it is full."""
        end = first + len(ids)
        rows = torch.arange(first, end, device=ids.device)
        self.ids.reserve(end - 1)
        self.ids.put(rows, ids[:, None])
        if end > FULL * len(self.places):
            size = max(LEAST, int(end / FULL * 1.25))
            self.places = torch.zeros(0, dtype=torch.int32, device=ids.device)  # before there are two of them
            self.places = torch.zeros(size, dtype=torch.int32, device=ids.device)
            first = 1
        for start in range(first, end, CHUNK):  # 8 bytes a row: all of them at once would be half of a row more
            part = torch.arange(start, min(start + CHUNK, end), device=ids.device)
            self._insert(part, self.ids.take(part)[:, 0])

    def _insert(self, rows: Tensor, ids: Tensor) -> None:
        trial = 0
        while len(rows):
            place = self._place(ids, trial)
            free = self.places[place] == 0
            self.places[place[free]] = rows[free].int()  # of several rows for a place one gets it
            left = self.places[place] != rows
            rows, ids, trial = rows[left], ids[left], trial + 1

    def _place(self, ids: Tensor, trial: int) -> Tensor:
        return ((mix_tensor(ids + (trial << 32)) & 0x7FFFFFFF) * len(self.places)) >> 31

    def saved(self) -> list[Tensor]:
        """All ids in the order of their rows, in blocks."""
        if self.table is None:
            return [block[:, 0] for block in self.ids.used(self.count)]
        known = self.table.nonzero().squeeze(1)
        ids = torch.empty_like(known)
        ids[self.table[known].long() - 1] = known
        return [ids]

    def items(self) -> tuple[Tensor, Tensor]:
        """All ids, ascending, and their rows."""
        ids, order = torch.cat(self.saved()).sort()
        return ids, order + 1

    def to(self, device: torch.device) -> None:
        """Move to a device."""
        self.table = None if self.table is None else self.table.to(device)
        self.places = self.places.to(device)
        self.ids.to(device)


_PARTS = ("keys", "values", "columns")  # of a memory's state; the second block of values is called values1


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
        return 16 + (self.top * (size + 4) + size if 0 < self.top < width else width * size)

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
            part.to(device)

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
        new = rows == 0
        if bool(new.any()):
            added, first = ids[new].unique(), self.index.count + 1
            self.index.add(added)
            for part in self.blocks:
                if self.index.count >= part.room:
                    part.reserve(self.index.count)
            rows[new] = first + torch.searchsorted(added, ids[new])
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
        parts = [self.index.saved(), *(part.used(len(self)) for part in self.blocks)]
        for name, blocks in zip(_PARTS, parts, strict=False):
            for number, block in enumerate(blocks):  # as they lie there: one that did not change is not written again
                destination[f"{prefix}{name}{number or ''}"] = block
        destination[prefix + "width"] = torch.tensor(self.width)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        own = {name: value for name, value in state_dict.items() if self._owns(name.removeprefix(prefix))}
        others = {name: value for name, value in state_dict.items() if name not in own}
        super()._load_from_state_dict(others, prefix, *rest)
        if prefix + "keys" not in own or prefix + "width" not in own:
            rest[2].append(prefix + "keys")  # the names that are missing
            return
        ids, *parts = ([own[n] for n in (f"{prefix}{p}{i or ''}" for i in range(len(own))) if n in own] for p in _PARTS)
        device = self.blocks[0].blocks[0].device if self.blocks else ids[0].device
        self.index, self.blocks, self.width = RowIndex(), [], int(own[prefix + "width"])
        self.index.to(device)
        for block in ids:
            if len(block):
                self.index.add(block.to(device))
        for part in filter(None, parts):
            blocks, row = RowBlocks(part[0].shape[1], part[0].dtype, device), 1
            blocks.reserve(len(self))
            for block in part:
                blocks.put(torch.arange(row, row + len(block), device=device), block.to(device))
                row += len(block)
            self.blocks.append(blocks)

    @staticmethod
    def _owns(name: str) -> bool:
        """Whether a name, without its prefix, is that of a part of the state."""
        return name == "width" or name.rstrip("0123456789") in _PARTS


def averages(decay: float | Callable[..., float]) -> None:
    """Refuse what no running mean can keep of itself a step.

    Raises:
        RecipeError: a decay outside [0, 1).
    """
    if not callable(decay) and not 0.0 <= decay < 1.0:
        raise RecipeError(f"the decay of a running mean lies in [0, 1), not {decay}")


def spoken(p: Tensor, valid: Tensor | None) -> Tensor:
    """Distributions (rows, ..., classes) of the elements that say something, of all processes: (elements, classes)."""
    return distributed.gather(p.flatten(0, -2) if valid is None else p[valid])


class WeightView(nn.Module):
    """Weights of a teacher that answer through the student's own layers, so that no second model is in memory."""

    def follow(self, student: nn.Module, share: float) -> None:
        """Move by this share of the distance to the student's weights."""
        raise RecipeError(f"{type(self).__name__} holds weights that do not follow the student")

    def shard(self) -> None:
        """Keep of each weight the part that this process keeps of the student's; all processes must call it."""

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Its weights in one piece on every process, for as long as it lasts; all processes must enter."""
        yield


class LargeModel(nn.Module):
    """A model that is too large to be copied, and has too many logits to hold them all.

    It says how its logits are read from its outputs, and how the weights of a teacher are held: as a copy, with an
    adapter switched off, or put in the place of its own for one look.
    """

    def logits(self, outputs: Mapping[str, Tensor]) -> Projection | Tensor:
        """Logits of its outputs, mostly lazy."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its logits are read")

    def heads(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Projection | Tensor]:
        """Its heads of logits, by their names, read from its outputs; mostly the main one alone."""
        return {"logits": self.logits(outputs)}

    def frozen(self) -> nn.Module:
        """The weights that training began with."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds a frozen teacher")

    def holding(self, other: nn.Module) -> nn.Module:
        """The weights of another model of its kind, as they are now."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds other weights")

    def average(self) -> nn.Module:
        """Its weights as they are now, to `follow` it as a moving average."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it holds an average")

    def external(self, source: str | None, module: nn.Module | None, same_tokens: bool = True) -> nn.Module:
        """Another model: the one that is given, or that of a name or folder; with the same tokens or any."""
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
