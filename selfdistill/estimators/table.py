"""What is learnt from: rows and targets, taken where they are needed and no sooner."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from .ledger import digest
from .rows import Floats, Ints, count, crossed, drawn, stack, take


@dataclass(frozen=True)
class Table:
    """Rows, targets as numbers, weights, and rows without a target.

    ``whole`` has the rows of the table this one was taken from, and ``places`` where its own ones are (None: all of
    them), so that folds need no copies; ``others`` are those of the rows without a target. ``mark`` is a digest of the
    rows, where trainings are kept; ``seed`` draws from rows that are too many for a learner. ``synthetic`` rows without
    a target are made of all others, where they are needed and always the same.
    """

    whole: Any
    y: NDArray[Any]
    weights: Floats | None
    without: Any = None
    places: NDArray[Any] | None = None
    others: NDArray[Any] | None = None
    mark: str | None = None
    seed: int = 0
    synthetic: int = 0

    @property
    def rows(self) -> Any:
        """The labelled rows; taken anew each time."""
        return self.whole if self.places is None else take(self.whole, self.places)

    @property
    def unlabelled(self) -> Any:
        """The rows without a target, taken anew each time; None where there are none."""
        found = self.without
        if self.synthetic:
            given = [] if found is None else [found]
            made = crossed(stack([self.rows, *given]), self.synthetic, self.seed)
            found = stack([*given, made])
        return found if self.others is None else take(found, self.others)

    def unknown(self) -> int:
        """How many have no target."""
        if self.others is not None:
            return len(self.others)
        return self.synthetic + (0 if self.without is None else count(self.without))

    def at(self, places: NDArray[Any]) -> Table:
        """Some of the labelled rows, and all the others."""
        weights = None if self.weights is None else self.weights[places]
        mark = None if self.mark is None else digest(self.mark, places)
        there = places if self.places is None else self.places[places]
        return replace(self, y=self.y[places], weights=weights, places=there, mark=mark)

    def few(self, most: int | None) -> Table:
        """At most so many rows: of labelled ones as many as there are, up to half if there are others enough.

        Drawn once, in an order that means nothing, so fewer of these are the first ones of either kind.
        """
        known, unknown = self.split(most)
        table = self
        if known < len(self.y):
            classes = self.y if self.y.dtype.kind == "i" else None
            table = table.at(drawn(len(self.y), known, self.seed, classes))
        if unknown < self.unknown():
            table = table.among(drawn(self.unknown(), unknown, self.seed))
        return table

    def among(self, others: Ints) -> Table:
        """All labelled rows, and some of the others."""
        mark = None if self.mark is None else digest(self.mark, "others", others)
        there = others if self.others is None else self.others[others]
        return replace(self, others=there, mark=mark)

    def split(self, most: int | None) -> tuple[int, int]:
        """How many labelled rows and how many others ``few`` has."""
        known, unknown = len(self.y), self.unknown()
        if most is None or known + unknown <= most:
            return known, unknown
        known = min(known, max(most // 2, most - unknown))
        return known, most - known
