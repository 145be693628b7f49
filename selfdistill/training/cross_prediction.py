"""Cross-prediction: the whole procedure of a run is trained without each fold in turn, and predicts the rows of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import DataError
from ..evaluation.cross_scores import CROSS_FIT, CrossScores
from ..io.files import write
from ..io.run_record import Request
from ..io.schema import parse_json, read_regular
from . import budget
from .cross_fitting import parts
from .task_type import CrossFittable, Listeners

FOLDER = "cross"  # below a run folder: a file for each finished fold, until the run is finished
FOLDS = 5
ALONE = ("budget", "search", "time", "validation", "tasks", "audit_folds", "update", "adapt")
FOLD = {"outputs": list, "result": dict}


def refuse_cross_fit(request: Request) -> None:
    """Refuse options that do not go with cross-fitted scores.

    Raises:
        DataError: there is one.
    """
    given = [name for name in ALONE if getattr(request, name) is not None]
    given += ["label_noise"] if request.label_noise else []
    if given:
        raise DataError(f"--test {CROSS_FIT} does not go with --{given[0].replace('_', '-')}; leave one of them out")


def cross_predict(
    ready: CrossFittable, folder: Path, listeners: Listeners, folds: int | None = None, quick: str | None = None
) -> CrossScores:
    """Train without each fold, and predict it; a fold that was finished before the run was cut is not trained again.

    Args:
        ready: the run on all labelled rows.
        folder: the run folder.
        listeners: of all trainings.
        folds: their number [5, or the number of rows].
        quick: the budget of all trainings together, such as ``1min``.

    Raises:
        DataError: a class has one row.
    """
    rows = ready.labelled_rows()
    labels = rows.y if rows.classes else torch.zeros(len(rows.y), dtype=torch.int64)
    count = min(folds or FOLDS, len(rows.y))
    fold = parts(labels, count, ready.request.seed, rows.classes, rows.groups)
    count = int(fold.max()) + 1
    listeners.tell(
        f"no test split is kept: {count} trainings without a fold score all {len(rows.y):,} labelled rows, and the "
        "final model learns from all of them"
    )
    found, held = [], []
    for number in range(count):
        ids = rows.ids[fold == number]
        if len(ids):
            found.append(
                _fold(ready, ids, folder / FOLDER / str(number), _named(listeners, number, count), quick, count)
            )
            held.append(ids)
    outputs = [torch.tensor(one["outputs"], dtype=torch.float64) for one in found]
    order, y = torch.cat(held), torch.cat([rows.y[fold == number] for number in range(count)])
    return CrossScores(order, y, torch.cat(outputs), [one["result"] for one in found], [len(ids) for ids in held])


def _named(listeners: Listeners, number: int, count: int) -> Listeners:
    """The listeners of a fold, which say whose training it is; what its audit decides is not told."""
    name = f"fold {number + 1} of {count}"
    return Listeners(lambda what: listeners.progress(f"{name}, {what}"), listeners.warn_of(name), lambda line: None)


def _fold(
    ready: CrossFittable, held: torch.Tensor, folder: Path, listeners: Listeners, quick: str | None, count: int
) -> Mapping[str, Any]:
    """The outputs on the rows of a fold, and the facts of the training without it."""
    done = folder.with_suffix(".json")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run = ready.without(held)
        seconds = budget.parse_budget(quick).seconds if quick is not None else None
        share = None if seconds is None else f"{seconds / (count + 1):g}s"
        with budget.limited(share, folder, listeners.warn):
            result = run.train(folder, listeners)
        names = ("generations", "final_generation", "plain", "importance")
        facts = {name: result[name] for name in names if name in result}
        write(done, json.dumps({"outputs": run.answers(folder).tolist(), "result": facts}))
        shutil.rmtree(folder, ignore_errors=True)
    return dict(parse_json(read_regular(done), FOLD, nan=True))
