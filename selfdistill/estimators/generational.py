"""The common part of what self-distils: generations, their trust weights, their audit, and what is told of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base import Audited, SelfTaught, told
from .bounded import core
from .defaults import usual_learner
from .folding import Folded
from .generations import Kind, Values, first, later
from .labelling import Labelling, Selection
from .mixing_weight import smoother, steps
from .resume import Ledger, Page, opened
from .tables import ALIKE, Floats, Rows, Table
from .weights import seeded, weighted


class SelfDistilled(SelfTaught):
    """The common part of classifier and regressor."""

    def __init__(
        self,
        estimator: Any = None,
        *,
        generations: int = 2,
        xi: float | str = "auto",
        peers: Any = None,
        selection: Selection = None,
        audit: str = "safe",
        audit_folds: int | float | str = "auto",
        n_jobs: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.generations = generations
        self.xi = xi
        self.peers = peers
        self.selection = selection
        self.audit = audit
        self.audit_folds = audit_folds
        self.n_jobs = n_jobs
        self.random_state = random_state

    def _fit(self, kind: Kind, table: Table) -> None:
        self._check()
        ledger = opened()
        random = self._random()
        seed = 0 if random is None else int(random.randint(2**31 - 1))
        made = self._made(table)
        mark = ledger.mark(table.whole, table.without, made, seed)
        table = replace(table, mark=mark, seed=seed, synthetic=made)
        learners, seeds = self._members(random, seed)
        number = self._rounds(table.unknown() > 0) - 1
        self.residuals_: Floats | None = None
        audited, self.xi_, self._labellings, held = self._choose(kind, learners, seeds, table, seed, number, ledger)
        self.history_ = self._history(audited, number, table)
        self.generation_ = audited.product() if audited else number if self.audit == "off" else 0
        if held and audited and isinstance(kind, Values):
            self.residuals_ = held.y - audited.said[self.generation_]
        ledger.left(_trainings(len(learners), self.generation_))
        steps_taken = list(zip(self.xi_, self._labellings, strict=True))[: self.generation_]
        page = Page(ledger, "generation 0 on all rows")
        members = first(kind, _needed(learners, 0, self.generation_), table, seeds, page)
        for k, (xi, labelling) in enumerate(steps_taken, 1):
            page = Page(ledger, f"generation {k} on all rows")
            members = later(kind, _needed(learners, k, self.generation_), table, members, xi, labelling, page)
        self.estimator_ = members[0]

    def _usual(self) -> Any:
        return usual_learner(self._classes, hasattr(self, "feature_names_in_"))

    def _peers(self) -> Any:
        return self.peers

    def _learners(self) -> list[Any]:
        peers = self._peers()
        return [self._base(), *([] if peers is None or isinstance(peers, (int, np.integer)) else peers)]

    def _made(self, table: Table) -> int:
        """How many synthetic rows are added."""
        return 0

    def _rounds(self, unlabelled: bool) -> int:
        return self.generations

    def _check(self) -> None:
        if not isinstance(self.generations, (int, np.integer)) or self.generations < 1:
            raise ValueError(f"generations counts trainings: a whole number from 1 on, not {self.generations!r}")
        if self.xi != "auto" and (isinstance(self.xi, str) or not np.isfinite(self.xi)):
            raise ValueError(f"xi is a number or 'auto', not {self.xi!r}")

    def _members(self, random: np.random.RandomState | None, seed: int) -> tuple[list[Any], list[int | None]]:
        """The learner and its peers; copies of it learn from bootstrap samples, or they would agree in everything."""
        learner, peers = seeded(self._base(), random), self._peers()
        if peers is None:
            return [learner], [None]
        if isinstance(peers, (int, np.integer)):
            if peers < 1:
                raise ValueError(f"peers is a number from 1 on, a list of estimators, or None, not {peers}")
            drawn = np.random.RandomState(seed)
            copies = [seeded(self._base(), drawn) for _ in range(peers)]
            return [learner, *copies], [None, *(int(s) for s in drawn.randint(2**31 - 1, size=peers))]
        others = [seeded(peer, random) for peer in peers]
        if not others:
            raise ValueError("peers is an empty list; give estimators, a number, or None")
        return [learner, *others], [None] * (1 + len(others))

    def _choose(
        self,
        kind: Kind,
        learners: list[Any],
        seeds: list[int | None],
        table: Table,
        seed: int,
        number: int,
        ledger: Ledger,
    ) -> tuple[Audited | None, list[float], list[Labelling], Folded | None]:
        """The trust weight and the labelling of every generation, and the audit of each on rows left out."""
        fixed = None if self.xi == "auto" else float(self.xi)
        parts = self._parts(table, seed) if number else None
        audit = self._audit(number)
        if parts is None or (audit.policy == "off" and fixed is not None):
            blind = [self._labelling(k, number, None, table.y, ALIKE) for k in range(1, number + 1)]
            return None, [0.0 if fixed is None else fixed] * number, blind, None
        folded = Folded(kind, table, *parts, ledger, self.n_jobs)
        plan: list[float | None] = [fixed] * number
        if fixed is None and isinstance(kind, Values) and len(learners) == 1 and not table.unknown():
            H = smoother(learners[0], table.rows, table.y, **weighted(learners[0], table.weights))
            copies = Rows(table.weights, parts[1])
            plan = plan if H is None else [*steps(H, table.y, number, rows=copies)]
        ledger.left(_trainings(len(learners), number) * (1 + len(folded)) + 2 * len(folded) * plan.count(None))
        audited = Audited(audit, folded.rows, [], [])
        members = folded.each("generation 0", first, learners, seeds)
        said = folded.said(members)
        audited.add(said, kind.losses(said, folded.y))
        xis, labellings = list[float](), list[Labelling]()
        for k, planned in enumerate(plan, 1):
            labellings.append(self._labelling(k, number, said, folded.y, folded.rows))
            xi = self._tried(folded, learners, members, labellings[-1], k) if planned is None else planned
            xis.append(xi)
            needed = _needed(learners, k, number)
            members = folded.each(f"generation {k}", later, needed, members, xi, labellings[-1])
            said = folded.said(members)
            if not audited.add(said, kind.losses(said, folded.y)):
                break  # the folds went on from it, so nothing after it can be judged
        return audited, xis, labellings, folded

    def _tried(self, folded: Folded, learners: list[Any], members: list[Any], labelling: Labelling, k: int) -> float:
        """The best xi of generation ``k``, by its two ends."""
        without, taught = (
            folded.said(
                folded.each(f"generation {k}, xi = {end:g} tried", later, learners[:1], members, end, labelling)
            )
            for end in (0.0, 1.0)
        )
        return self._best(folded.y, without, taught, folded.rows)

    def _labelling(self, number: int, of: int, said: Floats | None, y: NDArray[Any], rows: Rows) -> Labelling:
        """How generation ``number`` of ``of`` later ones labels; ``said`` of labelled rows left out, if there are."""
        return Labelling(self.selection)

    def _best(self, y: NDArray[Any], without: Floats, taught: Floats, rows: Rows) -> float:
        """The best xi on rows left out, from students of labels alone and of the teacher alone."""
        raise NotImplementedError

    def _history(self, audited: Audited | None, planned: int, table: Table) -> list[dict[str, Any]]:
        if audited is None and planned and self.audit != "off":
            why = "learns from labels; too few rows to audit, so nothing after it is trusted"
            return [told(0, why, None, None, xi=None, labelled_by=[])]
        lines = []
        own = [type(core(self._base())).__name__]
        alone, itself = self._peers() is None, any(labelling.itself for labelling in self._labellings)
        teachers = own if alone else [*own, *self._names()] if itself else self._names()
        for number in range(len(audited.losses) if audited else planned + 1):
            xi = self.xi_[number - 1] if number else None
            by = "its peers" if self._peers() is not None else f"generation {number - 1}"
            by += " and itself" if number and self._labellings[number - 1].itself else ""
            what = "learns from labels" if xi is None else f"trusts {by} by xi = {xi + 0.0:.3g}"
            labelled = table.unknown() if number else 0
            what += f", and by their labels for {labelled} rows" if labelled else ""
            what += f" ({table.synthetic} of them synthetic)" if labelled and table.synthetic else ""
            loss = float(audited.losses[number].mean()) if audited else None
            decision = audited.decisions[number] if audited and number else None
            lines.append(
                told(
                    number,
                    what,
                    loss,
                    decision,
                    xi=xi,
                    labelled_by=teachers if labelled else [],
                    temperature=self._labellings[number - 1].temperature if number else None,
                )
            )
        return lines

    def _names(self) -> list[str]:
        peers = self._peers()
        if isinstance(peers, (int, np.integer)):
            return [type(core(self._base())).__name__] * int(peers)
        return [type(core(peer)).__name__ for peer in peers]


def _needed(learners: list[Any], generation: int, last: int) -> list[Any]:
    """Who is trained in a generation: in the last one nobody but the learner."""
    return learners[:1] if generation == last else learners


def _trainings(members: int, last: int) -> int:
    """How many a chain takes that ends with generation ``last``."""
    return members * last + 1
