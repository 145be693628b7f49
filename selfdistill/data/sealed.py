"""The lock of the test split: while anything is trained or chosen, its rows and labels cannot be read."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from ..errors import DataError
from .dataset import Data


class Sealed(Data):
    """Data whose test split cannot be read: no ids, no labels, and an error for whoever asks for its rows.

    >>> from selfdistill.data.dataset import load
    >>> whole = load("digits")
    >>> kept = sealed(whole)
    >>> len(kept.test), kept.fingerprint == whole.fingerprint
    (0, True)
    """

    _held: Tensor  # (n,) bool
    _whole: Data

    def rows(self, ids: Tensor) -> Tensor:
        """As in `Data`.

        Raises:
            DataError: some of the rows are of the test split.
        """
        if bool(self._held[ids].any()):
            row = int(ids[self._held[ids]][0])
            raise DataError(
                f"{self.name}: row {row} of the test split was asked for during training; what is chosen by it proves "
                "nothing: choose by the audit split, and read the test split once, at the end"
            )
        return super().rows(ids)

    @property
    def fingerprint(self) -> str:  # that of the whole: it is the same data
        return self._whole.fingerprint


def sealed(data: Data) -> Sealed:
    """The same data with the test split out of reach; rows keep their ids."""
    if isinstance(data, Sealed):
        return data
    held = torch.zeros(len(data.y), dtype=torch.bool)
    held[data.test] = True
    own = {f.name: getattr(data, f.name) for f in fields(Data)}
    none = torch.tensor(torch.nan if data.y.is_floating_point() else -1, dtype=data.y.dtype)
    kept = Sealed(**{**own, "y": torch.where(held, none, data.y), "test": data.test[:0]})
    object.__setattr__(kept, "_held", held)
    object.__setattr__(kept, "_whole", data)
    return kept
