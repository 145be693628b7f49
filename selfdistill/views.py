"""Views: what do student and teacher look at? Here are the values; `sampling` draws the rows and makes the tensors.

A `View` names a view, the rows it takes, and how they are augmented. ``rows`` is one of

* ``labelled``: the labelled training rows, shuffled every epoch;
* ``all``: labelled and unlabelled rows alike;
* ``union``: labelled rows and the unlabelled ones that a teacher has admitted;
* ``chosen``: the rows that a teacher has admitted, labelled or not, as often as it names them;
* ``unlabelled``: ``ratio`` x batch size unlabelled rows beside the labelled ones;
* ``pair``: for each labelled row of the batch another row of its class.

``augment`` is ``none``, ``weak``, ``strong``, ``crop`` (a large part), ``local`` (a small one), or ``default`` (what
suits the data).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import RecipeError

ROWS = ("labelled", "all", "union", "chosen", "unlabelled", "pair")


TOGETHER = ("union", "all", "chosen")  # both labelled and unlabelled rows in one set


AUGMENT = ("default", "none", "weak", "strong", "crop", "local")


@dataclass(frozen=True)
class View:
    """One view: its name, its rows, its augmentation. Looks with the same rows see the same samples.

    ``fixed`` shows each sample in so many ways, one after another by epoch, the same in every run; 0 looks anew.
    ``hidden`` is the share of an image's patches that is hidden, in blocks, other ones each time, in what the view
    ``of`` shows: it comes before, and has the same rows and ``augment``. Each image's share lies within ``spread`` of
    ``hidden``; a share ``whole`` of the images is shown as it is.
    """

    name: str
    rows: str = "labelled"
    augment: str = "default"
    fixed: int = 0
    hidden: float = 0.0
    of: str = ""
    spread: float = 0.0
    whole: float = 0.0

    def __post_init__(self) -> None:
        for value, known in ((self.rows, ROWS), (self.augment, AUGMENT)):
            if value not in known:
                raise RecipeError(f"a view takes one of {', '.join(known)}; not {value!r}")
        if not 0.0 <= self.hidden < 1.0 or bool(self.of) != (self.hidden > 0.0):
            raise RecipeError(f"a view hides a share in (0, 1) of another one, not {self.hidden} of {self.of!r}")
        most = min(self.hidden, 1.0 - self.hidden)
        if not 0.0 <= self.spread <= most or not 0.0 <= self.whole < 1.0:
            raise RecipeError(
                f"of {self.hidden} that is hidden a share may be off by 0 to {most:g}, not {self.spread}, and a share "
                f"in [0, 1) of the images be whole, not {self.whole}"
            )
        if (self.spread or self.whole) and not self.of:
            raise RecipeError(f"view {self.name!r} hides nothing; leave spread and whole out")
        if self.of and self.fixed:
            raise RecipeError(f"view {self.name!r} hides parts of view {self.of!r} anew each time; leave fixed out")
        if self.fixed < 0:
            raise RecipeError(
                f"fixed counts the ways in which a sample is shown, 0 for ever new ones, not {self.fixed}"
            )


@dataclass(frozen=True)
class Views:
    """The views of a method. ``overlap`` makes each batch half of the rows before it and half new ones; with ``mates``
    so many rows of a batch accompany each one that is drawn: others of its class."""

    looks: tuple[View, ...] = (View("x"),)
    ratio: float = 1.0
    overlap: bool = False
    mates: int = 0

    def __post_init__(self) -> None:
        ways = dict[str, tuple[str, str]]()  # by name of the looks so far
        for look in self.looks:
            if look.of and ways.get(look.of) != (look.rows, look.augment):
                raise RecipeError(
                    f"view {look.name!r} hides parts of view {look.of!r}, which shows other rows, in another way, or "
                    "does not come before it"
                )
            ways[look.name] = look.rows, look.augment
        if self.mates < 0:
            raise RecipeError(f"mates counts rows of the same class beside each one that is drawn, not {self.mates}")
        if not self.ratio > 0:
            raise RecipeError(f"ratio counts unlabelled rows for each labelled one and is above 0, not {self.ratio}")
        kinds = sorted({look.rows for look in self.looks} & {"labelled", *TOGETHER})
        if len(kinds) > 1:
            raise RecipeError(f"an epoch is a pass over one set of rows; these views name {' and '.join(kinds)}")

    def need_unlabelled(self) -> bool:
        """Does the method make no sense without unlabelled rows?"""
        return any(look.rows in ("unlabelled", "union", "chosen") for look in self.looks)


def two(rows: str = "labelled", augment: str = "weak") -> Views:
    """Two independent augmentations ``x`` and ``other`` of the same rows."""
    return Views((View("x", rows, augment), View("other", rows, augment)))


def pairs() -> Views:
    """``x`` and, for each of its rows, another sample of the same class in ``pair``."""
    return Views((View("x"), View("pair", "pair")))


def overlapping() -> Views:
    """Batches of which one half was in the batch before."""
    return Views(overlap=True)


def weak_strong(ratio: float = 7.0, labelled: str = "weak") -> Views:
    """``labelled`` rows, and ``ratio`` times as many unlabelled ones in a ``weak`` and a ``strong`` view."""
    return Views(
        (
            View("labelled", "labelled", labelled),
            View("weak", "unlabelled", "weak"),
            View("strong", "unlabelled", "strong"),
        ),
        ratio,
    )
