"""Trainings of a comparison of learners on a table: how each row is trained, and the record it leaves.

What is matched are trainings: tuning and bagging get as many as the dearest method took, folds and peers included. The
test split is read by `judged` alone, after everything is trained and chosen; controls are ranked by labelled rows left
out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...estimators import base_learners, task
from ...estimators.base_learners import Mean
from ...estimators.bounded import Codes, core
from ...estimators.tables import stack
from ...estimators.task import Choice, choose
from ...estimators.weights import seeded
from ...evaluation import metrics
from ...evaluation.predict import scored
from ...io.run_record import Request
from .controls import Kind
from .plan import PEERS, PLAIN, Ask, Job

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


def pilots(ask: Ask) -> list[Job]:
    """The methods on the first seed: the dearest one's trainings are the budget."""
    return [Job(name, METHOD, 0, ask.seeds[0], expression=name) for name in ask.methods]


def planned(ask: Ask, choice: Choice, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
    """The budget in trainings, and the first seed's jobs."""
    seed, amount = ask.seeds[0], max(costs.values())
    count = math.ceil(amount)
    jobs = [*pilots(ask), Job(PLAIN, ALONE, 0, seed)]
    if base_learners.named(choice.build):
        jobs.append(Job(NAMES[TUNED], TUNED, 0, seed, count=count))
    jobs.append(Job(NAMES[BAGGED], BAGGED, 0, seed, count=count))
    jobs += [Job(f"{name} alone", PEER, 0, seed, count=i) for i, name in enumerate(peer_names(choice))]
    jobs.append(Job(NAMES[MEAN], MEAN, 0, seed))
    if choice.classify and len(choice.data.unlabelled):
        jobs.append(Job(NAMES[SELF_TRAINING], SELF_TRAINING, 0, seed))
    return amount, jobs


def peer_names(choice: Choice) -> list[str]:
    """What the usual peers are, as words."""
    return [type(core(peer)).__name__ for peer in choice.peers()]


class Bench:
    """One job's table, its seed, and how many trainings it took."""

    def __init__(self, job: Job, request: Request) -> None:
        self.job = job
        self.choice = choose(replace(request, method=job.expression, seed=job.seed))
        self.seed, self.trainings = job.seed, 0

    def row(self, model: Any, audit: dict[str, float], errors: torch.Tensor | None, **more: Any) -> dict[str, Any]:
        """A row's record; ``audit``, scores on labelled rows left out, ranks the controls, and ``errors`` on such rows
        make the intervals of values."""
        data = self.choice.data
        found, test, _ = task.judged(self.choice, model, errors)
        truth = torch.from_numpy(data.y[data.test])
        shown: dict[str, Any] = {}
        if data.classes:
            found["aurc"] = metrics.aurc(test.exp(), truth)
            shown["reliability"] = metrics.reliability(test, truth)
        return {
            "passes": {"total": float(self.trainings)}, "with_teacher_training": None, "steps": self.trainings,
            "generations": 1, "curve": [], "decisions": None, "audit": audit, "metrics": found,
            "about": ABOUT.get(self.job.name, "this learner alone, on the labels"), **shown, **more,
        }  # fmt: skip

    def control(self, model: Any, trainings: int, unfitted: Any = None, **more: Any) -> dict[str, Any]:
        """The record of a fitted control, which folds of the labels judge beside; ``unfitted`` is trained for those."""
        data, self.trainings = self.choice.data, trainings
        y = torch.from_numpy(data.y[data.labelled])
        said = task.left_out(self.choice, model if unfitted is None else unfitted, self.seed)
        return self.row(model, scored(said, y, data.task), None if data.classes else y - said, **more)

    def fitted(self, model: Any, trainings: int = 1) -> dict[str, Any]:
        """The same for a control that learns the labels as they are."""
        return self.control(task.fit(self.choice, model), trainings)

    def seeded(self, learner: Any) -> Any:
        return seeded(learner, np.random.RandomState(self.seed))


def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job that trains learners; nothing of it is kept in the folder until it has ended."""
    from threadpoolctl import threadpool_limits

    bench = Bench(job, request)
    with threadpool_limits(torch.get_num_threads()):
        row = _KINDS[job.kind](bench)
    data = bench.choice.data.describe()
    return {"rows": {job.name: row}, "data": data, "model": bench.choice.build, "parameters": None}


def _method(bench: Bench) -> dict[str, Any]:
    from ...estimators import keeping

    def count(done: int, of: int, what: str) -> None:
        bench.trainings = done

    with keeping(None, count):
        model = task.fit(bench.choice, bench.choice.estimator(bench.seed))
    if not task.taught(model):
        return bench.control(model, 1)
    history, classes = model.history_, bench.choice.data.classes
    decisions = [row["decision"]["accepted"] if row["decision"] else True for row in history]
    more = {"decisions": decisions if len(history) > 1 else None, "generations": len(history)}
    peers = bool(dict(bench.choice.way.options).get("peers", "usual"))
    loss = history[model.generation_]["loss"]
    audit = {} if loss is None else {"accuracy": 1.0 - loss} if classes else {"rmse": loss**0.5}
    errors = task.errors_of(bench.choice, model, bench.seed)
    return bench.row(model, audit, errors, product=model.generation_, peers=peers, **more)


def _alone(bench: Bench) -> dict[str, Any]:
    return bench.fitted(bench.choice.learner(bench.seed))


def _tuned(bench: Bench) -> dict[str, Any]:
    """A random search over the learner's settings; every training of it counts."""
    from sklearn.model_selection import RandomizedSearchCV

    choice, folds = bench.choice, task.FOLDS
    learner = choice.learner(bench.seed)
    grid = base_learners.grid(choice.build, learner)
    tries = max(FEWEST, (bench.job.count - 1) // folds)
    by = "neg_log_loss" if choice.classify else "neg_mean_squared_error"
    search = RandomizedSearchCV(
        learner, grid, n_iter=tries, cv=task.cut(choice, bench.seed), scoring=by, random_state=bench.seed
    )
    task.fit(choice, search)
    return bench.control(search.best_estimator_, tries * folds + 1, settings=str(search.best_params_))


def _bagged(bench: Bench) -> dict[str, Any]:
    """Its copies differ by their bootstrap samples, so one learner is named as often as there are copies."""
    members = [bench.choice.learner(bench.seed)] * max(FEWEST, bench.job.count)
    return bench.fitted(Mean(members, bench.seed), len(members))


def _peer(bench: Bench) -> dict[str, Any]:
    return bench.fitted(bench.seeded(bench.choice.peers()[bench.job.count]))


def _mean(bench: Bench) -> dict[str, Any]:
    """What learner and peers know together, undistilled."""
    random = np.random.RandomState(bench.seed)
    members = [bench.choice.learner(bench.seed), *(seeded(peer, random) for peer in bench.choice.peers())]
    return bench.fitted(Mean(members), len(members))


def _self_training(bench: Bench) -> dict[str, Any]:
    """scikit-learn's own, with its default threshold, on codes of the categories."""
    from sklearn.pipeline import make_pipeline
    from sklearn.semi_supervised import SelfTrainingClassifier

    choice, data = bench.choice, bench.choice.data
    bare = (
        base_learners.kind(choice.build).bare(True) if base_learners.named(choice.build) else choice.learner(bench.seed)
    )
    learner = bench.seeded(bare)
    model = make_pipeline(Codes(), SelfTrainingClassifier(learner))
    rows = np.concatenate([data.labelled, data.unlabelled])
    model.fit(stack([data.rows(data.labelled), data.rows(data.unlabelled)]), data.y[rows])
    return bench.control(model, int(model[-1].n_iter_) + 1, make_pipeline(Codes(), learner))


_KINDS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    METHOD: _method, ALONE: _alone, TUNED: _tuned, BAGGED: _bagged, PEER: _peer, MEAN: _mean,
    SELF_TRAINING: _self_training,
}  # fmt: skip


@dataclass(frozen=True)
class Learners(Kind):
    """The kind of comparison in which learners of scikit-learn learn a table (`kinds.Kind`)."""

    request: Request
    ask: Ask
    choice: Choice  # of the first seed and method

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return run(job, request, folder)

    @classmethod
    def begun(cls, request: Request, ask: Ask) -> Learners:
        return cls(request, ask, choose(replace(request, method=ask.methods[0], seed=ask.seeds[0])))

    def check(self) -> None:
        """Folds audit, so that no seed lacks an audit split; the first method was chosen to be here."""
        for expression in self.ask.methods[1:]:
            choose(replace(self.request, method=expression, seed=self.ask.seeds[0]))

    def threads(self) -> int:
        return 1

    def control(self, tell: Callable[[str], None]) -> bool:
        """All controls are there on every table."""
        return False

    def pilots(self, control: bool) -> list[Job]:
        return pilots(self.ask)

    def planned(self, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
        return planned(self.ask, self.choice, costs)
