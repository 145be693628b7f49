"""Memories: one row per sample, keyed by sample id, so that no shuffling can mix them up; and running means."""

from __future__ import annotations

from collections.abc import Mapping
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


class SampleMemory(Buffers):
    """A value for each sample id; grows as ids come in. Rows never written are not ``seen``.

    >>> table = SampleMemory()
    >>> table.write(torch.tensor([4]), torch.tensor([[0.2, 0.8]]))
    >>> values, seen = table.read(torch.tensor([4, 1]), width=2)
    >>> seen.tolist(), values[0].tolist() == torch.tensor([0.2, 0.8]).tolist()
    ([True, False], True)
    """

    values: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("values", torch.zeros(0, 0))
        self.register_buffer("seen", torch.zeros(0, dtype=torch.bool))

    @property
    def width(self) -> int:
        """Of a value."""
        return self.values.shape[1]

    def rounded(self, values: Tensor) -> Tensor:
        """What will be read of values that are written."""
        return values

    def settle(self, clock: object) -> None:
        """A step is over."""

    def _room(self, ids: Tensor, width: int) -> None:
        """Make room for the largest id; doubling keeps the cost of growing constant per row."""
        low, high = 0, -1
        if len(ids):
            least, most = ids.aminmax()
            low, high = int(least), int(most)
        if low < 0:
            raise DataError(f"sample ids count from 0; a batch has {low}, which would mix up samples in a memory")
        need = high + 1
        if len(self.seen) >= need and self.values.shape[1] == width and self.values.device == ids.device:
            return
        size = max(len(self.seen), 1 << (need - 1).bit_length() if need else 0)  # the largest id alone decides
        values = torch.zeros(size, width, device=ids.device)
        seen = torch.zeros(size, dtype=torch.bool, device=ids.device)
        if self.values.shape[1] == width:
            values[: len(self.seen)], seen[: len(self.seen)] = self.values, self.seen
        self.values, self.seen = values, seen

    def read(self, ids: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Values (rows, width) and which of them were ever written (rows,)."""
        self._room(ids, width)
        return self.values[ids], self.seen[ids]

    def write(self, ids: Tensor, values: Tensor) -> None:
        """Store rows; under several processes every process stores the rows of all."""
        ids, values = distributed.gather(ids), distributed.gather(values.float())
        self._room(ids, values.shape[1])
        self.values[ids] = values
        self.seen[ids] = True

    def write_new(self, ids: Tensor, values: Tensor) -> None:
        """Store the rows that were never written; what was said first stays."""
        self._room(ids, values.shape[1])
        new = ~self.seen[ids]
        self.write(ids[new], values[new])


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
