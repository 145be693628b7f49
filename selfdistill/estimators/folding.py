"""The same chain of generations without each part of the labelled rows in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.utils.parallel import Parallel, delayed

from .generations import Kind, first
from .resume import Ledger, Page, on_page
from .tables import Floats, Ints, Rows, Table, take


class Folded:
    """Chains that each learn without the rows of one fold; rows of fold -1 teach in all of them."""

    def __init__(
        self, kind: Kind, table: Table, fold: Ints, distinct: Ints, ledger: Ledger, n_jobs: int | None
    ) -> None:
        self.kind, self.table, self.ledger, self.n_jobs = kind, table, ledger, n_jobs
        numbers = range(int(fold.max()) + 1)
        self.without = [table.at(np.flatnonzero(fold != k)) for k in numbers]
        self.left_out = np.flatnonzero(fold >= 0)  # by a fold each, in the order of the table
        self.held = [np.flatnonzero(fold[self.left_out] == k) for k in numbers]
        self.y = table.y[self.left_out]
        weights = None if table.weights is None else table.weights[self.left_out]
        self.rows = Rows(weights, np.unique(distinct[self.left_out], return_inverse=True)[1].astype(np.int64))

    def __len__(self) -> int:
        return len(self.without)

    def each(self, about: str, work: Callable[..., Any], learners: list[Any], given: Any, *more: Any) -> list[Any]:
        """Call `first` or `later` for every fold; ``given`` is what the folds share, or for `later` one a fold."""
        times = len(self)
        where = [f", fold {k} of {times}" for k in range(1, times + 1)] if times > 1 else [" without the rows held out"]
        pages = [Page(self.ledger, about + place) for place in where]
        own = [given] * times if work is first else given
        columns: Sequence[Sequence[Any]] = [
            pages, [self.kind] * times, [learners] * times, self.without, own, *([m] * times for m in more),
        ]  # fmt: skip
        calls = (delayed(on_page)(work, *row) for row in zip(*columns, strict=True))
        found = []
        for made, unsaid in Parallel(n_jobs=self.n_jobs, return_as="generator")(calls):
            for what in unsaid:
                self.ledger.tell(what)
            found.append(made)
        return found

    def said(self, members: list[Any]) -> Floats:
        """What each fold's first member says of the rows it has not learnt from, in the order of ``left_out``."""
        found: Floats | None = None
        for models, places in zip(members, self.held, strict=True):
            said = self.kind.says(models[0], take(self.table.rows, self.left_out[places]))
            found = np.empty((len(self.y), *said.shape[1:])) if found is None else found
            found[places] = said
        assert found is not None
        return found
