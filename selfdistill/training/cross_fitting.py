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
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method
from ..core.regression import for_task
from ..core.step import Passes
from ..data.dataset import Data, with_clean_rows
from ..data.splits import difference
from ..errors import DataError
from ..evaluation.audit import Audit, Decision, measure_for
from ..evaluation.label_errors import held_predictions, taught_predictions
from ..evaluation.predict import losses as row_losses
from ..methods.controls import plain
from ..methods.validate import check_method
from . import budget
from .callbacks import error_bounds_of
from .fit import Result, fit
from .settings import Settings


@dataclass
class CrossFit:
    """The choice of the folds, how many generations and whether plain is better, and its cost."""

    generations: int
    plain: bool
    decisions: list[Decision]
    rows: int
    passes: Passes
    steps: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passes": self.passes._asdict(), "seconds": round(self.seconds, 2)}


class FoldPredictions(NamedTuple):
    """Predictions of every labelled row by trainings that left it out, and by the memories of those that learnt it."""

    ids: Tensor  # (rows,)
    held: Tensor  # (rows, outputs): probabilities, or standardised values
    memory: Tensor | None  # (rows, outputs): the mean of the memories; None where the method has none


def parts(y: Tensor, folds: int, seed: int, classes: Sequence[str] = (), groups: Tensor | None = None) -> Tensor:
    """A fold from 0 to ``folds`` - 1 for each label of ``y`` (rows,), every class spread over the folds evenly.

    ``classes`` are the names of the labels, for the error; rows of one of the ``groups`` (rows,) share a fold.

    Raises:
        DataError: a class with one row, or fewer than two folds.

    >>> parts(torch.tensor([0, 0, 1, 1]), 2, seed=0).bincount().tolist()
    [2, 2]
    """
    if folds < 2:
        raise DataError(f"--audit-folds {folds} leaves nothing to train on; give 2 or more, 5 is usual")
    if groups is not None and len(groups.unique()) < len(y):
        _, first, inverse = np.unique(groups.numpy(), return_index=True, return_inverse=True)
        return parts(y[torch.from_numpy(first)], folds, seed, classes)[torch.from_numpy(inverse)]
    fold = torch.empty(len(y), dtype=torch.int64)
    begin = 0
    for label in y.unique().tolist():
        rows = torch.nonzero(y == label).squeeze(1)
        if len(rows) < 2:
            label_name = classes[int(label)] if classes else label
            raise DataError(
                f"class {label_name} has one labelled row (or copies of one): no fold can both teach and audit it; "
                "label more rows"
            )
        order = rng.permutation((seed, "folds", int(label)), len(rows))
        fold[rows[order]] = (begin + torch.arange(len(rows))) % folds
        begin += len(rows)  # so that small classes do not all fill the first fold
    return fold


def all_labels(data: Data) -> Data:
    """The same data with the audit rows among those that teach."""
    labelled = torch.cat([data.labelled, data.audit]).sort().values
    return replace(data, labelled=labelled, audit=data.audit[:0])


def every_label(data: Data) -> Data:
    """The same data with the audit and the test rows among those that teach."""
    data = all_labels(data)
    return replace(data, labelled=torch.cat([data.labelled, data.test]).sort().values, test=data.test[:0])


def _without(data: Data, held: Tensor, method: Method) -> Data:
    """The same data, of which the held rows audit and neither teach nor weigh others.

    Raises:
        DataError: they are all the rows with clean labels, or the method's thresholds follow the rows that audit.
    """
    if error_bounds_of(method):
        raise DataError("thresholds by max_error follow the rows that folds judge by; leave max_error or the folds out")
    clean = difference(data.clean, held)
    if len(data.clean) and not len(clean):
        raise DataError(f"{data.name}: a fold holds all rows with clean labels; let a person decide more of them")
    return replace(data, labelled=difference(data.labelled, held), audit=held, clean=clean)


def choose(audit: Audit, losses: Sequence[Sequence[float]]) -> tuple[int, list[Decision]]:
    """The number of generations to train, from each one's losses on the same rows; they end at the first roll-back.

    >>> choose(Audit(planned=2), [[1.0] * 20, [0.0] * 20, [1.0] * 20])[0]
    2
    """
    champion, decisions = 0, []
    for generation in range(1, len(losses)):
        decision = audit.decide(generation, losses[generation], losses[champion], against=champion)
        decisions.append(decision)
        if not decision.accepted:  # the next one learnt from it in every fold, so it cannot be judged
            break
        if math.fsum(losses[generation]) < math.fsum(losses[champion]):
            champion = generation
    return champion + 1, decisions


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
    data = with_clean_rows(data, method.views, int(settings.get("seed", 0)))
    check_method(for_task(method, data.task), data)
    pooled = all_labels(data)
    ids, y = pooled.labelled, pooled.y[pooled.labelled]
    audit = Settings(**settings).make_audit(method.generations, data.task)
    if audit.policy == "off":
        raise DataError("--audit-folds audits and --audit off does not; leave one of them out")
    labels = y if data.task == "classify" else torch.zeros_like(y)  # values have no classes to spread
    groups = None if data.groups is None else data.groups[ids]
    fold = parts(labels, folds, int(settings.get("seed", 0)), data.classes, groups)
    losses = [[0.0] * len(ids) for _ in range(method.generations)]
    plain_losses = [0.0] * len(ids)
    results: list[Result] = []
    for k in range(folds):
        remainder = _without(pooled, ids[fold == k], method)
        positions, name = torch.nonzero(fold == k).squeeze(1).tolist(), f"fold {k + 1} of {folds}"
        options = {**settings, "audit": "off", "resume": True, "device": device, "warn": warn}
        result = fit(build, remainder, method, out=out / str(k), progress=make(name), **options)
        losses = losses[: len(result.generations)]  # a budget may end a fold before its last generation
        for row, t in zip(losses, result.generations, strict=False):
            _scatter(row, positions, _held_out_losses(result, t.weights, remainder, audit.measure))
        results.append(result)
        if control:
            options["steps"] = result.steps
            with budget.following():
                control_result = fit(
                    build, remainder, plain(), out=out / f"{k}-plain", progress=make(f"{name}, plain"), **options
                )
            _scatter(
                plain_losses,
                positions,
                _held_out_losses(control_result, control_result.generations[-1].weights, remainder, audit.measure),
            )
            results.append(control_result)
    generations, decisions = choose(audit, losses)
    plain_wins = control and math.fsum(plain_losses) < math.fsum(losses[generations - 1])
    for line in (*(d.why for d in decisions), _choice(generations, plain_wins, folds)):
        tell(line)
    passes = sum((r.passes for r in results), Passes())
    steps, seconds = sum(r.steps for r in results), sum(r.seconds for r in results)
    return CrossFit(generations, plain_wins, decisions, len(ids), passes, steps, seconds)


def cross_examine(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    folds: int,
    out: Path,
    *,
    make: Callable[[str], Any] = lambda name: None,
    **settings: Any,
) -> FoldPredictions:
    """Predictions for every labelled row by trainings without its fold, and by the memories of the other trainings.

    Rows of validation and test teach too, since no score is taken from these trainings.

    Args:
        build, data, method, folds, out: as of `crossfit`.
        make: the reporter of a training, by its name.
        settings: arguments of `fit`.

    Returns:
        The ids of the rows, and both predictions for them.

    Raises:
        DataError: as of `parts`.
    """
    whole = every_label(data)
    ids, y = whole.labelled, whole.y[whole.labelled]
    labels = y if data.task == "classify" else torch.zeros_like(y)
    groups = None if data.groups is None else data.groups[ids]
    fold = parts(labels, folds, int(settings.get("seed", 0)), data.classes, groups)
    held, memory, times = torch.zeros(len(ids), data.outputs), torch.zeros(len(ids), data.outputs), 0
    for k in range(folds):
        rest = replace(whole, labelled=ids[fold != k])
        result = fit(
            build, rest, method, out=out / str(k), resume=True,
            progress=make(f"label errors, fold {k + 1} of {folds}"), **{**settings, "audit": "off"},
        )  # fmt: skip
        result.model.cpu()
        held[fold == k] = held_predictions(result, rest, ids[fold == k])
        remembered, source = taught_predictions(result, rest) if data.task == "classify" else (held, "")
        if source == "memory":
            memory[fold != k] += remembered / (folds - 1)
            times += 1
    return FoldPredictions(ids, held, memory if times == folds else None)


def train_without_fold(
    build: Callable[..., nn.Module], data: Data, method: Method, fold: int, folds: int, out: Path, **settings: Any
) -> tuple[float, Result]:
    """Train on all labelled rows but those of one fold: the mean loss on these, and the training.

    Args:
        build, data, method, out: as of `crossfit`.
        fold: the one that is left out, of ``folds``; the same for equal seeds, whatever the method.
        settings: arguments of `fit`.

    Raises:
        DataError: fewer than two folds or rows of a class, or data that lack what the method needs.
    """
    pooled = all_labels(with_clean_rows(data, method.views, int(settings.get("seed", 0))))
    ids, y = pooled.labelled, pooled.y[pooled.labelled]
    labels = y if data.task == "classify" else torch.zeros_like(y)
    groups = None if data.groups is None else data.groups[ids]
    places = parts(labels, folds, int(settings.get("seed", 0)), data.classes, groups)
    remainder = _without(pooled, ids[places == fold], method)
    result = fit(build, remainder, method, out=out, **{**settings, "audit": "off"})
    measure = measure_for(data.task, settings.get("audit_measure"))
    losses = _held_out_losses(result, result.generations[-1].weights, remainder, measure)
    return math.fsum(losses) / len(losses), result


def _choice(generations: int, plainly: bool, folds: int) -> str:
    subject = "the plain model" if plainly else "1 generation" if generations == 1 else f"{generations} generations"
    return f"{folds} folds choose {subject}; the final model learns from all labels"


def _held_out_losses(result: Result, weights: dict[str, Tensor], data: Data, measure: str) -> list[float]:
    """Losses on the rows that these weights have not learnt from."""
    model = result.model
    model.load_state_dict(weights)
    device = next(model.parameters()).device
    return row_losses(model, data, data.audit, measure, device)


def _scatter(losses: list[float], positions: list[int], values: list[float]) -> None:
    for position, value in zip(positions, values, strict=True):
        losses[position] = value
