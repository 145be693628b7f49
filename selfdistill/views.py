"""Views: the rows and augmentations that are the inputs of student and teacher; `data.sampler` makes their tensors.

A `View` names a view, the rows it takes, and how they are augmented. ``rows`` is one of

* ``labelled``: the labelled training rows, shuffled every epoch;
* ``all``: labelled and unlabelled rows alike;
* ``union``: labelled rows and the unlabelled ones among a teacher's eligible ids;
* ``chosen``: the rows of a teacher's eligible ids, labelled or not, as often as they occur there;
* ``unlabelled``: ``ratio`` x batch size unlabelled rows beside the labelled ones;
* ``pair``: for each labelled row of the batch another row of its class;
* ``clean``: as many rows as the batch has whose labels are trusted, repeated where they are few.

``augment`` is ``none``, ``weak``, ``strong``, ``crop`` (a large part), ``local`` (a small one), or ``default`` (that of
the data).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from .errors import RecipeError

ROWS = ("labelled", "all", "union", "chosen", "unlabelled", "pair", "clean")


TOGETHER = ("union", "all", "chosen")  # both labelled and unlabelled rows in one set


USUAL_STEPS = 2000  # of a run that says neither its steps nor its epochs


AUGMENT = ("default", "none", "weak", "strong", "crop", "local")


@dataclass(frozen=True)
class View:
    """One view: its name, its rows and its augmentation. Views with the same rows have the same samples.

    ``fixed`` is the number of fixed augmentations of each sample, one an epoch in turn, equal in every run; 0 draws new
    ones. ``hidden`` is the share of an image's patches that is masked, in blocks drawn anew each time, in the view
    ``of``, which comes before and has the same rows and ``augment``. Each image's share lies within ``spread`` of
    ``hidden``; a share ``unmasked`` of the images is not masked.
    """

    name: str
    rows: str = "labelled"
    augment: str = "default"
    fixed: int = 0
    hidden: float = 0.0
    of: str = ""
    spread: float = 0.0
    unmasked: float = 0.0

    def __post_init__(self) -> None:
        for value, options in ((self.rows, ROWS), (self.augment, AUGMENT)):
            if value not in options:
                raise RecipeError(f"a view takes one of {', '.join(options)}; not {value!r}")
        if not 0.0 <= self.hidden < 1.0 or bool(self.of) != (self.hidden > 0.0):
            raise RecipeError(f"a view hides a share in (0, 1) of another one, not {self.hidden} of {self.of!r}")
        largest = min(self.hidden, 1.0 - self.hidden)
        if not 0.0 <= self.spread <= largest or not 0.0 <= self.unmasked < 1.0:
            raise RecipeError(
                f"view {self.name!r}: spread lies in [0, {largest:g}] for hidden={self.hidden}, not {self.spread}, "
                f"and unmasked in [0, 1), not {self.unmasked}"
            )
        if (self.spread or self.unmasked) and not self.of:
            raise RecipeError(f"view {self.name!r} hides nothing; leave spread and unmasked out")
        if self.of and self.fixed:
            raise RecipeError(f"view {self.name!r} hides parts of view {self.of!r} anew each time; leave fixed out")
        if self.fixed < 0:
            raise RecipeError(
                f"fixed counts the ways in which a sample is shown, 0 for ever new ones, not {self.fixed}"
            )


@dataclass(frozen=True)
class BudgetRatio:
    """Unlabelled rows for each labelled one that grow with the run: ``most`` in a run of ``steps`` steps.

    In a shorter run of n steps they are most^(log n / log steps), 1 at least: a short run has no room for passes that
    its labels pay for with steps.

    >>> [round(BudgetRatio(7.0)(n), 1) for n in (1, 100, 1000, 10000, 2**20)]
    [1.0, 1.9, 2.6, 3.6, 7.0]
    """

    most: float = 7.0
    steps: int = 2**20

    def __call__(self, length: int) -> float:
        return max(1.0, math.pow(self.most, min(1.0, math.log(max(1, length)) / math.log(self.steps))))


@dataclass(frozen=True)
class Views:
    """The views of a method.

    ``ratio`` counts unlabelled rows for each labelled one, as a number or by the run's steps (`BudgetRatio`). A batch
    of the rows ``all`` has a share ``labelled`` of labelled ones at least, repeated where there are too few.

    With ``overlap`` half of each batch are rows of the previous one. ``mates`` is the number of rows of the same class
    that accompany each drawn row. ``clean`` is how many validation rows, or which share of them, become the rows
    ``clean``; None for those whose label a person decided, or half of the validation rows where there are none.
    """

    views: tuple[View, ...] = (View("x"),)
    ratio: float | Callable[[int], float] = 1.0
    overlap: bool = False
    mates: int = 0
    labelled: float = 0.0
    clean: float | None = None

    def __post_init__(self) -> None:
        rows_by_view = dict[str, tuple[str, str]]()  # by name of the views so far
        for view in self.views:
            if view.of and rows_by_view.get(view.of) != (view.rows, view.augment):
                raise RecipeError(
                    f"view {view.name!r} hides parts of view {view.of!r}, which shows other rows, in another way, or "
                    "does not come before it"
                )
            rows_by_view[view.name] = view.rows, view.augment
        if self.mates < 0:
            raise RecipeError(f"mates counts rows of the same class beside each one that is drawn, not {self.mates}")
        if not 0.0 <= self.labelled < 1.0:
            raise RecipeError(f"labelled is the share of labelled rows in a batch, in [0, 1), not {self.labelled}")
        if not callable(self.ratio) and not self.ratio > 0:
            raise RecipeError(f"ratio counts unlabelled rows for each labelled one and is above 0, not {self.ratio}")
        if self.clean is not None and not (0.0 < self.clean < 1.0 or (self.clean >= 1.0 and self.clean % 1.0 == 0.0)):
            raise RecipeError(f"clean counts validation rows, or is a share of them below 1, not {self.clean}")
        row_sets = sorted({view.rows for view in self.views} & {"labelled", *TOGETHER})
        if len(row_sets) > 1:
            raise RecipeError(f"an epoch is a pass over one set of rows; these views name {' and '.join(row_sets)}")

    def ratio_at(self, length: int) -> float:
        """The unlabelled rows for each labelled one in a run of ``length`` steps."""
        return self.ratio(length) if callable(self.ratio) else self.ratio

    def need_unlabelled(self) -> bool:
        """Whether a view has unlabelled rows."""
        return any(view.rows in ("unlabelled", "union", "chosen") for view in self.views)

    def need_clean(self) -> bool:
        """Whether a view has rows with trusted labels."""
        return any(view.rows == "clean" for view in self.views)


def two(rows: str = "labelled", augment: str = "weak", other: str = "", labelled: float = 0.0) -> Views:
    """Two independent augmentations ``x`` and ``other`` of the same rows, ``other`` in a way of its own if given."""
    return Views((View("x", rows, augment), View("other", rows, other or augment)), labelled=labelled)


def pairs() -> Views:
    """``x`` and, for each of its rows, another sample of the same class in ``pair``."""
    return Views((View("x"), View("pair", "pair")))


def overlapping() -> Views:
    """Batches of which one half was in the batch before."""
    return Views(overlap=True)


def weak_strong(
    ratio: float | None = None, labelled: str = "default", weak: str = "default", strong: str = "strong",
    steps: int = 2**20,
) -> Views:  # fmt: skip
    """``labelled`` rows, and ``ratio`` times as many unlabelled ones in a ``weak`` and a ``strong`` view.

    Without a ratio they are seven times as many in a run of ``steps`` steps, and fewer in a shorter one.
    """
    return Views(
        (
            View("labelled", "labelled", labelled),
            View("weak", "unlabelled", weak),
            View("strong", "unlabelled", strong),
        ),
        BudgetRatio(7.0, steps) if ratio is None else ratio,
    )
