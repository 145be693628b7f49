"""Cross-fitted audits: with few labels, every label audits and every label teaches.

The labelled rows (training and audit split together) are cut into K folds. K times the method is trained without one
fold and audited on it; the pooled decisions, on all labelled rows, choose how many generations there are and whether
the plain model is better. Then the method is trained once more, on all labels. It costs K trainings more; what is
audited is the recipe, not the very model that results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method
from ..core.regression import for_task
from ..core.step import Passes
from ..data.dataset import Data
from ..errors import DataError
from ..evaluation.audit import Audit, Decision
from ..evaluation.predict import losses as row_losses
from ..methods.controls import plain
from ..methods.validate import check_method
from .fit import Result, fit
from .settings import Settings


@dataclass
class CrossFit:
    """What the folds chose: how many generations, and whether plain is better; and what it took."""

    generations: int
    plain: bool
    decisions: list[Decision]
    rows: int
    passes: Passes
    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passes": self.passes._asdict(), "seconds": round(self.seconds, 2)}


def parts(y: Tensor, folds: int, seed: int, classes: Sequence[str] = ()) -> Tensor:
    """A fold from 0 to ``folds`` - 1 for each label of ``y`` (rows,), every class spread over the folds evenly.

    ``classes`` are the names of the labels, for the error.

    Raises:
        DataError: a class with one row, or fewer than two folds.

    >>> parts(torch.tensor([0, 0, 1, 1]), 2, seed=0).bincount().tolist()
    [2, 2]
    """
    if folds < 2:
        raise DataError(f"--audit-folds {folds} leaves nothing to train on; give 2 or more, 5 is usual")
    found = torch.empty(len(y), dtype=torch.int64)
    begin = 0
    for label in y.unique().tolist():
        rows = torch.nonzero(y == label).squeeze(1)
        if len(rows) < 2:
            named = classes[int(label)] if classes else label
            raise DataError(f"class {named} has one labelled row: no fold can both teach and audit it; label more rows")
        order = rng.permutation((seed, "folds", int(label)), len(rows))
        found[rows[order]] = (begin + torch.arange(len(rows))) % folds
        begin += len(rows)  # so that small classes do not all fill the first fold
    return found


def all_labels(data: Data) -> Data:
    """The same data with the audit rows among those that teach."""
    labelled = torch.cat([data.labelled, data.audit]).sort().values
    return replace(data, labelled=labelled, audit=data.audit[:0])


def choose(audit: Audit, losses: Sequence[Sequence[float]]) -> tuple[int, list[Decision]]:
    """How many generations to train, from each one's losses on the same rows; they end at the first roll-back.

    >>> choose(Audit(planned=2), [[1.0] * 20, [0.0] * 20, [1.0] * 20])[0]
    2
    """
    best, decisions = 0, []
    for generation in range(1, len(losses)):
        decision = audit.decide(generation, losses[generation], losses[best], against=best)
        decisions.append(decision)
        if not decision.accepted:  # the next one learnt from it in every fold, so it cannot be judged
            break
        if math.fsum(losses[generation]) < math.fsum(losses[best]):
            best = generation
    return best + 1, decisions


def crossfit(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    folds: int,
    out: Path,
    *,
    control: bool,
    device: str | None = None,
    make: Callable[[str], Any] = lambda name: None,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] = lambda line: None,
    **settings: Any,
) -> CrossFit:
    """Train without each fold in turn, audit on it, and choose by all of them.

    ``out`` keeps the folds' trainings, so that a cut run resumes. With ``control`` the plain model is trained for as
    many steps beside the method, and wins where its pooled loss is smaller. ``settings`` are fields of `Settings`.

    Raises:
        DataError: fewer than two folds or rows of a class, an audit that is off, or data that lack what the method
            needs.
    """
    check_method(for_task(method, data.task), data)
    whole = all_labels(data)
    ids, y = whole.labelled, whole.y[whole.labelled]
    audit = Settings(**settings).make_audit(method.generations, data.task)
    if audit.policy == "off":
        raise DataError("--audit-folds audits and --audit off does not; leave one of them out")
    labels = y if data.task == "classify" else torch.zeros_like(y)  # values have no classes to spread
    fold = parts(labels, folds, int(settings.get("seed", 0)), data.classes)
    losses = [[0.0] * len(ids) for _ in range(method.generations)]
    usual = [0.0] * len(ids)
    results: list[Result] = []
    for k in range(folds):
        without = replace(whole, labelled=ids[fold != k], audit=ids[fold == k])
        places, name = torch.nonzero(fold == k).squeeze(1).tolist(), f"fold {k + 1} of {folds}"
        given = {**settings, "audit": "off", "resume": True, "device": device, "warn": warn}
        found = fit(build, without, method, out=out / str(k), progress=make(name), **given)
        for row, t in zip(losses, found.generations, strict=True):
            _scatter(row, places, _held_out_losses(found, t.weights, without, audit.measure))
        results.append(found)
        if control:
            given["steps"] = found.steps
            beside = fit(build, without, plain(), out=out / f"{k}-plain", progress=make(f"{name}, plain"), **given)
            _scatter(usual, places, _held_out_losses(beside, beside.generations[-1].weights, without, audit.measure))
            results.append(beside)
    generations, decisions = choose(audit, losses)
    better = control and math.fsum(usual) < math.fsum(losses[generations - 1])
    for line in (*(d.why for d in decisions), _choice(generations, better, folds)):
        tell(line)
    passes = sum((r.passes for r in results), Passes())
    steps, seconds = sum(r.steps for r in results), sum(r.seconds for r in results)
    return CrossFit(generations, better, decisions, len(ids), passes, steps, seconds)


def _choice(generations: int, plainly: bool, folds: int) -> str:
    what = "the plain model" if plainly else "1 generation" if generations == 1 else f"{generations} generations"
    return f"{folds} folds choose {what}; the product learns from all labels"


def _held_out_losses(result: Result, weights: dict[str, Tensor], data: Data, measure: str) -> list[float]:
    """Losses on the rows that these weights have not learnt from."""
    model = result.model
    model.load_state_dict(weights)
    device = next(model.parameters()).device
    return row_losses(model, data, data.audit, measure, device)


def _scatter(losses: list[float], places: list[int], values: list[float]) -> None:
    for place, value in zip(places, values, strict=True):
        losses[place] = value
