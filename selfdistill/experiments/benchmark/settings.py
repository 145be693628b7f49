"""Settings: data, labels, noise, model and budget of the benchmark; and what a cell of it is called.

A setting's budget is what `plain` costs for twice its usual steps, in sample passes (forward 1, backward 2, a teacher's
forward 1). It depends on the setting alone, so a recipe that is added later meets the same.

Which recipes run in a setting is asked of the recipes: what their cards say and what their parts do.

A wide network for 28 x 28 images that learns wrong labels by heart within a few thousand cheap steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...core.objective import Method, Objective
from ...core.parts import Teacher
from ...core.step import Batch, TrainingClock
from ...data.dataset import Data, load
from ...data.splits import draw
from ...errors import DataError, RecipeError, SelfdistillError, SpaceError
from ...methods import recipes
from ...methods.cards import card
from ...methods.registry import read_method
from ...models.registry import Build, parse
from ...teachers import External
from ...testing.specimens import batch_for, bound, built

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

    def path(self, out: Path) -> Path:
        """The file of its cells in a folder: one JSON object a line."""
        return out / f"{self.name}.jsonl"

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

    def command(self) -> str:
        """What makes its row."""
        return f"selfdistill benchmark methods --settings {self.setting.name} --methods {quoted(self.method)}"


def quoted(method: str) -> str:
    """An expression for the shell.

    >>> quoted("born_again(loss='ce')")
    '"born_again(loss=\\'ce\\')"'
    """
    return f'"{method}"' if "'" in method else f"'{method}'"


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
    *CLOTHES,
    "selfdistill.experiments.benchmark.settings:wide",
    steps=800,
    seeds=5,
    labels=5000,
    noise=0.4,
    audit=1000,
    augment="none",
    remembering=True,
)


SETTINGS = {
    one.name: one
    for one in (
        *_digits("mlp"),
        MEMORISE,
        *_clothes("cnn(width=8, stem=2)"),
        *_digits("cnn(width=8)", "-cnn"),
        *_clothes("mlp", "-mlp"),
    )
}


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
        data = replace(
            data, audit=draw(data.audit, data.y, setting.audit, (seed, "benchmark audit"), groups=data.groups)
        )
    return replace(data, augment=setting.augment) if setting.augment else data


CLASSES = 10


PLAIN, HALF, STOPPED = "plain()", "plain(), half the budget", "plain(), stopped early"


SELF_TRAINING = "SelfTrainingClassifier(LogisticRegression())"


UNTRAINED = "untrained"


ABOUT = {
    PLAIN: "cross-entropy on the labels for the whole budget: what differences are to",
    HALF: "the same for half of it, the training of usual length",
    STOPPED: "`plain()` at the epoch that is best on the audit split",
    SELF_TRAINING: "scikit-learn's, on pixels; it spends no passes of a network",
    UNTRAINED: "the network as it is drawn, under a linear probe",
}


_DROPOUT = re.compile(r"dropout=([\d.]+)")


@cache
def card_of(name: str) -> dict[str, Any]:
    return card(name)


def name_of(expression: str) -> str:
    """The recipe's name in an expression.

    >>> name_of("elr(weight=2.0)")
    'elr'
    """
    return expression.partition("(")[0].strip()


def is_control(expression: str) -> bool:
    """Is it there to be beaten: no distillation at all, or by a teacher from outside?"""
    if expression in ABOUT:
        return True
    recipe = recipes().get(name_of(expression))  # None where a record is older than the recipes
    return recipe is not None and (recipe.__module__.endswith(".controls") or wants_teacher(read_method(expression)))


def wants_teacher(method: Method) -> bool:
    """Does it need a trained teacher that nobody has named?"""
    origins = [term.teacher.origin for term in method.terms.values() if term.teacher]
    return any(isinstance(origin, External) and origin.source is None for origin in origins)


def _specimen(method: Method, labelled: bool, generation: int) -> Objective:
    """An objective of a generation that has seen one batch, of rows without a label if so asked."""
    batch = batch_for(method, 0)
    if not labelled:
        batch = Batch({view: rows._replace(y=None) for view, rows in batch.items()})
    clock = TrainingClock(generation, method.generations, 0, 2, 0, 2)
    with torch.random.fork_rng(devices=[]):
        objective = bound(method, built(method, 1), clock)
        objective.watched = False
        objective(batch)
    return objective


@cache
def learns_without_labels(method: Method) -> bool:
    """Can it take a step on rows of which nobody knows the label?

    >>> learns_without_labels(recipes()["plain"]())
    False
    """
    if wants_teacher(method):  # which was trained on labels
        return False
    try:
        _specimen(method, labelled=False, generation=method.generations - 1)
    except SpaceError:
        return False
    return True


@cache
def remembers(method: Method) -> bool:
    """Does it keep, within one training, something of its own past: predictions, class means, weights?

    Of several generations the first one is asked: what it keeps is its own.

    >>> remembers(recipes()["elr"]()), remembers(recipes()["born_again"]()), remembers(recipes()["selfie"]())
    (True, False, True)
    """
    if wants_teacher(method) or method.views.need_unlabelled():
        return False
    objective = _specimen(method, labelled=True, generation=0)
    parts = ((name, part) for name, term in method.terms.items() for part in term.parts() if isinstance(part, Teacher))
    return any(objective.state_of(name, part).state_dict() for name, part in parts)


def build_for(setting: Setting, expression: str) -> Build:
    """The setting's model; where a recipe's card asks for dropout, with that much."""
    build = parse(setting.model, setting.shape, CLASSES)
    needs = _DROPOUT.search(card_of(name_of(expression))["needs"]) if name_of(expression) in recipes() else None
    return build.having(dropout=float(needs[1])) if needs and build.accepts("dropout") else build


def misfit(expression: str, setting: Setting) -> str | None:
    """Why a recipe does not run in a setting; None if it does."""
    method = read_method(expression)
    if "classes" not in card_of(name_of(expression))["targets"]:
        return "predicts values, and the labels here are classes"
    if "tasks" in card_of(name_of(expression))["needs"]:
        return "learns tasks in turn, and all rows come at once here"
    if setting.probing != learns_without_labels(method):
        return "learns from labels, and there are none" if setting.probing else "learns without labels"
    if method.views.need_unlabelled() and not setting.unlabelled:
        return "needs unlabelled rows, and all rows here are labelled"
    if setting.remembering and not remembers(method) and not is_control(expression):
        return "keeps nothing of its own past within a training"
    try:
        build = build_for(setting, expression)
        (method.wrap_model(build) if method.wrap_model else build)()
    except SelfdistillError as error:
        return str(error)
    return None


def controls_of(setting: Setting) -> list[str]:
    """The rows that are no recipe's, the reference first."""
    if setting.probing:
        return [PLAIN, UNTRAINED]
    return [PLAIN, HALF, *([SELF_TRAINING] if setting.unlabelled else [])]


def fits(method: str, setting: Setting) -> bool:
    """Does a recipe's expression, or a control, run in a setting?"""
    return method in controls_of(setting) if method in ABOUT else misfit(method, setting) is None


@cache
def sorted_out(setting: Setting) -> tuple[list[str], dict[str, str]]:
    """Controls and recipes that run in a setting, and the others, each with its reason."""
    names = [f"{name}()" for name in recipes() if f"{name}()" != PLAIN]
    reasons = {name: why for name in names if (why := misfit(name, setting)) is not None}
    return [*controls_of(setting), *(name for name in names if name not in reasons)], reasons


class Wide(nn.Module):
    """Two strided convolutions without normalisation and a wide hidden layer: many weights, few operations."""

    def __init__(self, shape: tuple[int, ...], outputs: int, width: int, hidden: int) -> None:
        super().__init__()
        sides = [math.ceil(side / 4) for side in shape[1:]]
        self.body = nn.Sequential(
            nn.Conv2d(shape[0], width, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * math.prod(sides), hidden),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.body(x))
        return logits


def wide(shape: tuple[int, ...], outputs: int, *, width: int = 64, hidden: int = 512) -> nn.Module:
    """The network for images (channels, height, width).

    Raises:
        RecipeError: the rows are no images.

    >>> import torch
    >>> wide((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if len(shape) != 3:
        raise RecipeError(f"wide reads images (channels, height, width), not rows of shape {tuple(shape)}; use mlp")
    return Wide(shape, outputs, width, hidden)
