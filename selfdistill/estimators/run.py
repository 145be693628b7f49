"""A run of a learner of scikit-learn on a table: every choice made, trained, judged, and asked of new rows.

The learner is kept as a skops file, and every training that ended is kept until the run ends.

::

    fits/             one file a training, so that a run that was cut goes on; gone when it is done
    model/            estimator.skops, data.json, README.md
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import frames
from ..data.annotators import read_names
from ..data.frames import Frame, SplitRows
from ..data.inputs import REMEDY, source_of, table_of
from ..data.split_columns import SplitRequest
from ..errors import DataError, RecipeError
from ..evaluation import label_errors, metrics
from ..evaluation.cross_scores import CROSS_FIT, CrossScores
from ..evaluation.importance import PREDICTIONS, ROWS
from ..evaluation.label_next import Committee, require_unlabelled
from ..evaluation.predict import (
    COVERAGE,
    Predictions,
    ValuePredictions,
    covered,
    halfwidth,
    points,
    scored,
    some_of,
    with_interval,
)
from ..io.expressions import one_line
from ..io.run_record import Request
from ..methods.registry import AUTO
from ..models.store import ESTIMATOR, model_card, model_folder
from ..training import budget, threads
from ..training.shortlist import visible
from ..training.task_type import HeldOut, LabelledRows, Listeners, Predictor, require_same_data
from . import base_learners
from .base_learners import NETWORKS
from .recipes import EstimatorRecipe, read_recipe

if TYPE_CHECKING:
    from .auto import AutoDistillation

BOOSTING = "boosting"  # what a table is learnt by where nothing is asked for


_OURS = ("audit",)  # the settings of a training that learners have too


@dataclass
class TableRun:
    """A run on a table with every choice made: the learner, its peers, and how they teach."""

    request: Request
    data: Frame
    recipe: EstimatorRecipe
    expression: str
    build: str  # the learner's expression
    settings: dict[str, Any]
    crossed: CrossScores | None = None  # in place of scores on a test split

    @property
    def note(self) -> str:
        """A notice about the data to print before training; mostly empty."""
        return self.data.note

    @property
    def classify(self) -> bool:
        return self.data.task == "classify"

    def threads(self) -> int:
        """How many threads learn the table."""
        return threads.for_table(len(self.data.y), self.data.sample.shape[1])

    def learner(self, seed: int) -> Any:
        """The learner alone, seeded."""
        from numpy.random import RandomState

        from .wrappers import seeded_clone

        return seeded_clone(self._learner(), RandomState(seed))

    def _learner(self) -> Any:
        return base_learners.learner(self.build, self.classify, self.data.sample, len(self.data.labelled))

    def peers(self) -> list[Any]:
        """The usual peers for such a table."""
        from .base_learners import usual_peers

        return usual_peers(self.data.sample, classify=self.classify)

    def estimator(self, seed: int, **more: Any) -> Any:
        """The learner that teaches itself, not fitted."""
        if self.recipe.name == "plain":
            return self.learner(seed)
        options = {"random_state": seed, "audit": self.settings["audit"], "audit_folds": self.settings["audit_folds"]}
        return self.recipe.make(self._learner(), self.peers(), self.classify, **options, **more)

    def held_out(self, fold: int, folds: int, folder: Path) -> HeldOut | None:
        """Train on all labelled rows but those of a fold, and score these; None where there is no such fold."""
        from threadpoolctl import threadpool_limits

        from .resume import keeping

        seed, begun, done = int(self.settings["seed"]), time.monotonic(), [0]
        parts = folds_of(self, seed)
        if fold >= min(folds, len(parts)):
            return None
        labelled, (teach, held) = self.data.parts["labelled"], parts[fold]
        taught, left_out = (SplitRows(labelled.ids[rows], labelled.features.iloc[rows]) for rows in (teach, held))
        run = replace(self, data=replace(self.data, parts={**self.data.parts, "labelled": taught}))

        def progress(number: int, planned: int, what: str) -> None:
            done[0] = number

        with threadpool_limits(torch.get_num_threads()), keeping(folder, progress):
            outputs = predict_frame(fit(run, run.estimator(seed)), left_out.features, len(run.data.classes))
        y = torch.from_numpy(self.data.y[left_out.ids])
        losses = (outputs.argmax(-1) != y).double() if self.classify else (outputs - y) ** 2
        passes = float(max(1, done[0]) * (len(teach) + len(self.data.unlabelled)))
        return HeldOut(float(losses.mean()), passes, time.monotonic() - begun)

    def labelled_rows(self) -> LabelledRows:
        """All labelled rows."""
        ids = self.data.labelled[~np.isin(self.data.labelled, self.data.by_model)]
        groups = None if self.data.groups is None else torch.from_numpy(self.data.groups[ids])
        return LabelledRows(torch.from_numpy(ids), torch.from_numpy(self.data.y[ids]), self.data.classes, groups)

    def without(self, held: Tensor) -> TableRun:
        """The run on the other labelled rows."""
        part, request = self.data.parts["labelled"], replace(self.request, test=None, refit=None, folds=None)
        left_out = np.isin(part.ids, held.numpy())
        cut = {
            name: SplitRows(part.ids[rows], part.features.iloc[np.flatnonzero(rows)])
            for name, rows in (("labelled", ~left_out), ("test", left_out))
        }
        return replace(self, request=request, data=replace(self.data, parts={**self.data.parts, **cut}))

    def answers(self, folder: Path) -> Tensor:
        """What the final model in a folder predicts for the test rows."""
        from .io import load
        from .wrappers import ClassNames

        model = load(folder / "model" / ESTIMATOR)
        learner = model.estimator_ if isinstance(model, ClassNames) else model
        return predict_frame(learner, self.data.rows(self.data.test), len(self.data.classes))

    def scored_by(self, scores: CrossScores) -> TableRun:
        """The run whose final model learns from all labelled rows."""
        return replace(self, request=replace(self.request, refit=None), crossed=scores)

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Train the learner that teaches itself and, to compare, the learner alone; then read the test split, once."""
        return {"run": str(folder), **train(self, folder, listeners)}


def prepare(request: Request) -> TableRun:
    """Load the table and fill in what the request leaves open.

    Raises:
        DataError: the table, or an option that only networks have.
        RecipeError: the learner or the recipe does not fit the task.
    """
    _refuse_network_options(request)
    whole = request.test == CROSS_FIT
    data = frames.load(
        request.data, target=request.target, unlabelled=request.unlabelled, labels=request.labels,
        label_noise=request.label_noise, seed=request.seed, columns=dict(request.columns),
        request=SplitRequest(
            request.groups, request.time, Path(request.test) if request.test and not whole else None,
            Path(request.validation) if request.validation else None,
            annotators=read_names(request.annotators, request.label_noise),
        ),
        decisions=request.decisions, raw_csv=request.raw_csv, whole=whole,
    )  # fmt: skip
    expression = request.method or f"{AUTO}()"
    folds = request.audit_folds or (None if whole else request.folds) or "auto"
    settings = {"seed": request.seed, "audit": "safe", "audit_folds": folds}
    run = TableRun(
        request,
        data,
        read_recipe(expression),
        expression,
        request.model or BOOSTING,
        {**settings, **dict(request.training)},
    )
    if not len(data.unlabelled) and run.recipe.name in ("peer_taught", "self_trained"):
        raise DataError(f"{expression} learns from unlabelled rows and {data.name} has none; give --labels N or "
                        "--unlabelled PATH, or take self_distilled()")  # fmt: skip
    run.estimator(request.seed)  # what does not fit says so before anything is trained
    return run


def _refuse_network_options(request: Request) -> None:
    names = ("steps", "epochs", "batch_size", "image_size", "augment", "init", "targets", "memory", "explore")
    asked = {name: getattr(request, name) for name in names}
    asked |= {name: value for name, value in request.training if name not in _OURS}
    for name, value in asked.items():
        if value is not None:
            option = f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
            raise DataError(
                f"{option} is for networks, and {request.data} is learnt by "
                f"{request.model or BOOSTING}; leave it out, or give --model {NETWORKS}"
            )


MOST = 20_000  # labelled rows, beyond which the learner alone is not trained five times more for its interval


FOLDS = 5  # of labelled rows, unless --folds gives another number


FEWEST = 20  # labelled rows, below which none are left out to examine their labels


KEPT = 1.0  # seconds of a training from which on it is kept for a resumed run


def predict_frame(model: Any, frame: Any, classes: int) -> Tensor:
    """The outputs of a fitted estimator: log-probabilities (rows, classes), or values (rows,)."""
    with warnings.catch_warnings():  # that an unknown category is taken for a missing one is what was asked for
        warnings.filterwarnings("ignore", message="Found unknown categories")
        if not classes:
            return torch.from_numpy(np.asarray(model.predict(frame), dtype=np.float64))
        probabilities = np.zeros((len(frame), classes))
        probabilities[:, np.asarray(model.classes_, dtype=np.int64)] = model.predict_proba(frame)
    return torch.from_numpy(probabilities).clamp(min=1e-12).log()


def fit(run: TableRun, model: Any) -> Any:
    """Fit an estimator on the rows that teach."""
    from .tables import name_columns

    data = run.data
    given: dict[str, Any] = {}
    if self_taught(model) and len(data.unlabelled):
        given["X_unlabeled"] = data.rows(data.unlabelled)
    if self_taught(model) and data.groups is not None:
        given["groups"] = data.groups[data.labelled]
    if self_taught(model) and data.time is not None:
        given["time"] = data.time[data.labelled]
    rows = data.rows(data.labelled)
    try:
        with name_columns(rows) if not self_taught(model) else nullcontext():
            return model.fit(rows, data.y[data.labelled], **given)
    except (ValueError, TypeError) as error:  # a learner says so of rows or options that it cannot take
        raise RecipeError(f"{run.build} on {data.name}: {one_line(error)}") from error


def self_taught(model: Any) -> bool:
    """Whether it is an estimator of this package, which takes unlabelled rows and has a history."""
    return hasattr(model, "report")


Fold = tuple[NDArray[np.int64], NDArray[np.int64]]  # the places of rows that teach, and of those left out


def folds_of(run: TableRun, seed: int) -> list[Fold]:
    """Folds of the labelled rows, as places of those that teach and of those left out.

    Every class is spread over them where it has enough rows, and copies and the rows of a group share a fold. With a
    time, rows are left out block by block, and only earlier ones teach.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    y = run.data.y[run.data.labelled]
    groups = np.arange(len(y)) if run.data.groups is None else run.data.groups[run.data.labelled]
    if run.data.time is not None:
        return _folds_in_order(run.data.time[run.data.labelled], groups, run.request.folds or FOLDS)
    number = min(run.request.folds or FOLDS, len(np.unique(groups)))
    together = len(np.unique(groups)) < len(y)
    spread = run.classify and np.unique(y, return_counts=True)[1].min() >= number
    kinds = (StratifiedGroupKFold, GroupKFold) if together else (StratifiedKFold, KFold)
    folds = kinds[0 if spread else 1](number, shuffle=True, random_state=seed)
    return list(folds.split(np.zeros(len(y)), y, groups if together else None))


def _folds_in_order(time: NDArray[np.float64], groups: NDArray[np.int64], number: int) -> list[Fold]:
    """Later and later blocks of rows (rows,) by their time, each with the rows before it whose group is not in it.

    Raises:
        DataError: all rows are of one time or one group.
    """
    moments = np.unique(np.quantile(time, np.arange(1, number + 1) / (number + 1), method="higher"))
    moments = moments[moments > time.min()] if (moments > time.min()).any() else np.array([time.max()])
    ends = [*moments[1:], np.inf]
    blocks = [(time < begin, (begin <= time) & (time < end)) for begin, end in zip(moments, ends, strict=True)]
    folds = [(before & ~np.isin(groups, groups[held]), held) for before, held in blocks]
    places = [(np.flatnonzero(teach), np.flatnonzero(held)) for teach, held in folds if teach.any() and held.any()]
    if not places:
        raise DataError("no labelled row is earlier than the others; leave --time out")
    return places


def cross_predict(run: TableRun, model: Any, seed: int) -> tuple[NDArray[np.int64], Tensor]:
    """The places of labelled rows that were left out, and an estimator's outputs on each when trained without its fold,
    as of `predict_frame`."""
    from sklearn.base import clone

    data, rows = run.data, run.data.labelled
    y, outputs, places = data.y[rows], list[Tensor](), list[NDArray[np.int64]]()
    for teach, held in folds_of(run, seed):
        fitted = clone(model).fit(data.rows(rows[teach]), y[teach])
        outputs.append(predict_frame(fitted, data.rows(rows[held]), len(data.classes)))
        places.append(held)
    order = np.concatenate(places).argsort()
    return np.concatenate(places)[order], torch.cat(outputs)[torch.from_numpy(order)]


def residuals(run: TableRun, model: Any, seed: int) -> Tensor | None:
    """Errors of values on labelled rows left out, of an estimator of ours or of another; None where there are none."""
    if run.classify:
        return None
    known = getattr(model, "residuals_", None)
    if self_taught(model) and known is not None:
        return torch.from_numpy(np.asarray(known, dtype=np.float64))
    if len(run.data.labelled) > MOST:
        return None
    held, outputs = cross_predict(run, getattr(model, "estimator_", model), seed)
    return torch.from_numpy(run.data.y[run.data.labelled[held]]) - outputs


def score_test(
    run: TableRun, model: Any, errors: Tensor | None, ids: NDArray[np.int64] | None = None
) -> tuple[dict[str, float], Tensor, float | None]:
    """Metrics on the test split, or on some of its rows, the outputs and, for values whose errors on rows left out are
    known, half the width of an interval of 90 %."""
    data = run.data
    ids = data.test if ids is None else ids
    y = torch.from_numpy(data.y[ids])
    outputs = predict_frame(model, data.rows(ids), len(data.classes))
    figures = scored(outputs, y, data.task)
    if errors is None:
        return figures, outputs, None
    half = halfwidth(errors)
    return {**figures, **covered(outputs, y, errors)}, outputs, half if half < torch.inf else None


def training_gap(run: TableRun, model: Any, test: Mapping[str, float]) -> dict[str, float]:
    """The gap between the scores on labelled training rows and those on the test split, as of `metrics.gap`."""
    ids = run.data.labelled[some_of(torch.arange(len(run.data.labelled))).numpy()]
    outputs = predict_frame(model, run.data.rows(ids), len(run.data.classes))
    return metrics.gap(scored(outputs, torch.from_numpy(run.data.y[ids]), run.data.task), test)


def importance(run: TableRun, model: Any) -> dict[str, Any]:
    """By how much the test score falls where the values of a column are shuffled; nothing where that costs too much.

    Source: Breiman, Random forests, 2001; the permutation importance of scikit-learn, which computes it.
    """
    from sklearn.inspection import permutation_importance

    most = PREDICTIONS
    ids = run.data.test[:: max(1, -(-len(run.data.test) // ROWS))]
    frame = run.data.rows(ids)
    if run.request.budget is not None or frame.shape[1] > most:
        return {}
    metric = "accuracy" if run.classify else "neg_root_mean_squared_error"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found unknown categories")
        measured = permutation_importance(
            model, frame, run.data.y[ids], scoring=metric, n_repeats=min(5, most // frame.shape[1]),
            random_state=int(run.settings["seed"]),
        )  # fmt: skip
    columns = zip(frame.columns, measured.importances_mean, measured.importances_std, strict=True)
    found = [{"name": str(name), "mean": float(mean), "deviation": float(std)} for name, mean, std in columns]
    return {"importance": sorted(found, key=lambda one: -one["mean"])}


def train(run: TableRun, folder: Path, listeners: Listeners) -> dict[str, Any]:
    """Train the learner that teaches itself and, to compare, the learner alone; then read the test split, once."""
    from threadpoolctl import threadpool_limits

    from ..data.tables import skops
    from .auto import AutoDistillation
    from .io import save
    from .resume import keeping
    from .wrappers import ClassNames

    skops()  # the model is saved with it: without it nothing is worth a training
    begun, seed, data = time.monotonic(), int(run.settings["seed"]), run.data
    done = [0]
    learner = run.estimator(seed)  # what it imports is no part of the first training's time
    first = time.monotonic()
    reporter, again = listeners.progress(run.expression), any((folder / "fits").glob("*"))

    def progress(number: int, planned: int, what: str) -> None:
        done[0] = number
        if number == 1 and planned > 1 and not again:
            about = planned * (time.monotonic() - first)
            listeners.tell(
                f"at most {planned} trainings, about {about:.0f} s if all take as long as the first; fewer where the "
                "audit ends a chain early"
            )
            if run.request.budget is None:
                budget.foretell(about, "give --budget 2min, or --method 'self_distilled()'", listeners.tell)
        if reporter:
            reporter.count(number, planned, what)

    automatic = isinstance(learner, AutoDistillation)
    if automatic:
        what = visible(len(data.labelled), "accuracy" if run.classify else "mse", "labelled")
        listeners.tell(f"auto(): learners of several kinds, their stack and a student of it, judged by {what}")
    with threadpool_limits(torch.get_num_threads()):  # scikit-learn's threads are not torch's
        with keeping(folder / "fits", progress, KEPT):
            model = fit(run, learner)
        seconds = time.monotonic() - begun
        if self_taught(model):
            for line in model.report().splitlines():
                listeners.tell(line)
        alone = model.alone_ if automatic else fit(run, run.learner(seed)) if self_taught(model) else model
        result = _result(run, model, alone, max(1, done[0]), seconds)
        result["label_errors"] = report_label_errors(run, model, alone, folder)
        if automatic:
            result |= _tried(run, model, result)
        if run.request.refit:
            model = _refit(run, result)
        if automatic:
            model.forget()
    place = folder / "model"
    place.mkdir(exist_ok=True)
    save(ClassNames.of(model, data.classes) if run.classify else model, place / ESTIMATOR)
    half = result.pop("half")
    frames.write_card(data, place, method=run.expression, model=run.build, half=half, coverage=COVERAGE)
    shutil.rmtree(folder / "fits", ignore_errors=True)
    return result


def _refit(run: TableRun, result: dict[str, Any]) -> Any:
    """The method fitted once more on every labelled row, which makes its choices anew."""
    import pandas as pd

    teaching, test = run.data.parts["labelled"], run.data.parts["test"]
    ids = np.concatenate([teaching.ids, test.ids])
    order = np.argsort(ids)
    labelled = SplitRows(ids[order], pd.concat([teaching.features, test.features]).iloc[order])
    none = SplitRows(test.ids[:0], test.features[:0])
    again = replace(run, data=replace(run.data, parts={**run.data.parts, "labelled": labelled, "test": none}))
    result["refit"] = {
        "rows": len(ids),
        "about": f"the final model was fitted again on all {len(ids):,} labelled rows; the scores are of the model "
        "before, which learnt from the training split alone",
    }
    return fit(again, again.estimator(int(run.settings["seed"])))


def _result(run: TableRun, model: Any, alone: Any, trainings: int, seconds: float) -> dict[str, Any]:
    from .auto import AutoDistillation

    data, seed, shown = run.data, int(run.settings["seed"]), "reliability" if run.classify else "predicted"
    y = torch.from_numpy(data.y[data.test])
    history = [_history_row(row, model) for row in model.history_] if self_taught(model) else []
    result: dict[str, Any] = {
        "kind": "learner", "method": run.expression, "model": run.build, "parameters": None,
        "data": data.describe(), "seed": seed, "final_generation": getattr(model, "generation_", 0), "chosen": "method",
        "generations": history or [{"generation": 0, "decision": None}], "steps": trainings,
        "seconds": round(seconds, 2), shown: {},
    }  # fmt: skip
    own = vars(model).get("trainings_", trainings)  # of the final chain alone
    if trainings > own:
        result["exploration"] = {"unit": "trainings", "trying": float(trainings - own), "winner": float(own)}
    final = f"generation {result['final_generation']}, the final model"
    automatic = isinstance(model, AutoDistillation)
    names = {model.product_ if automatic else final: model} if self_taught(model) else {}
    rest = data.test[~np.isin(data.test, data.copies.across.numpy())]
    apart: dict[str, Any] = {"rows": len(rest)} if 0 < len(rest) < len(data.test) else {}
    if run.crossed is not None:
        same = alone is model or (automatic and model.product_ == "the learner alone")
        return _cross_fitted(run, run.crossed, result, same)
    for name, one in [("the learner alone", alone), *names.items()]:  # which may be the product of auto() as well
        if automatic and one is alone and model.alone_residuals_ is not None:
            errors: Tensor | None = torch.from_numpy(model.alone_residuals_)
        else:
            errors = residuals(run, one, seed)
        figures, outputs, half = score_test(run, one, errors)
        if apart:
            scores = score_test(run, one, errors, rest)[0]
            apart |= {**({"plain": scores} if one is alone else {}), **({"test": scores} if one is model else {})}
        result[shown][name] = metrics.reliability(outputs, y) if run.classify else points(outputs, y)
        if one is alone:
            same = one is model or (automatic and model.product_ == name)
            result["plain"] = {"steps": 1, "end": figures, "from": "method" if same else "control"}
        if one is model:
            rows = [data.row_names.name(int(row)) for row in data.test]
            found = metrics.breakdown(outputs, y, data.classes, rows, torch.from_numpy(data.test))
            result |= {"test": figures, "half": half, "breakdown": found, **importance(run, model)}
    return {**result, **({"without_copies": apart} if apart else {})}


def _cross_fitted(run: TableRun, scores: CrossScores, result: dict[str, Any], same: bool) -> dict[str, Any]:
    """The result with cross-fitted scores; ``same``: the final model is the learner alone."""
    result["plain"] = {"steps": 1, "end": {}, "from": "method" if same else "control"}
    result = scores.result(result, run.data.classes, run.data.row_names)
    width = result["test"].get("width")
    return {**result, "half": width / 2 if width else None}


def held_out_predictions(run: TableRun, model: Any) -> tuple[NDArray[np.int64], Tensor] | None:
    """The places of labelled rows that were left out, and predictions for each without its label: probabilities
    (rows, classes) or values (rows,). None where there are too few rows or too many."""
    known = getattr(model, "held_out_", None)
    if known is not None:
        return known[0], torch.from_numpy(np.asarray(known[1], dtype=np.float64))
    if not FEWEST <= len(run.data.labelled) <= MOST:
        return None
    seed = int(run.settings["seed"])
    places, outputs = cross_predict(run, run.learner(seed), seed)
    return places, outputs.exp() if run.classify else outputs


def report_label_errors(run: TableRun, model: Any, alone: Any, folder: Path) -> dict[str, Any] | None:
    """Examine the labelled rows that were left out and the test rows, and write the scores; None without the first."""
    if run.crossed is not None:
        y = torch.from_numpy(run.data.y)
        examined = run.crossed.examination(y, run.data.classes, run.data.row_names, run.data.votes)
        tested = {"final": run.crossed.outputs}
        return label_errors.report_errors(examined, run.data.noisy, folder, run.request.raw_csv, tested)
    held = held_out_predictions(run, model)
    if held is None:
        return None
    data, tested = run.data, dict[str, Tensor]()
    for name, one in (("final", model), ("plain", alone)) if model is not alone else (("final", model),):
        outputs = predict_frame(one, data.rows(data.test), len(data.classes))
        tested[name] = outputs.exp() if run.classify else outputs
    ids = np.concatenate([data.labelled[held[0]], data.test])
    predictions = torch.cat([held[1].reshape(len(held[0]), *tested["final"].shape[1:]), tested["final"]])
    splits = np.repeat([label_errors.TRAIN, label_errors.TEST], [len(held[0]), len(data.test)])
    examined = label_errors.Examination(
        ids,
        splits,
        data.y[ids],
        predictions.numpy(),
        data.classes,
        data.row_names,
        "learner",
        data.votes and data.votes.of_rows(ids),
    )
    return label_errors.report_errors(examined, data.noisy, folder, run.request.raw_csv, tested)


def _tried(run: TableRun, model: AutoDistillation, result: dict[str, Any]) -> dict[str, Any]:
    """What `auto()` tried and chose, as run.json holds it, and how much of the stack's gain one student keeps."""
    measure = "accuracy" if run.classify else "rmse"
    first = model.candidates_[0]["score"]
    tried = [
        {
            "method": row["name"],
            "about": row["about"],
            "score": row["score"],
            "rows": len(run.data.labelled),
            "gain": None if row["score"] is None or first is None else row["score"] - first,
            "steps": 0,
            "passes": 0.0,
            "seconds": 0.0,
            "outcome": row["outcome"],
            "chosen": row["name"] == model.product_,
        }
        for row in model.candidates_
    ]
    found: dict[str, Any] = {"measure": measure, "tried": tried, "why": model.why_, "left_out": model.notes_}
    return {"auto": {**found, **_kept(run, model, result["plain"]["end"][measure], measure)}}


def _kept(run: TableRun, model: AutoDistillation, plain: float, measure: str) -> dict[str, Any]:
    """The stack's and the student's scores on the test split, and the student's size and speed beside the learner's."""
    if run.crossed or model.teacher_ is None or model.student_ is None or model.alone_ is None:
        return {}
    scores = {
        name: score_test(run, one, None)[0][measure]
        for name, one in (("stack", model.teacher_), ("student", model.student_))
    }
    from .io import file_size

    whole = scores["stack"] - plain
    rows = run.data.rows(run.data.test)
    times, sizes = [], []
    for one in (model.alone_, model.student_):
        begun = time.perf_counter()
        one.predict(rows)
        times.append(time.perf_counter() - begun)
        sizes.append(file_size(one))
    return {
        "test": scores,
        "kept": (scores["student"] - plain) / whole if whole else None,
        "prediction_time": times[1] / times[0],
        "file_size": sizes[1] / sizes[0],
    }


def _history_row(row: dict[str, Any], model: Any) -> dict[str, Any]:
    """A generation's line of the history as JSON has it."""
    plain = {key: value for key, value in row.items() if key != "decision"}
    decision = row["decision"] or {"accepted": True, "why": f"generation {row['generation']}: {row['what']}"}
    return {**plain, "decision": decision, "measure": model._measure}


def committee(folder: Path, request: Request) -> Committee:
    """The final model, the learner alone and the usual peers, asked of the unlabelled rows.

    The mean of learner and peers labels rows itself, because folds of the labelled rows judge it.

    Raises:
        CheckpointError: the run has no model yet.
        DataError: the table cannot be read, or has changed since.
    """
    from threadpoolctl import threadpool_limits

    from .io import load
    from .wrappers import ClassNames, IndicatorEncoder, seeded_clone

    run, place = prepare(request), model_folder(folder)
    data = run.data
    require_same_data(folder, data.fingerprint)
    require_unlabelled(data.name, len(data.unlabelled))
    final, rows, seed = load(place / ESTIMATOR), data.rows(data.unlabelled), int(run.settings["seed"])
    random, limit = np.random.RandomState(seed), threads.for_table(*data.sample.shape)
    learners = [run.learner(seed), *(seeded_clone(peer, random) for peer in run.peers())]

    def outputs(model: Any) -> Tensor:
        output = predict_frame(model.estimator_ if isinstance(model, ClassNames) else model, rows, len(data.classes))
        return output.exp() if run.classify else output

    def features(places: Tensor) -> Tensor:
        encoder = IndicatorEncoder().fit(data.sample)
        return torch.from_numpy(encoder.transform(rows.iloc[places.numpy()]).toarray())

    with threadpool_limits(limit):
        members = [outputs(final), *(outputs(fit(run, learner)) for learner in learners)]
        held, truth, ids = None, torch.zeros(0), torch.from_numpy(data.unlabelled)
        if run.classify:
            judged = [cross_predict(run, learner, seed) for learner in learners]
            places = data.labelled[judged[0][0]]
            real = ~np.isin(places, data.by_model)
            held = torch.stack([output.exp() for _, output in judged]).mean(0)[torch.from_numpy(real)]
            truth = torch.from_numpy(data.y[places[real]])
    stacked = torch.stack(members)
    return Committee(ids, data.row_names, data.classes, stacked, features, held, truth, stacked[1:].mean(0))


class TablePredictor(Predictor):
    """The final learner of a run on a table.

    Args:
        folder: The run folder or its model folder.

    Raises:
        CheckpointError: the run has no model yet, or it is damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        from .io import load
        from .wrappers import ClassNames

        self.folder, place = folder, model_folder(folder)
        self.card = model_card(place, {"kinds": dict, "classes": [str], "half?": (float, None)})
        model = load(place / ESTIMATOR)
        self.model = model.estimator_ if isinstance(model, ClassNames) else model

    def predict(self, rows: object, exit_number: int | None = None) -> Predictions:
        """Classes with probabilities, or values with intervals.

        Raises:
            DataError: the table does not fit the model, or an early exit is asked for.
        """
        from threadpoolctl import threadpool_limits

        if exit_number is not None:
            raise DataError(f"the model of {self.folder} is a learner and has no early exits; leave out --exit")
        source, table = source_of(rows), table_of(rows)
        if source is not None:
            frame = frames.rows_for(source, self.card)
        elif table is not None:
            frame = frames.table_rows(table, self.card)
        else:
            what = f"rows of type {type(rows).__name__}: the model was trained on a table"
            raise DataError(f"{what}; give {REMEDY['table']}")
        classes = [str(name) for name in self.card["classes"]]
        with threadpool_limits(threads.for_table(*frame.shape)):
            outputs = predict_frame(self.model, frame, len(classes))
        names = [str(number + 1) for number in range(len(frame))]
        if classes:
            return Predictions(names, outputs.exp(), classes)
        return ValuePredictions(names, *with_interval(outputs[:, None], self.card.get("half")))
