"""Settings: data, labels, noise, model and budget of the benchmark; and what a cell of it is called.

A setting's budget is what `plain` costs for twice its usual steps, in sample passes (forward 1, backward 2, a teacher's
forward 1). It depends on the setting alone, so a recipe that is added later meets the same.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..tasks.data import Data, load
from ..tasks.splits import draw

BATCH = 64
DIGITS_ROWS = 1097  # that teach, where all of them do
TIMES = 2  # the budget, in units of the plain training of usual length
DIGITS, CLOTHES = ("digits", (1, 8, 8)), ("fashion-mnist", (1, 28, 28))


@dataclass(frozen=True)
class Setting:
    """Where methods are compared.

    ``steps`` are those of the plain training of usual length, ``labels`` the rows that keep theirs (None: all). Without
    ``unlabelled`` the other rows are left away; ``audit`` is the most rows that audit. ``remembering`` settings take
    only recipes that keep something of their own past, ``probing`` ones those that need no label at all.
    """

    name: str
    about: str
    data: str
    shape: tuple[int, ...]
    model: str
    steps: int
    seeds: int
    labels: int | None = None
    noise: float = 0.0
    unlabelled: bool = False
    augment: str | None = None
    audit: int | None = None
    remembering: bool = False
    probing: bool = False

    @property
    def budget(self) -> int:
        """Sample passes that every method may take: batches of an epoch are as equal as can be.

        >>> Setting("x", "", *DIGITS, "mlp", steps=500, seeds=10, labels=100).budget
        150000
        """
        rows = self.labels or DIGITS_ROWS
        return round(TIMES * self.steps * 3 * rows / math.ceil(rows / BATCH))

    def to_json(self) -> dict[str, Any]:
        """Everything that decides a cell: not its words, nor how often it is repeated and who takes part."""
        said = {k: v for k, v in asdict(self).items() if k not in ("about", "seeds", "remembering")}
        return {**said, "shape": list(self.shape)}


@dataclass(frozen=True)
class Cell:
    """One training of the benchmark: a method's expression, or a control's name, in a setting with a seed."""

    setting: Setting
    method: str
    seed: int

    def path(self, out: Path) -> Path:
        """Where its record lies."""
        return out / self.setting.name / folder_of(self.method) / f"{self.seed}.json"

    def command(self) -> str:
        """What makes its row."""
        return f"selfdistill benchmark methods --settings {self.setting.name} --methods {quoted(self.method)}"


def quoted(method: str) -> str:
    """An expression for the shell.

    >>> quoted("born_again(loss='ce')")
    '"born_again(loss=\\'ce\\')"'
    """
    return f'"{method}"' if "'" in method else f"'{method}'"


def folder_of(method: str) -> str:
    """A folder's name for an expression; a recipe at its defaults has its own.

    >>> folder_of("elr()"), folder_of("elr(weight=7.0)")
    ('elr', 'elr-weight-7-0-9914')
    """
    if re.fullmatch(r"\w+\(\)", method):
        return method[:-2]
    slug = re.sub(r"[^a-z0-9]+", "-", method.lower()).strip("-")[:40]
    return f"{slug}-{hashlib.sha256(method.encode()).hexdigest()[:4]}"


def _digits(model: str, mark: str = "") -> list[Setting]:
    few, kind = "labels, the other training rows unlabelled", f"digits, {model}"
    usual: dict[str, Any] = {"model": model, "steps": 750, "seeds": 10}
    return [
        Setting(f"digits-noise{mark}", f"{kind}: all labels, 40 % of them wrong", *DIGITS, noise=0.4, **usual),
        Setting(f"digits-100{mark}", f"{kind}: 100 {few}", *DIGITS, labels=100, unlabelled=True, **usual),
        Setting(f"digits-all{mark}", f"{kind}: all labels", *DIGITS, **usual),
        Setting(f"digits-50{mark}", f"{kind}: 50 {few}", *DIGITS, labels=50, unlabelled=True, **usual),
        Setting(f"digits-250{mark}", f"{kind}: 250 {few}", *DIGITS, labels=250, unlabelled=True, **usual),
        Setting(f"digits-none{mark}", f"{kind}: no labels, then a linear probe", *DIGITS, probing=True, **usual),
    ]


def _clothes(model: str, mark: str = "") -> list[Setting]:
    few, kind = "labels, the other training rows unlabelled", f"Fashion-MNIST, {model}"
    many: dict[str, Any] = {"model": model, "steps": 800, "seeds": 5, "labels": 5000, "audit": 1000}
    less: dict[str, Any] = {"model": model, "steps": 1500, "seeds": 5, "unlabelled": True}
    return [
        Setting(f"fashion-100{mark}", f"{kind}: 100 {few}", *CLOTHES, **less, labels=100),
        Setting(f"fashion-noise{mark}", f"{kind}: 5,000 labels, 40 % of them wrong", *CLOTHES, noise=0.4, **many),
        Setting(f"fashion-all{mark}", f"{kind}: 5,000 rows, all labels", *CLOTHES, **many),
        Setting(f"fashion-250{mark}", f"{kind}: 250 {few}", *CLOTHES, **less, labels=250),
        Setting(f"fashion-none{mark}", f"{kind}: no labels, then a linear probe", *CLOTHES, **many, probing=True),
    ]


MEMORISE = Setting(
    "fashion-memorise",
    "Fashion-MNIST, a wide network that learns by heart: 5,000 labels, 40 % of them wrong, no augmentation",
    *CLOTHES, "selfdistill.benchmark.wide:wide", steps=800, seeds=5, labels=5000, noise=0.4, audit=1000,
    augment="none", remembering=True,
)  # fmt: skip
SETTINGS = {
    one.name: one
    for one in (
        *_digits("mlp"), MEMORISE, *_clothes("cnn(width=8, stem=2)"), *_digits("cnn(width=8)", "-cnn"),
        *_clothes("mlp", "-mlp"),
    )
}  # fmt: skip
QUICK = {
    name: replace(SETTINGS[name], steps=24, seeds=2) for name in ("digits-noise", "digits-100")
}  # to see that it works


def chosen(patterns: Sequence[str], known: dict[str, Setting]) -> list[Setting]:
    """The settings that names, or patterns such as ``digits-*``, mean; all without any.

    Raises:
        DataError: one means nothing.
    """
    names = [name for part in patterns for name in part.split(",")]
    unknown = [name for name in names if not any(fnmatch(one, name) for one in known)]
    if unknown:
        raise DataError(f"no setting of the benchmark is called {unknown[0]!r}; there are {', '.join(known)}")
    return [one for one in known.values() if not names or any(fnmatch(one.name, name) for name in names)]


@lru_cache(maxsize=2)
def data_of(setting: Setting, seed: int) -> Data:
    """The rows of a setting: every seed has its own labels, wrong labels and audit split; the test split is one.

    >>> data = data_of(SETTINGS["digits-100"], 3)
    >>> len(data.labelled), len(data.unlabelled), len(data.audit), len(data.test)
    (100, 1097, 100, 500)
    """
    data = load(setting.data, labels=setting.labels, label_noise=setting.noise, seed=seed)
    if not setting.unlabelled:
        data = replace(data, unlabelled=data.unlabelled[:0])
    if setting.audit is not None and setting.audit < len(data.audit):
        data = replace(data, audit=draw(data.audit, data.y, setting.audit, (seed, "benchmark audit")))
    return replace(data, augment=setting.augment) if setting.augment else data
