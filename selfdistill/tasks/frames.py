"""Tables for learners: the columns as they were read, with their categories and missing values, and the splits.

A network's table is standardised numbers in float32 (`tabular`); a learner of scikit-learn takes the frame itself. Its
audit leaves folds of the labelled rows out, so no split is kept for it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from . import sources, splits, tabular

CARD = "data.json"
KINDS = ("number", "category")


@dataclass(frozen=True, eq=False)
class Frame:
    """A table, its target and who teaches; a sample id is a row's place."""

    name: str
    features: Any  # pandas.DataFrame: numbers as float64, all else as categories
    y: NDArray[Any]  # (n,) places of classes, -1 for none; or float64, nan for none
    classes: tuple[str, ...]
    labelled: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    test: NDArray[np.int64]
    noisy: NDArray[np.bool_]

    @property
    def task(self) -> str:
        return "classify" if self.classes else "regress"

    def rows(self, ids: NDArray[np.int64]) -> Any:
        """The features of some rows, as a frame; all of them are not copied."""
        whole = len(ids) == len(self.features) and np.array_equal(ids, np.arange(len(ids)))
        return self.features if whole else self.features.iloc[ids]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over features, target and splits: a run resumes on the same data only."""
        from pandas.util import hash_pandas_object

        digest = hashlib.sha256(repr((self.classes, list(self.features.columns))).encode())
        for name in self.features.columns:  # a column at a time: no copy of the whole
            digest.update(hash_pandas_object(self.features[name], index=False).to_numpy().tobytes())
        for part in (self.y, self.labelled, self.unlabelled, self.test):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()

    def kinds(self) -> dict[str, str]:
        """Is a column of numbers or of categories?"""
        return {n: KINDS[int(self.features[n].dtype.kind != "f")] for n in self.features.columns}

    def describe(self) -> dict[str, Any]:
        """What a run's record says about its data."""
        parts = {name: len(getattr(self, name)) for name in ("labelled", "unlabelled", "test")}
        return {
            "name": self.name, "kind": "table", "task": self.task, "shape": [self.features.shape[1]],
            "classes": list(self.classes), "rows": {**parts, "audit": 0},
            "noise": int(self.noisy[self.labelled].sum()) / max(len(self.labelled), 1), "flips": False,
            "augment": "none", "fingerprint": self.fingerprint,
        }  # fmt: skip


def load(
    source: str,
    *,
    target: str | None = None,
    unlabelled: str | None = None,
    labels: int | None = None,
    label_noise: float = 0.0,
    seed: int = 0,
) -> Frame:
    """A table by name or path for learners; arguments as of `data.load`.

    Raises:
        DataError: the table or what was asked of it cannot be used; the message says why.

    >>> frame = load("diabetes", labels=60)
    >>> len(frame.labelled), len(frame.unlabelled), len(frame.test)
    (60, 294, 88)
    """
    more = Path(unlabelled) if unlabelled is not None else None
    found = sources.find(source, target=target, unlabelled=more, image_size=None, compact=True)
    if found.features is None:
        raise DataError(f"{source} are images, and learners of scikit-learn take tables; give another --model")
    parts = splits.make(
        splits.Labels(found.name, found.y, found.classes), test=found.test, audit=0, labels=labels,
        label_noise=label_noise, seed=seed,
    )  # fmt: skip
    y = parts.y.numpy() if found.classes else parts.y.double().numpy()
    if not found.classes and len(np.unique(y[parts.labelled.numpy()])) == 1:
        raise DataError(f"{found.name}: the target is {y[int(parts.labelled[0])]:g} in all rows that teach; there is "
                        "nothing to learn, choose another column")  # fmt: skip
    return Frame(
        found.name, found.features, y, found.classes, parts.labelled.numpy(), parts.unlabelled.numpy(),
        parts.test.numpy(), parts.noisy.numpy(),
    )  # fmt: skip


def write_card(frame: Frame, folder: Path, **more: Any) -> None:
    """Write what prepares other rows the same way."""
    card = {**frame.describe(), "columns": list(frame.features.columns), "kinds": frame.kinds(), **more}
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def rows_for(source: str, card: dict[str, Any]) -> Any:
    """The rows of a table that a finished learner shall answer, with the columns it was trained on.

    Raises:
        DataError: no such table, or a column is missing or of another kind.
    """
    if source in sources.TABLES:
        found = load(source)
        return found.rows(found.test)
    if not tabular.is_table(source):
        raise DataError(f"{source}: the model was trained on a table; give one ({', '.join(tabular.SUFFIXES)})")
    kinds: dict[str, str] = card["kinds"]
    numeric = [name for name, kind in kinds.items() if kind == KINDS[0]]
    return tabular.prepare(tabular.read_frame(sources.existing(source)), list(kinds), numeric, source, compact=True)
