"""The comparison of learners of scikit-learn on a table: its controls, their trainings, and their records.

What a comparison matches are trainings: tuning and bagging get as many as the most expensive method took, folds and
peers included. The test split is read by `run.score_test` alone, after everything is trained and chosen; controls are
ranked by labelled rows left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..evaluation import metrics
from ..evaluation.predict import scored
from ..io.run_record import Request
from ..methods.registry import AUTO
from ..training.comparison import (
    BOTH,
    OWN,
    PEERS,
    PLAIN,
    ComparisonDesign,
    ComparisonSettings,
    Job,
    ablation_jobs,
    require_peers,
)
from . import base_learners
from .recipes import EstimatorRecipe, read_recipe
from .run import TableRun, cross_predict, fit, folds_of, prepare, residuals, score_test, self_taught, training_gap
from .tables import stack
from .wrappers import FrameEncoder, MeanEnsemble, innermost, seeded_clone

METHOD, TUNED, BAGGED, MEAN, SELF_TRAINING, STACK, PICKED, CATBOOST = (
    "learner method",
    "learner tuned",
    "learner bagged",
    "learner mean",
    "learner self-training",
    "learner stack",
    "learner picked",
    "learner catboost",
)


ALONE, PEER = "learner alone", "learner peer"


NAMES = {
    TUNED: "tuned",
    BAGGED: "bagged",
    MEAN: PEERS,
    SELF_TRAINING: "SelfTrainingClassifier",
    STACK: "stack",
    PICKED: "picked by folds",
    CATBOOST: "CatBoost alone",
}


ABOUT = {
    PLAIN: "the learner alone, on the labels, with its usual settings",
    NAMES[TUNED]: "the learner with the best settings of a random search by folds of the labels; all trainings count",
    NAMES[BAGGED]: "copies of the learner on bootstrap samples, averaged",
    NAMES[MEAN]: "the learner and the usual peers on the labels, averaged, undistilled",
    NAMES[STACK]: "boosting, forests, a linear learner and neighbours, weighted out of fold, undistilled",
    NAMES[PICKED]: "of the same learners and their mean the one with the best score by folds of the labels",
    NAMES[SELF_TRAINING]: "scikit-learn's own self-training of the learner, with its default threshold",
}


FEWEST = 4  # settings that tuning tries, and copies that are averaged, at the least


def pilots(settings: ComparisonSettings) -> list[Job]:
    """The methods on the first seed: the most expensive one's trainings are the budget."""
    return [Job(name, METHOD, 0, settings.seeds[0], expression=name) for name in settings.methods]


def planned(settings: ComparisonSettings, prepared: TableRun, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
    """The budget in trainings, and the first seed's jobs."""
    seed, amount = settings.seeds[0], max(costs.values())
    count = math.ceil(amount)
    jobs = [*pilots(settings), *ablation_jobs(taught_by_peers(settings), 0, seed), Job(PLAIN, ALONE, 0, seed)]
    if base_learners.is_named(prepared.build):
        jobs.append(Job(NAMES[TUNED], TUNED, 0, seed, count=count))
    jobs.append(Job(NAMES[BAGGED], BAGGED, 0, seed, count=count))
    jobs += [Job(f"{name} alone", PEER, 0, seed, count=i) for i, name in enumerate(peer_names(prepared))]
    kinds = [MEAN, STACK, PICKED, *([CATBOOST] if find_spec("catboost") else [])]
    jobs += [Job(NAMES[kind], kind, 0, seed) for kind in kinds]
    if prepared.classify and len(prepared.data.unlabelled):
        jobs.append(Job(NAMES[SELF_TRAINING], SELF_TRAINING, 0, seed))
    return amount, jobs


def taught_by_peers(settings: ComparisonSettings) -> list[str]:
    """The methods that are ablated: where that is asked for, those whose peers teach."""
    methods = settings.methods if settings.ablation else ()
    return [name for name in methods if read_recipe(name).ablated() is not None]


def peer_names(prepared: TableRun) -> list[str]:
    """What the usual peers are, as words."""
    return [type(innermost(peer)).__name__ for peer in prepared.peers()]


class TableJob:
    """One job's table, its seed, and how many trainings it took."""

    def __init__(self, job: Job, request: Request) -> None:
        self.job = job
        self.prepared = prepare(replace(request, method=job.expression, seed=job.seed))
        self.seed, self.trainings = job.seed, 0

    def row(self, model: Any, audit: dict[str, float], errors: torch.Tensor | None, **more: Any) -> dict[str, Any]:
        """A row's record; ``audit``, scores on labelled rows left out, ranks the controls, and ``errors`` on such rows
        make the intervals of values."""
        data = self.prepared.data
        figures, test, _ = score_test(self.prepared, model, errors)
        truth = torch.from_numpy(data.y[data.test])
        shown: dict[str, Any] = {}
        figures |= training_gap(self.prepared, model, figures)
        if data.classes:
            figures["aurc"] = metrics.aurc(test.exp(), truth)
            shown["reliability"] = metrics.reliability(test, truth)
        return {
            "passes": {"total": float(self.trainings)}, "with_teacher_training": None, "steps": self.trainings,
            "generations": 1, "curve": [], "decisions": None, "audit": audit, "metrics": figures,
            "about": ABOUT.get(self.job.name, "this learner alone, on the labels"), **shown, **more,
        }  # fmt: skip

    def control(self, model: Any, trainings: int, unfitted: Any = None, **more: Any) -> dict[str, Any]:
        """The record of a fitted control, which folds of the labels judge beside; ``unfitted`` is trained for those."""
        data, self.trainings = self.prepared.data, trainings
        held, outputs = cross_predict(self.prepared, model if unfitted is None else unfitted, self.seed)
        y = torch.from_numpy(data.y[data.labelled[held]])
        return self.row(model, scored(outputs, y, data.task), None if data.classes else y - outputs, **more)

    def fitted(self, model: Any, trainings: int = 1) -> dict[str, Any]:
        """The same for a control that learns the labels as they are."""
        return self.control(fit(self.prepared, model), trainings)

    def seeded(self, learner: Any) -> Any:
        return seeded_clone(learner, np.random.RandomState(self.seed))


def train_job(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job that trains learners; nothing of it is kept in the folder until it has ended."""
    from threadpoolctl import threadpool_limits

    work = TableJob(job, request)
    with threadpool_limits(torch.get_num_threads()):
        row = _TRAININGS[job.kind](work)
    data = work.prepared.data.describe()
    return {"rows": {job.name: row}, "data": data, "model": work.prepared.build, "parameters": None}


def _method(work: TableJob, recipe: EstimatorRecipe | None = None) -> dict[str, Any]:
    from . import keeping

    def count(done: int, of: int, what: str) -> None:
        work.trainings = done

    with keeping(None, count):
        if recipe is not None:
            work.prepared = replace(work.prepared, recipe=recipe)
        model = fit(work.prepared, work.prepared.estimator(work.seed))
    if not self_taught(model):
        return work.control(model, 1)
    history, classes = model.history_, work.prepared.data.classes
    decisions = [row["decision"]["accepted"] if row["decision"] else True for row in history]
    more = {"decisions": decisions if len(history) > 1 else None, "generations": len(history)}
    peers = bool(dict(work.prepared.recipe.options).get("peers", "usual"))
    loss = history[model.generation_]["loss"]
    audit = {} if loss is None else {"accuracy": 1.0 - loss} if classes else {"rmse": loss**0.5}
    errors = residuals(work.prepared, model, work.seed)
    return work.row(model, audit, errors, final_generation=model.generation_, peers=peers, **more)


def _ablation(work: TableJob) -> dict[str, Any]:
    """A method with peers, taught by its own predictions or by both."""
    return _method(work, work.prepared.recipe.ablated(both=work.job.kind == BOTH))


def _alone(work: TableJob) -> dict[str, Any]:
    return work.fitted(work.prepared.learner(work.seed))


def _tuned(work: TableJob) -> dict[str, Any]:
    """A random search over the learner's settings; every training of it counts."""
    from sklearn.model_selection import RandomizedSearchCV

    prepared = work.prepared
    folds = folds_of(prepared, work.seed)
    learner = prepared.learner(work.seed)
    grid = base_learners.grid(prepared.build, learner)
    tries = max(FEWEST, (work.job.count - 1) // len(folds))
    by = "neg_log_loss" if prepared.classify else "neg_mean_squared_error"
    search = RandomizedSearchCV(learner, grid, n_iter=tries, cv=folds, scoring=by, random_state=work.seed)
    fit(prepared, search)
    return work.control(search.best_estimator_, tries * len(folds) + 1, settings=str(search.best_params_))


def _bagged(work: TableJob) -> dict[str, Any]:
    """Its copies differ by their bootstrap samples, so one learner is named as often as there are copies."""
    members = [work.prepared.learner(work.seed)] * max(FEWEST, work.job.count)
    return work.fitted(MeanEnsemble(members, work.seed), len(members))


def _peer(work: TableJob) -> dict[str, Any]:
    return work.fitted(work.seeded(work.prepared.peers()[work.job.count]))


def _mean(work: TableJob) -> dict[str, Any]:
    """What learner and peers know together, undistilled."""
    random = np.random.RandomState(work.seed)
    members = [work.prepared.learner(work.seed), *(seeded_clone(peer, random) for peer in work.prepared.peers())]
    return work.fitted(MeanEnsemble(members), len(members))


def _stack(work: TableJob) -> dict[str, Any]:
    """The teacher of `auto()`, with its errors out of fold or out of bag."""
    return _method(work, read_recipe(f"{AUTO}(product='stack')"))


def _picked(work: TableJob) -> dict[str, Any]:
    """A careful person's choice: every learner by folds, and the best of them on all rows."""
    prepared, random = work.prepared, np.random.RandomState(work.seed)
    own = prepared.learner(work.seed)
    learners = base_learners.stack_learners(own, prepared.data.sample, prepared.classify, len(prepared.data.labelled))
    members = {name: one if one is own else seeded_clone(one, random) for name, one in learners.items()}
    candidates = {**members, "the mean of all": MeanEnsemble(list(members.values()))}
    held, outputs = None, dict[str, torch.Tensor]()
    for name, model in members.items():
        held, outputs[name] = cross_predict(prepared, model, work.seed)
    assert held is not None
    several = torch.stack(list(outputs.values()))
    outputs["the mean of all"] = several.exp().mean(0).log() if prepared.classify else several.mean(0)
    y, scores = torch.from_numpy(prepared.data.y[prepared.data.labelled[held]]), dict[str, float]()
    for name, output in outputs.items():
        figures = scored(output, y, prepared.data.task)
        scores[name] = figures["accuracy"] if prepared.classify else -figures["rmse"]
    best = max(scores, key=lambda name: scores[name])
    trainings = len(members) * len(folds_of(prepared, work.seed)) + (len(members) if best not in members else 1)
    return work.control(fit(prepared, candidates[best]), trainings, settings=best)


def _catboost(work: TableJob) -> dict[str, Any]:
    """CatBoost with its usual settings, on codes of the categories."""
    from catboost import CatBoostClassifier, CatBoostRegressor
    from sklearn.pipeline import make_pipeline

    kind = CatBoostClassifier if work.prepared.classify else CatBoostRegressor
    learner = kind(random_seed=work.seed, verbose=False, allow_writing_files=False, thread_count=1)
    return work.fitted(make_pipeline(FrameEncoder(), learner))


def _self_training(work: TableJob) -> dict[str, Any]:
    """scikit-learn's own, with its default threshold, on codes of the categories."""
    from sklearn.pipeline import make_pipeline
    from sklearn.semi_supervised import SelfTrainingClassifier

    prepared, data = work.prepared, work.prepared.data
    bare = (
        base_learners.base_learner(prepared.build).bare(True)
        if base_learners.is_named(prepared.build)
        else prepared.learner(work.seed)
    )
    learner = work.seeded(bare)
    model = make_pipeline(FrameEncoder(), SelfTrainingClassifier(learner))
    rows = np.concatenate([data.labelled, data.unlabelled])
    model.fit(stack([data.rows(data.labelled), data.rows(data.unlabelled)]), data.y[rows])
    return work.control(model, int(model[-1].n_iter_) + 1, make_pipeline(FrameEncoder(), learner))


_TRAININGS: dict[str, Callable[[TableJob], dict[str, Any]]] = {
    METHOD: _method, OWN: _ablation, BOTH: _ablation, ALONE: _alone, TUNED: _tuned, BAGGED: _bagged, PEER: _peer,
    MEAN: _mean, SELF_TRAINING: _self_training, STACK: _stack, PICKED: _picked, CATBOOST: _catboost,
}  # fmt: skip


@dataclass(frozen=True)
class TableDesign(ComparisonDesign):
    """How learners of scikit-learn on a table are compared."""

    request: Request
    settings: ComparisonSettings
    prepared: TableRun  # of the first seed and method

    match = "trainings"
    ablates = True

    @classmethod
    def matched(cls, match: str | None) -> str:
        """Trainings: learners take no steps.

        Raises:
            DataError: another quantity is asked for.
        """
        if match not in (None, cls.match):
            raise DataError(f"--match {match} is for networks; learners are matched by trainings: leave it out")
        return cls.match

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return train_job(job, request, folder)

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> TableDesign:
        return cls(request, settings, prepare(replace(request, method=settings.methods[0], seed=settings.seeds[0])))

    def check(self) -> None:
        """Folds audit, so that no seed lacks an audit split; the first method was chosen to be here."""
        if self.settings.ablation:
            require_peers(self.settings.methods, taught_by_peers(self.settings))
        for expression in self.settings.methods[1:]:
            prepare(replace(self.request, method=expression, seed=self.settings.seeds[0]))

    def threads(self) -> int:
        return 1

    def control(self, tell: Callable[[str], None]) -> bool:
        """All controls are there on every table."""
        return False

    def pilots(self, control: bool) -> list[Job]:
        return pilots(self.settings)

    def planned(self, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> tuple[float, list[Job]]:
        return planned(self.settings, self.prepared, costs)
