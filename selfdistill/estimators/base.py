"""What the estimators share: checked input, folds that audit, the chain of generations, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..errors import DataError
from ..evaluation.audit import Audit, Decision, champion
from .tables import Floats, Ints, Rows, Table, blockwise, count, folds, parting, take
from .weights import weighted

__all__ = ["Audited", "SelfTaught", "available_if", "delegates", "told"]


class SelfTaught(MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that wraps another one and trains it for several generations; base of the public ones."""

    estimator: Any
    audit: str
    audit_folds: int | float | str
    random_state: Any
    n_jobs: int | None
    _classes = False
    _measure = "mse"

    # input ------------------------------------------------------------------------------------------------------------

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        members = [get_tags(learner).input_tags for learner in self._learners()]
        for name in ("sparse", "allow_nan", "categorical"):
            setattr(tags.input_tags, name, all(getattr(member, name) for member in members))
        tags.target_tags.single_output = True
        tags.target_tags.multi_output = False
        return tags

    def _base(self) -> Any:
        """The learner to wrap, never fitted itself."""
        raise NotImplementedError

    def _learners(self) -> list[Any]:
        """The learner and whoever learns beside it."""
        return [self._base()]

    def _rows(self, X: Any, reset: bool) -> Any:
        """Checked rows: a frame stays a frame, lists and arrays become arrays, a sparse matrix CSR."""
        frame = hasattr(X, "columns")
        if frame:
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        tags = get_tags(self)
        finite: bool | str = "allow-nan" if tags.input_tags.allow_nan else True
        sparse = "csr" if tags.input_tags.sparse else False
        return validate_data(self, X, reset=reset, accept_sparse=sparse, dtype=None, ensure_all_finite=finite)

    def _table(self, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any) -> Table:
        """What ``fit`` was given, checked; rows of weight 0 are not there."""
        X = self._rows(X, reset=True)
        y = self._targets(y, X)
        if count(X) != len(y):
            raise ValueError(f"Found input variables with inconsistent numbers of samples: [{count(X)}, {len(y)}]")
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
            if not weights.all():
                there = np.flatnonzero(weights)
                X, y, weights = take(X, there), y[there], weights[there]
            weighted(self._base(), weights)
        unlabelled = None
        if X_unlabeled is not None:
            unlabelled = self._unlabelled(X, X_unlabeled)
        return Table(X, y, weights, unlabelled)

    def _targets(self, y: Any, X: Any) -> NDArray[Any]:
        raise NotImplementedError

    def _unlabelled(self, X: Any, U: Any) -> Any:
        names, given = (list(rows.columns) if hasattr(rows, "columns") else None for rows in (X, U))
        if names != given and names is not None and given is not None:
            odd = sorted({*names} ^ {*given}, key=str)
            what = f"column {odd[0]!r} is in one of them only" if odd else "the order of the columns differs"
            raise ValueError(f"X_unlabeled has other columns than X: {what}; give the columns of X, in their order")
        if (names is None) != (given is None):
            raise ValueError("X is a frame and X_unlabeled is none, or the other way round; give both alike")
        wide = U.shape[1] if hasattr(U, "shape") and len(U.shape) == 2 else None
        if wide is not None and wide != self.n_features_in_:
            raise ValueError(f"X_unlabeled has {wide} columns and X has {self.n_features_in_}; give the same columns")
        U = self._rows(U, reset=False)
        return U if count(U) else None

    # generations ------------------------------------------------------------------------------------------------------

    def _random(self) -> np.random.RandomState | None:
        return None if self.random_state is None else check_random_state(self.random_state)

    def _audit(self, planned: int) -> Audit:
        try:
            return Audit(self.audit, planned=max(1, planned), measure=self._measure)
        except DataError as error:
            raise ValueError(str(error)) from None

    def _parts(self, table: Table, seed: int) -> tuple[Ints, Ints] | None:
        """Folds of the labelled rows, and distinct rows; None where there are too few to audit."""
        number = parting(self.audit_folds, len(table.y))
        fold, distinct = folds(table.rows, table.y, number, seed, self._classes)
        if isinstance(number, float):
            parts = len(np.unique(distinct[fold == 0])), len(np.unique(distinct[fold != 0]))
            return (fold, distinct) if min(parts) >= 2 else None
        enough = distinct.max() + 1 >= 2 * number
        if self._classes:
            first = np.unique(distinct, return_index=True)[1]
            enough = enough and np.unique(table.y[first], return_counts=True)[1].min() >= number
        return (fold, distinct) if enough else None

    # what a caller sees -----------------------------------------------------------------------------------------------

    def predict(self, X: Any) -> NDArray[Any]:
        """What the product says of rows (rows, columns)."""
        check_is_fitted(self, "estimator_")
        return np.asarray(blockwise(self.estimator_.predict, self._rows(X, reset=False)))

    def report(self) -> str:
        """What happened, in lines: each generation, its trust weight, its score, and what the audit decided.

        Raises:
            NotFittedError: before ``fit``.
        """
        if not hasattr(self, "history_"):
            raise NotFittedError(f"this {type(self).__name__} is not fitted yet; call fit first")
        lines = []
        for row in self.history_:
            lines.append(f"generation {row['generation']}: {row['what']}{self._scored(row['loss'])}")
            if row["decision"]:
                lines.append(f"  {row['decision']['why']}")
        best = "" if self.audit == "off" or len(lines) < 2 else ", the best of those accepted on rows not learnt from"
        return "\n".join([*lines, f"the product is generation {self.generation_}{best}"])

    def _scored(self, loss: float | None) -> str:
        """A loss as people say it: of classes, the share that is right."""
        if loss is None:
            return ""
        score = 1.0 - loss if self._measure == "accuracy" else loss
        return f", {self._measure} {score:.4g} on rows not learnt from"


@dataclass
class Audited:
    """The audit of a chain over folds: losses of every generation by distinct row, and the decisions."""

    audit: Audit
    rows: Rows
    losses: list[Floats]
    decisions: list[Decision]
    said: list[Floats] = field(default_factory=list)

    def add(self, said: Floats, losses: Floats) -> bool:
        """What a generation said of each row, made without it, and its loss; may it teach the next one?"""
        number = len(self.losses)
        self.losses.append(self.rows.pooled(losses))
        self.said.append(said)
        if number == 0:
            self.decisions.append(Decision(0, True, "generation 0 accepted: there is none before it"))
            return True
        against = self.product()
        decision = self.audit.decide(number, self.losses[-1], self.losses[against], against=against)  # type: ignore[arg-type]
        if self.audit.policy == "off":
            decision = replace(decision, accepted=True, why=f"generation {number} accepted: the audit is off")
        self.decisions.append(decision)
        return decision.accepted

    def product(self) -> int:
        """The best accepted generation; the last one where the audit is off."""
        if self.audit.policy == "off":
            return len(self.losses) - 1
        accepted = [d.generation for d in self.decisions if d.accepted]
        return champion([[float(v) for v in losses] for losses in self.losses], accepted)


def told(generation: int, what: str, loss: float | None, decision: Decision | None, **more: Any) -> dict[str, Any]:
    """One line of ``history_``."""
    shown: Mapping[str, Any] | None = asdict(decision) if decision else None
    return {"generation": generation, "what": what, "loss": loss, "decision": shown, **more}


def delegates(name: str) -> Callable[[SelfTaught], bool]:
    """Is a method there because the wrapped learner has it?"""

    def check(self: SelfTaught) -> bool:
        getattr(getattr(self, "estimator_", None) or self._base(), name)
        return True

    return check
