"""The task type of tables by learners of scikit-learn: its recipes, its controls in a comparison, how each is trained.

What a comparison matches are trainings: tuning and bagging get as many as the most expensive method took, folds and
peers included. The test split is read by `run.score_test` alone, after everything is trained and chosen; controls are
ranked by labelled rows left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import sources, tables
from ..errors import CheckpointError, DataError, RecipeError
from ..evaluation import metrics
from ..evaluation.predict import Predictions, scored
from ..io.expressions import expression_name, nearest
from ..io.run_record import Request
from ..methods import recipes as network_recipes
from ..models.store import ESTIMATOR
from ..training.comparison import PEERS, PLAIN, ComparisonDesign, ComparisonSettings, Job
from ..training.task_type import Cost, GenerationCurve, Rows, TaskType, generation_name, refuse_example
from . import base_learners, recipes
from .base_learners import MeanEnsemble
from .run import (
    FOLDS,
    NETWORKS,
    TableRun,
    cross_predict,
    fit,
    folds_of,
    predict,
    prepare,
    residuals,
    score_test,
    self_taught,
)
from .tables import stack
from .wrappers import FrameEncoder, innermost, seeded_clone

METHOD, TUNED, BAGGED, MEAN, SELF_TRAINING = (
    "learner method", "learner tuned", "learner bagged", "learner mean", "learner self-training",
)  # fmt: skip


ALONE, PEER = "learner alone", "learner peer"


NAMES = {TUNED: "tuned", BAGGED: "bagged", MEAN: PEERS, SELF_TRAINING: "SelfTrainingClassifier"}


ABOUT = {
    PLAIN: "the learner alone, on the labels, with its usual settings",
    NAMES[TUNED]: "the learner with the best settings of a random search by folds of the labels; all trainings count",
    NAMES[BAGGED]: "copies of the learner on bootstrap samples, averaged",
    NAMES[MEAN]: "the learner and the usual peers on the labels, averaged, undistilled",
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
    jobs = [*pilots(settings), Job(PLAIN, ALONE, 0, seed)]
    if base_learners.is_named(prepared.build):
        jobs.append(Job(NAMES[TUNED], TUNED, 0, seed, count=count))
    jobs.append(Job(NAMES[BAGGED], BAGGED, 0, seed, count=count))
    jobs += [Job(f"{name} alone", PEER, 0, seed, count=i) for i, name in enumerate(peer_names(prepared))]
    jobs.append(Job(NAMES[MEAN], MEAN, 0, seed))
    if prepared.classify and len(prepared.data.unlabelled):
        jobs.append(Job(NAMES[SELF_TRAINING], SELF_TRAINING, 0, seed))
    return amount, jobs


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
        y = torch.from_numpy(data.y[data.labelled])
        outputs = cross_predict(self.prepared, model if unfitted is None else unfitted, self.seed)
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


def _method(work: TableJob) -> dict[str, Any]:
    from . import keeping

    def count(done: int, of: int, what: str) -> None:
        work.trainings = done

    with keeping(None, count):
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
    return work.row(model, audit, errors, product=model.generation_, peers=peers, **more)


def _alone(work: TableJob) -> dict[str, Any]:
    return work.fitted(work.prepared.learner(work.seed))


def _tuned(work: TableJob) -> dict[str, Any]:
    """A random search over the learner's settings; every training of it counts."""
    from sklearn.model_selection import RandomizedSearchCV

    prepared, folds = work.prepared, FOLDS
    learner = prepared.learner(work.seed)
    grid = base_learners.grid(prepared.build, learner)
    tries = max(FEWEST, (work.job.count - 1) // folds)
    by = "neg_log_loss" if prepared.classify else "neg_mean_squared_error"
    search = RandomizedSearchCV(
        learner, grid, n_iter=tries, cv=folds_of(prepared, work.seed), scoring=by, random_state=work.seed
    )
    fit(prepared, search)
    return work.control(search.best_estimator_, tries * folds + 1, settings=str(search.best_params_))


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
    METHOD: _method, ALONE: _alone, TUNED: _tuned, BAGGED: _bagged, PEER: _peer, MEAN: _mean,
    SELF_TRAINING: _self_training,
}  # fmt: skip


@dataclass(frozen=True)
class TableDesign(ComparisonDesign):
    """How learners of scikit-learn on a table are compared."""

    request: Request
    settings: ComparisonSettings
    prepared: TableRun  # of the first seed and method

    budget = "trainings"

    @classmethod
    def matched_budget(cls, budget: str | None) -> str:
        """Trainings: learners take no steps.

        Raises:
            DataError: another budget is asked for.
        """
        if budget not in (None, cls.budget):
            raise DataError(f"--budget {budget} is for networks; learners are matched by trainings: leave it out")
        return cls.budget

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return train_job(job, request, folder)

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> TableDesign:
        return cls(request, settings, prepare(replace(request, method=settings.methods[0], seed=settings.seeds[0])))

    def check(self) -> None:
        """Folds audit, so that no seed lacks an audit split; the first method was chosen to be here."""
        for expression in self.settings.methods[1:]:
            prepare(replace(self.request, method=expression, seed=self.settings.seeds[0]))

    def threads(self) -> int:
        return 1

    def control(self, tell: Callable[[str], None]) -> bool:
        """All controls are there on every table."""
        return False

    def pilots(self, control: bool) -> list[Job]:
        return pilots(self.settings)

    def planned(self, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
        return planned(self.settings, self.prepared, costs)


# ---- the task type -------------------------------------------------------------------------------------------------


class TableTaskType(TaskType):
    """Tables learnt by learners of scikit-learn, which teach themselves or each other."""

    name, learner, title = "learner", "learners", "For learners on tables"
    about = "Gradient boosting, forests and any other estimator of scikit-learn."
    design = TableDesign
    equal_steps = False

    def recipes(self) -> Mapping[str, Callable[..., recipes.EstimatorRecipe]]:
        return recipes.recipes()

    def serves(self, request: Request) -> bool:
        """Tables, unless a network or its recipe is named.

        Raises:
            RecipeError, DataError: both are asked for, or a learner on images.
        """
        if request.text is not None:  # read by an encoder
            return False
        table = tables.is_table(request.data) or request.data in sources.TABLES
        model, method = request.model, None if request.method is None else expression_name(request.method)
        learner = model is not None and (
            base_learners.is_named(model) or base_learners.from_function(model) is not None
        )
        known = method is not None and method in self.recipes()
        ours = known and method not in network_recipes()  # plain() is both
        if table and method is not None and not known and method not in network_recipes():
            close = nearest(method, [*self.recipes(), *network_recipes()])
            raise RecipeError(
                f"unknown method {method!r}; {f'nearest: {close}. ' if close else ''}`selfdistill methods` lists them"
            )
        if not table:
            if learner or ours:
                raise DataError(
                    f"{request.data}: {model if learner else request.method} learns tables, and this is none; give a "
                    "CSV or Parquet file, or leave it out"
                )
            return False
        if learner and method is not None and not known:
            raise RecipeError(
                f"{method}() trains networks and {model} is a learner of scikit-learn; give one of "
                f"{', '.join(f'{name}()' for name in self.recipes())}, or --model {NETWORKS}"
            )
        if ours and model is not None and not learner:
            raise RecipeError(
                f"{method}() is for learners of scikit-learn and {model} is a network; give one of "
                f"{', '.join(base_learners.LEARNERS)} as --model, or a recipe for networks"
            )
        return learner or (model is None and (method is None or ours))

    def prepare(self, request: Request) -> TableRun:
        return prepare(request)

    def card(self, name: str) -> dict[str, Any]:
        return recipes.card(name)

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        refuse_example(expression, example)
        return recipes.explain(expression)

    def text(self, card: dict[str, Any]) -> str:
        return recipes.text(card)

    def predict(self, folder: Path, source: str, exit_number: int | None = None) -> Predictions:
        return predict(folder, source, exit_number)

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """Refused: a learner keeps no history of the rows."""
        raise CheckpointError(f"{folder} trained a learner of scikit-learn, which remembers no rows; give --model mlp")

    def vitals(self, folder: Path) -> dict[str, Any]:
        """Refused: a learner takes no steps."""
        raise CheckpointError(
            f"{folder} trained a learner of scikit-learn, which has no steps to look at; its audit is in "
            f"`selfdistill report {folder}`"
        )

    def rows(self, result: dict[str, Any]) -> Rows:
        """The learner alone, and the product where it is another one."""
        plain = result["plain"]
        table = [(self.baseline(result), plain["end"])]
        if plain["from"] == "itself":
            return table
        return [
            *table,
            (f"{result['method']}, {generation_name(result, {'generation': result['product']})}", result["test"]),
        ]

    def baseline(self, result: dict[str, Any]) -> str:
        return f"{result['model']} alone"

    def size(self, result: dict[str, Any], record: dict[str, Any], time: str) -> list[str]:
        return [f"- model: {result['model']}", f"- trainings: {result['steps']}{time}, seed {result['seed']}"]

    def loading(self, folder: str) -> list[str]:
        return [
            "Load the model without the training code:",
            "",
            "```python",
            "from selfdistill.estimators import load",
            f'model = load("{folder}/{ESTIMATOR}")',
            "model.predict(frame)  # the columns without the target, in their order; classes by name",
            "```",
            "",
        ]

    def curves(self, result: dict[str, Any]) -> Sequence[GenerationCurve]:
        """The metric of generations on labelled rows that they had not learnt from, where the audit asked them."""
        audited = [g for g in result["generations"] if g.get("loss") is not None]
        if not audited:
            return []
        classify = audited[0]["measure"] == "accuracy"
        metric = "accuracy" if classify else "RMSE"
        points = [(g["generation"], 1 - g["loss"] if classify else g["loss"] ** 0.5) for g in audited]
        caption = f"{metric[0].upper()}{metric[1:]} of each generation on labelled rows that it had not learnt from."
        return [GenerationCurve(metric, points, caption)]

    def cost(self, result: dict[str, Any]) -> Cost:
        """Trainings."""
        time = f"{result['steps']} trainings, {result['seconds']} s"
        bars = [(result["method"], result["steps"], time), (self.baseline(result), 1, "1 training")]
        return Cost(bars, "trainings", "Trainings of all learners: peers and the folds of the audit too.")
