"""The task type of networks: its recipes, its controls in a comparison, and how each of them is trained.

One training of a comparison may be several rows: its last weights, its best epoch, the average of its weights. The test
split is read in `_judged` alone, after everything is trained and chosen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method
from ..core.outputs import space_of
from ..core.parts import BaseTerm, Term
from ..core.step import Forward, Passes
from ..core.targets import Target
from ..data import sources
from ..data.dataset import Data
from ..data.row_cards import SIDE, RowCard, picture_cards, table_cards
from ..errors import RecipeError, SelfdistillError
from ..evaluation import metrics
from ..evaluation.audit import whole_classes
from ..evaluation.label_next import Committee
from ..evaluation.predict import covered, scored, some_of, task_outputs
from ..io.expressions import checked
from ..io.run_record import Request
from ..losses import CrossEntropy, Squared
from ..methods import cards, recipes
from ..methods.ablation import ablate
from ..methods.controls import distil, label_smoothing, plain
from ..methods.prior import auto, auto_card, auto_text, read_auto
from ..methods.registry import AUTO, is_auto, read_method
from ..models.peers import PeerModels, final_model
from ..report.summary import ensemble_name
from ..teachers import Ema, FrozenCopy, Labels
from ..training.comparison import (
    AVERAGED,
    BOTH,
    CLOSE,
    DECAY,
    DISTIL,
    INDEPENDENT,
    LONGER,
    OWN,
    PLAIN,
    SMOOTHING,
    STOPPED,
    ComparisonDesign,
    ComparisonSettings,
    Job,
    ablation_jobs,
    curve,
    ignore,
    matching_steps,
    require_peers,
    require_splits,
)
from ..training.fit import Result, fit, try_batch
from ..training.task_type import FoldTrial, Listeners, Rows, TaskType, generation_name, refuse_example
from .network_predictor import NetworkPredictor
from .network_run import AutoRun, NetworkRun, batch_size_for, committee, prepare, total_steps

DECAYS = (0.0, 1e-3, 1e-2, 1e-1)


SLOW = 0.999  # the decay of the averaged weights


WIDER = 2  # the larger teacher's width, as a multiple


# ---- the plan ------------------------------------------------------------------------------------------------------


def planned(
    settings: ComparisonSettings, steps: int, costs: Mapping[str, float], classify: bool = True
) -> tuple[float, list[Job]]:
    """The budget, and the first seed's jobs at matched compute; ``costs`` are those of the pilots by name.

    Label smoothing is a control where classes are learnt.

    >>> settings = ComparisonSettings(("elr()", "tf_kd()"), (0, 1, 2))
    >>> budget, jobs = planned(settings, 10, {"elr()": 30.0, "tf_kd()": 90.0, "plain": 30.0})
    >>> budget, [job.steps for job in jobs if job.kind == "method"], [job.count for job in jobs][-1]
    (90.0, [30, 10], 3)
    """
    seed, amount = settings.seeds[0], max(costs[name] for name in settings.methods)
    whole = max(steps, round(steps * amount / costs[PLAIN]))
    members = max(2, math.floor(amount / costs[PLAIN] + CLOSE))
    tuned = Job(DECAY, "decay", whole, seed)
    if any(map(is_auto, settings.methods)):  # several trainings of usual length, so as many for the tuned control
        tuned = replace(tuned, steps=steps, count=members)
    jobs = [
        Job(name, kind_of(name), matching_steps(steps, costs[name], amount), seed, expression=name)
        for name in settings.methods
    ]
    jobs += [
        Job(PLAIN, "plain", steps, seed),
        Job(LONGER, "longer", whole, seed),
        *([Job(SMOOTHING, "smoothing", whole, seed)] if classify else []),
        tuned,
    ]
    if DISTIL in costs:
        jobs.append(Job(DISTIL, "distil", matching_steps(steps, costs[DISTIL], amount), seed, count=steps))
    jobs += [
        job if abs(costs[job.name] - amount) <= CLOSE * amount
        else replace(job, steps=max(1, round(steps * amount / costs[job.name])))
        for job in ablation_jobs(taught_by_peers(settings), steps, seed)
    ]  # fmt: skip
    return amount, [*jobs, Job(INDEPENDENT, "independent", steps, seed, count=members)]


def taught_by_peers(settings: ComparisonSettings) -> list[str]:
    """The methods that are ablated: where that is asked for, those whose peers teach."""
    methods = settings.methods if settings.ablation else ()
    return [name for name in methods if not is_auto(name) and ablate(read_method(name)) is not None]


def kind_of(method: str) -> str:
    """How a method is trained: by one training, or as the choice among several."""
    return "auto" if is_auto(method) else "method"


# ---- a training ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Average(Ema):
    """The average of the weights, which says nothing during training: no pass is spent on it."""

    def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
        student = forward.student(term.view, term.head)
        silent = student.new_zeros(student.shape[:-1], dtype=torch.bool)
        return Target(torch.zeros_like(student), space_of(term.head), silent)


def averaged() -> Method:
    """The plain method with an average of its weights kept beside it."""
    average = Term(_Average(SLOW), Squared(), weight=0.0)
    return Method({"label": Term(Labels(), CrossEntropy()), "average": average})


class SplitOutputs(NamedTuple):
    """Outputs on the audit rows and on the test rows: logits (rows, classes), or values (rows,)."""

    audit: Tensor
    test: Callable[[], Tensor]  # asked once everything is chosen
    train: Callable[[], Tensor] | None = None  # on `training_rows`


def split_outputs(model: nn.Module, data: Data, weights: dict[str, Tensor] | None = None) -> SplitOutputs:
    """The outputs of a model with some weights; these are loaded again when the test rows are asked for."""
    device = next(model.parameters()).device

    def outputs(rows: Tensor) -> Tensor:
        if weights is not None:
            model.load_state_dict(weights)
        return task_outputs(final_model(model), data, rows, device)

    return SplitOutputs(outputs(data.audit), lambda: outputs(data.test), lambda: outputs(some_of(data.labelled)))


def mean_outputs(several: list[SplitOutputs]) -> SplitOutputs:
    """Probabilities, or values, averaged over models."""

    def mean(logits: list[Tensor]) -> Tensor:
        if logits[0].dim() == 1:
            return torch.stack(logits).mean(0)
        p = torch.stack([torch.softmax(one.double(), -1) for one in logits]).mean(0)
        return p.clamp(min=1e-30).log()

    return SplitOutputs(
        mean([one.audit for one in several]),
        lambda: mean([one.test() for one in several]),
        lambda: mean([one.train() for one in several if one.train]),
    )


def flops(model: nn.Module, data: Data) -> float:
    """Floating-point operations of one row's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    x = data.rows(data.labelled[:1]).to(next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return float(counter.get_total_flops())


class NetworkJob:
    """Everything that one job needs: data and settings of its seed, a folder, and how to train there."""

    def __init__(self, job: Job, request: Request, folder: Path) -> None:
        self.job, self.folder = job, folder
        expression = job.expression or "plain()"
        self.ready: NetworkRun = prepare(replace(request, method=expression, seed=job.seed, steps=job.steps))
        self.data, self.device, self.asked = self.ready.data, request.device, request.batch_size
        self.spent, self.steps, self.seconds = Passes(), 0, 0.0

    def train(self, method: Method, name: str = "", build: Any = None, seed: int | None = None, **more: Any) -> Result:
        """Train a method in a sub-folder of the job's, from wherever it was cut."""
        batch = min(self.asked, len(self.data.labelled)) if self.asked else batch_size_for(self.data, method)
        settings = {**self.ready.settings, "batch_size": batch, "seed": self.job.seed if seed is None else seed}
        external, data = more.pop("external", None), more.pop("data", self.data)
        trained = fit(
            build or self.ready.build, data, method, out=self.folder / "training" / name, resume=True,
            external=external, device=self.device, warn=ignore, **{**settings, **more},
        )  # fmt: skip
        self.spent += trained.passes
        self.steps += trained.steps
        self.seconds += trained.seconds
        return trained


def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job that trains networks."""
    work = NetworkJob(job, request, folder)
    rows = _TRAININGS[job.kind](work)
    return {
        "rows": rows,
        "data": work.data.describe(),
        "model": work.ready.model_name,
        "parameters": sum(p.numel() for p in work.ready.build().parameters()),
        "seconds": work.seconds,
    }


def _row(work: NetworkJob, result: Result, outputs: SplitOutputs, **more: Any) -> dict[str, Any]:
    """A row's record, without the scores on the splits."""
    cost = work.spent.cost(float(more.pop("ratio", 1.0)))
    return {
        "outputs": outputs,
        "passes": {**work.spent._asdict(), "total": cost},
        "with_teacher_training": None,
        "steps": work.steps,
        "generations": len(result.generations),
        "curve": curve(result),
        "decisions": None,
        **more,
    }


def _judged(work: NetworkJob, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Score every row, on the audit split and, now that all is chosen, on the test split."""
    data = work.data
    for row in rows.values():
        outputs: SplitOutputs = row.pop("outputs")
        test, y = outputs.test(), data.y[data.test]
        row["audit"] = scored(outputs.audit, data.y[data.audit], data.task)
        row["metrics"] = scored(test, y, data.task)
        if outputs.train is not None:
            row["metrics"] |= metrics.gap(
                scored(outputs.train(), data.y[some_of(data.labelled)], data.task), row["metrics"]
            )
        if data.task == "regress":
            row["metrics"] |= covered(test, y, outputs.audit - data.y[data.audit])
            continue
        row["metrics"]["aurc"] = metrics.aurc(torch.softmax(test.double(), -1), y)
        row["reliability"] = metrics.reliability(test, y)
    return rows


def _method(work: NetworkJob) -> dict[str, Any]:
    return _trained_by(work, work.ready.method)


def _ablation(work: NetworkJob) -> dict[str, Any]:
    """A method with peers, taught by its own predictions or by both."""
    method = ablate(work.ready.method, both=work.job.kind == BOTH)
    assert method is not None
    return _trained_by(work, method)


def _trained_by(work: NetworkJob, method: Method) -> dict[str, Any]:
    trained = work.train(method)
    outputs = split_outputs(trained.model, work.data, trained.generations[trained.final_generation].weights)
    decisions = [t.decision["accepted"] for t in trained.generations] if len(trained.generations) > 1 else None
    ratio = _teacher_ratio(work)
    more = {"final_generation": trained.final_generation, "peers": isinstance(trained.model, PeerModels)}
    row = _row(work, trained, outputs, decisions=decisions, ratio=ratio, **more)
    return _judged(work, {work.job.name: row})


def _auto(work: NetworkJob) -> dict[str, Any]:
    """The candidates of ``auto()``, the chosen one of which is the row; all the trainings count."""
    assert isinstance(work.ready, AutoRun)
    ready = work.ready

    def train(number: int) -> Result:
        one = ready.candidates[number]
        options = {name: value for name, value in one.settings.items() if name not in ("seed", "batch_size")}
        return work.train(one.method, str(number), data=one.data, **options)

    choice = ready.choose(train)
    chosen, trained, _ = ready.chosen(choice)
    row = _row(work, trained, split_outputs(trained.model, work.data), auto=choice.to_json(ready.measure))
    return _judged(work, {work.job.name: {**row, "about": f"chose {chosen.expression}"}})


def _teacher_ratio(work: NetworkJob) -> float:
    """What a pass of a recipe's own external teacher costs, against the student's."""
    from ..models.store import load_model
    from ..teachers import External

    for term in work.ready.method.terms.values():
        teacher = term.teacher
        if isinstance(teacher, External) and teacher.source is not None:
            return flops(load_model(teacher.source), work.data) / flops(work.ready.build(), work.data)
    return 1.0


def _plain(work: NetworkJob) -> dict[str, Any]:
    method = label_smoothing() if work.job.kind == "smoothing" else plain()
    trained = work.train(method)
    return _judged(work, {work.job.name: _row(work, trained, split_outputs(trained.model, work.data))})


def _longer(work: NetworkJob) -> dict[str, Any]:
    """One training, three rows: its last weights, its best epoch by the audit split, the average of its weights."""
    trained = work.train(averaged())
    last = trained.generations[-1]
    assert trained.objective is not None
    held = next(state for state in trained.objective.states.values() if isinstance(state, FrozenCopy))
    uses = {
        LONGER: split_outputs(trained.model, work.data, last.weights),
        STOPPED: split_outputs(trained.model, work.data, last.best),
        AVERAGED: split_outputs(held.module, work.data),
    }
    rows = {name: _row(work, trained, outputs) for name, outputs in uses.items()}
    return _judged(work, rows)


def decays(count: int) -> Sequence[float]:
    """The values of weight decay that are tried: the usual four, or 0 and so many less one from 1e-4 to 1, evenly.

    >>> decays(1), [round(value, 6) for value in decays(5)]
    ((0.0, 0.001, 0.01, 0.1), [0.0, 0.0001, 0.002154, 0.046416, 1.0])
    """
    if count <= len(DECAYS):
        return DECAYS
    return [0.0, *(10 ** (4 * k / (count - 2) - 4) for k in range(count - 1))]


def _decay(work: NetworkJob) -> dict[str, Any]:
    """Weight decay chosen by audit accuracy, of equals by audit NLL, or by audit RMSE; all the trainings count."""
    tried = []
    for decay in decays(work.job.count):
        trained = work.train(plain(), f"{decay:g}", weight_decay=decay)
        outputs = split_outputs(trained.model, work.data)
        score = scored(outputs.audit, work.data.y[work.data.audit], work.data.task)
        worth = (-score["accuracy"], score["nll"]) if work.data.classes else (score["rmse"], 0.0)
        tried.append((*worth, decay, trained, outputs))
    best = min(tried, key=lambda one: one[:3])
    return _judged(work, {work.job.name: _row(work, best[3], best[4], weight_decay=best[2])})


def _independent(work: NetworkJob) -> dict[str, Any]:
    """Plain models of other initialisations and data orders; the first is that of the plain row."""
    members = []
    for k in range(work.job.count):
        seed = work.job.seed if k == 0 else rng.seed(work.job.seed, "member", k) % (1 << 31)
        trained = work.train(plain(), str(k), seed=seed)
        members.append(split_outputs(trained.model, work.data))
    return _judged(work, {work.job.name: _row(work, trained, mean_outputs(members))})


def larger(build: Any) -> Any:
    """A wider model of the same kind, to be a teacher.

    Raises:
        RecipeError: the model has no width to raise.
    """
    width = build.default("width") if build.accepts("width") else None
    if not isinstance(width, int):
        raise RecipeError(f"{build} has no width, so there is no larger teacher of its kind")
    return build.having(width=WIDER * width)


def _distil(work: NetworkJob) -> dict[str, Any]:
    """A wider plain model teaches: its own training is told apart, weighed by its operations."""
    build = larger(work.ready.build)
    big = work.train(plain(), "teacher", build=build, steps=work.job.count)
    ratio = flops(big.model, work.data) / flops(work.ready.build(), work.data)
    own, work.spent, work.steps = work.spent.cost(), Passes(), 0
    trained = work.train(distil(), "student", external=big.model)
    row = _row(
        work, trained, split_outputs(trained.model, work.data), ratio=ratio, teacher=f"{build}, a pass {ratio:.3g} x"
    )
    row["with_teacher_training"] = row["passes"]["total"] + ratio * own
    return _judged(work, {work.job.name: row})


_TRAININGS: dict[str, Callable[[NetworkJob], dict[str, Any]]] = {
    "method": _method,
    OWN: _ablation,
    BOTH: _ablation,
    "auto": _auto,
    "plain": _plain,
    "smoothing": _plain,
    "longer": _longer,
    "decay": _decay,
    "independent": _independent,
    "distil": _distil,
}


# ---- what the runner asks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NetworkDesign(ComparisonDesign):
    """How networks are compared; ``ready`` is the first seed's plain run."""

    request: Request
    settings: ComparisonSettings
    ready: NetworkRun
    ablates = True

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return run(job, request, folder)

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> NetworkDesign:
        return cls(request, settings, prepare(replace(request, method="plain()", seed=settings.seeds[0])))

    def check(self) -> None:
        """Every seed's audit split must be able to choose, and every method must fit the model and the data."""
        first = self.settings.seeds[0]
        if self.settings.ablation:
            require_peers(self.settings.methods, taught_by_peers(self.settings))
        for expression in self.settings.methods:
            ready = prepare(replace(self.request, method=expression, seed=first))
            try:
                try_batch(ready.build, ready.data, ready.method, **ready.settings)
            except SelfdistillError as error:
                error.args = (f"{expression}: {error}",)
                raise
        for seed in self.settings.seeds:
            data = self.ready.data if seed == first else prepare(replace(self.request, seed=seed)).data
            require_splits(data)
            if data.classes:
                whole_classes(data.y[data.audit], data.classes, f"{data.name}, seed {seed}")

    def threads(self) -> int:
        return self.ready.threads()

    def control(self, tell: Callable[[str], None]) -> bool:
        """A larger teacher."""
        try:
            larger(self.ready.build)
        except RecipeError as error:
            tell(f"{error}; that control is left out")
            return False
        return True

    def pilots(self, control: bool) -> list[Job]:
        seed, steps = self.settings.seeds[0], total_steps(self.ready)
        jobs = [Job(name, kind_of(name), steps, seed, expression=name) for name in self.settings.methods]
        jobs += [*ablation_jobs(taught_by_peers(self.settings), steps, seed), Job(PLAIN, "plain", steps, seed)]
        return [*jobs, Job(DISTIL, "distil", steps, seed, count=steps)] if control else jobs

    def trainings(self, job: Job) -> int:
        return {"decay": len(DECAYS), "distil": 2}.get(job.kind, 1)

    def planned(self, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> tuple[float, list[Job]]:
        return planned(self.settings, total_steps(self.ready), costs, self.ready.data.task == "classify")


# ---- the task type -------------------------------------------------------------------------------------------------


class NetworkTaskType(TaskType):
    """Networks that learn classes, values or features of images, tables and texts."""

    name, learner, title = "network", "networks", "For networks"
    searched = cross_examined = remembers = True
    about = "Classes and values, images, tables and texts: any model of PyTorch."

    def recipes(self) -> Mapping[str, Callable[..., Any]]:
        return {**recipes(), AUTO: checked(auto)}

    def serves(self, request: Request) -> bool:
        """All that no other task type serves."""
        return True

    def design(self) -> type[ComparisonDesign]:
        return NetworkDesign

    def prepare(self, request: Request) -> NetworkRun:
        return prepare(request)

    def usual_recipe(self, request: Request) -> str:
        """`auto`; of a quick answer that of classes, unless a column of values may be the target."""
        if request.effort is None:
            return AUTO
        return "elr" if request.target is None and request.data not in sources.TABLES else request.effort

    def cross_fitted(self, request: Request) -> NetworkRun:
        return prepare(request)

    def trial(self, request: Request, folds: int, folder: Path, listeners: Listeners) -> FoldTrial:
        ready = prepare(request)
        return lambda fold: ready.held_out(fold, folds, folder / str(fold), listeners)

    def card(self, name: str) -> dict[str, Any]:
        return auto_card() if name == AUTO else cards.card(name)

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        refuse_example(expression, example)
        if is_auto(expression):
            return {**auto_card(), "expression": expression, "most": read_auto(expression).most}
        return cards.explain(expression, read_method(expression))

    def text(self, card: dict[str, Any]) -> str:
        return auto_text(card) if card["name"] == AUTO else cards.text(card)

    def predictor(self, folder: Path) -> NetworkPredictor:
        return NetworkPredictor(folder)

    def row_cards(self, request: Request, data: Data, ids: Sequence[int], side: int = SIDE) -> dict[int, RowCard]:
        """Pictures of images, and texts and cells of tables."""
        if data.embedding is not None:
            return picture_cards(data.embedding.pixels, data.names, ids, data.embedding.white, side)
        if data.kind == "image":
            return picture_cards(data.x, data.names, ids, data.white, side)
        return table_cards(request.data, data.counts, ids, request.text, request.target)

    def committee(self, folder: Path, request: Request) -> Committee:
        return committee(folder, request)

    def rows(self, result: dict[str, Any]) -> Rows:
        """The plain model at its end and at its best epoch, every generation, and the ensemble where there is one."""
        table, plain, generations = Rows(), result.get("plain"), result["generations"]
        if plain:
            note = ", the final model" if result.get("chosen") == "plain" else ""
            table.append((f"plain, after {plain['steps']} steps{note}", plain["end"]))
            if stopped := plain.get("early_stopped"):
                table.append((f"plain, stopped early (epoch {stopped['epoch'] + 1})", stopped))
            if plain["from"] == "method":
                return table
        for generation in generations:
            name = f", {generation_name(result, generation)}" if len(generations) > 1 else ""
            table.append((f"{result['method']}{name}", generation["test"]))
        if ensemble := result.get("ensemble"):
            table.append((ensemble_name(ensemble), ensemble["test"]))
        return table

    def loading(self, folder: str) -> list[str]:
        return [
            "Load the model without the training code:",
            "",
            "```python",
            "from selfdistill.models import load",
            f'model = load("{folder}")',
            "```",
            "",
        ]
