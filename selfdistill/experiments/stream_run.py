"""Runs that learn in turn: a stream of tasks beside naive and joint training, and updates of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method
from ..data import sources, tables
from ..data.dataset import PREPROCESSOR, Data, load, saved_column_types
from ..data.images import idx_files
from ..data.table_files import is_table
from ..errors import CheckpointError, DataError, RecipeError
from ..evaluation.label_errors import read_conflicts
from ..evaluation.predict import losses as row_losses
from ..evaluation.predict import predict, task_outputs
from ..io.display import change
from ..io.expressions import one_line
from ..io.run_record import Request, read_record
from ..losses.distributions import UNKNOWN
from ..methods import Recipe
from ..methods.controls import plain
from ..methods.prior import read_most
from ..methods.registry import is_auto, read_method
from ..models import store
from ..models.growth import GrownBuild, Padded, grown
from ..training import budget, reservoir
from ..training.fit import Result, fit
from ..training.shortlist import (
    Trial,
    candidate_folder,
    copy_log,
    foreword,
    refuse_budget,
    try_each,
    visible,
)
from ..training.stream import (
    StreamTasks,
    class_tasks,
    column_tasks,
    fit_stream,
    fit_update,
    rows_of_tasks,
    score_tasks,
    task_accuracy,
)
from ..training.task_type import FigureTable, Listeners, Rows
from .network_run import NetworkRun, batch_size_for, prepare, usual_epochs
from .network_task import NetworkTaskType

STREAMS = ("plain()", "er()", "lwf()", "er_ema()", "der()", "der_pp()")  # what auto() tries, the simplest first


NAMES = {"naive": "plain(), task after task", "joint": "plain(), all tasks at once"}


WORDS = {
    "naive": "training task after task without replay (naive)",
    "joint": "training on all tasks at once for as many steps (joint)",
}


def _tasks(data: Data, request: Request) -> tuple[StreamTasks, StreamTasks, list[str]]:
    """The tasks of a stream with the rows that teach, with those that test, and their names.

    Raises:
        DataError: there are no two tasks, or one lacks rows.
    """
    if isinstance(request.tasks, str):
        return column_tasks(data)
    classes = class_tasks(data, request.tasks or 0, request.seed)
    taught, tested = (StreamTasks(rows_of_tasks(data, classes, ids), classes) for ids in (data.labelled, data.test))
    return taught, tested, [", ".join(data.classes[c] for c in sorted(task.tolist())) for task in classes]


class StreamRun(NetworkRun):
    """A run of a stream with every choice made; epochs and steps are those of a task."""

    def title(self, generation: int) -> str:
        return f"after task {generation + 1}, the last one"

    def train_method(self, folder: Path, listeners: Listeners, title: str | None = None) -> Result:
        """The method alone, from wherever it was cut."""
        tasks = _tasks(self.data, self.request)[0].rows
        settings = {**self.settings, "audit": "off", "batch_size": min(self.settings["batch_size"], *map(len, tasks))}
        return fit_stream(
            self.build,
            self.data,
            self.method,
            tasks,
            out=folder,
            resume=True,
            device=self.request.device,
            progress=listeners.progress(title or self.expression),
            warn=listeners.warn,
            **settings,
        )

    def train(self, folder: Path, listeners: Listeners, own: Path | None = None) -> dict[str, Any]:
        """The method, then naive training, then joint training of as many steps; each goes on from its checkpoints.

        ``own`` is the folder of the method's training, where that is not the run's.
        """
        taught, tested, names = _tasks(self.data, self.request)
        tasks = taught.rows
        settings = {**self.settings, "audit": "off", "batch_size": min(self.settings["batch_size"], *map(len, tasks))}
        common: dict[str, Any] = {"resume": True, "device": self.request.device}
        begin, build, data = listeners.progress, self.build, self.data
        budget.expect(3 if self.request.control else 1)
        trained = self.train_method(own or folder, listeners)
        others = {}
        if self.request.control:
            with budget.following(alike=True):
                others["naive"] = fit_stream(
                    build,
                    data,
                    plain(),
                    tasks,
                    out=folder / "naive",
                    progress=begin(NAMES["naive"]),
                    warn=listeners.warn_of(NAMES["naive"]),
                    **common,
                    **settings,
                )
            wide = {**settings, "steps": trained.steps, "batch_size": batch_size_for(data, plain())}
            with budget.following():
                others["joint"] = fit(
                    build,
                    data,
                    plain(),
                    out=folder / "joint",
                    progress=begin(NAMES["joint"]),
                    warn=listeners.warn_of(NAMES["joint"]),
                    **common,
                    **wide,
                )
        for training in (trained, *others.values()):
            training.model.cpu()
        result = self._result(folder, trained, None, False)
        scores = {
            name: score_tasks(one, build, data, tested, self.request.seed)
            for name, one in {"method": trained, **others}.items()
        }
        classes = [[data.classes[c] for c in task.tolist()] for task in taught.classes]
        result["stream"] = {"scenario": taught.scenario, "tasks": names, "classes": classes, **scores}
        if distributed.rank() == 0:
            self._save_final_model(folder / "model", trained, result)
        return result


@dataclass
class AutoStreamRun(StreamRun):
    """A stream that is learnt by each of several recipes, of which the validation rows of all tasks choose one."""

    candidates: Sequence[StreamRun] = ()

    @property
    def note(self) -> str:
        """What will be tried, and what chooses."""
        names = [one.expression for one in self.candidates]
        chooses = f"accuracy after the last task, {visible(len(self.data.audit), 'accuracy')}"
        lines = foreword(names, "of the whole stream", chooses)
        return "\n".join([*filter(None, [self.data.note]), *lines])

    def train(self, folder: Path, listeners: Listeners, own: Path | None = None) -> dict[str, Any]:
        """Every candidate from wherever it was cut; then the chosen one is the method of the run."""
        data, names = self.data, [one.expression for one in self.candidates]

        def train(number: int) -> tuple[list[Trial], int]:
            one, title = self.candidates[number], f"candidate {number + 1} of {len(names)}, {names[number]}"
            trained = one.train_method(folder / candidate_folder(number, names[number]), listeners, title)
            device = next(trained.model.parameters()).device
            losses = row_losses(trained.model, data, data.audit, "accuracy", device)
            return [Trial(names[number], losses, trained.steps, trained.passes, trained.seconds)], number

        choice = try_each(names, train, names.index, listeners.tell)
        number = choice.kept[choice.chosen]
        own = folder / candidate_folder(number, names[number])
        result = self.candidates[number].train(folder, listeners, own)
        copy_log(own, folder)
        return {**result, **choice.spent(), "auto": choice.to_json("accuracy")}


def shortlisted_stream(ready: NetworkRun) -> AutoStreamRun:
    """The run of ``auto()`` on a stream: naive training and the recipes of streams, the simplest first."""
    refuse_budget(ready.request.budget)
    if not len(ready.data.audit):
        raise DataError(f"auto() chooses on validation rows, and {ready.data.name} has none; give --method 'der_pp()'")
    runs = [
        StreamRun(**{**vars(ready), "expression": expression, "method": read_method(expression)})
        for expression in STREAMS[: read_most(ready.expression)]
    ]
    return AutoStreamRun(**vars(ready), candidates=runs)


class SequenceTaskType(NetworkTaskType):
    """What streams, updates and adaptations share: the recipes of networks, no audit, and no scores of labels."""

    audited = searched = cross_examined = remembers = False

    def usual_recipe(self, request: Request) -> str:
        return "default"

    def recipes(self) -> Mapping[str, Recipe]:
        """None of its own: those of networks."""
        return {}

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """Equal rows with different labels; else refused: labels are scored where all are learnt at once."""
        if conflicts := read_conflicts(folder, top):
            return conflicts
        raise CheckpointError(
            f"{folder} has no scores of its labels: it is one of {self.learner}; train on all labelled rows at once by "
            "`selfdistill run DATA`, and ask that run"
        )


class StreamTaskType(SequenceTaskType):
    """Networks whose classes come in tasks, one after another."""

    name, learner, title = "stream", "streams of tasks", "For streams"
    about = "Classes or domains that come in tasks, one after another."

    def serves(self, request: Request) -> bool:
        return request.tasks is not None

    def prepare(self, request: Request) -> StreamRun:
        """Raises RecipeError for a method of generations of its own, or an option that a stream has no use for."""
        ready = prepare(request)
        check_recipe(ready.method, ready.expression)
        for name in ("audit_folds", "init", "text", "refit", "effort"):
            if getattr(request, name) is not None:
                raise RecipeError(f"--tasks does not go with --{name.replace('_', '-')}; leave one of them out")
        _tasks(ready.data, request)
        return shortlisted_stream(ready) if is_auto(ready.expression) else StreamRun(**vars(ready))

    def rows(self, result: dict[str, Any]) -> Rows:
        """The method, naive and joint training."""
        return [(NAMES.get(name, result["method"]), _metrics(result, name)) for name in _trained(result)]

    def part(self, generation: int) -> str:
        return f"task {generation + 1}"

    def tables(self, result: dict[str, Any]) -> list[FigureTable]:
        """The accuracy by task."""
        return [_matrix(result["stream"], "method", result["method"])]

    def verdict(self, result: dict[str, Any]) -> str:
        """What is right after the last task, what was forgotten, and the distance to naive and joint training."""
        stream = result["stream"]
        own, scenario = stream["method"], stream.get("scenario", "class-incremental")
        text = (
            f"After {len(own['matrix'])} tasks {100 * own['accuracy']:.1f} % of the test rows are right, mean of tasks"
        )
        among = own.get("task_incremental")
        told = "" if among is None else f"; {100 * among:.1f} % among the classes of the row's task alone"
        text += f" ({scenario}{told}). Forgetting: {100 * own['forgetting']:.1f} points since each task's best."
        pairs = [(name, 100 * (own["accuracy"] - stream[name]["accuracy"])) for name in WORDS if name in stream]
        if pairs:
            gains = [f"{WORDS[name]}: {change(gain, ' points')}" for name, gain in pairs]
            text += f" Against {', and against '.join(gains)}."
        return f"{text} One seed proves little; repeat with other --seed values."


def _matrix(stream: Mapping[str, Any], name: str, title: str) -> FigureTable:
    """The accuracy on each task after each task."""
    tasks = stream.get("tasks") or [", ".join(classes) for classes in stream["classes"]]
    numbered = [f"task {number}" for number in range(1, len(tasks) + 1)]
    rows = [
        [f"after {numbered[k]} ({one_line(tasks[k], 40)})", *(f"{100 * value:.1f} %" for value in line)]
        for k, line in enumerate(stream[name]["matrix"])
    ]
    caption = f"{title}: each row is the network after a task, each column the test rows of a task."
    return FigureTable("Accuracy by task", ["", *numbered], rows, caption)


def check_recipe(
    method: Method, expression: str, use: str = "streams; give er(), der(), der_pp(), er_ema() or lwf()"
) -> None:
    """Refuse recipes that change the model or need unlabelled rows.

    Raises:
        RecipeError: it is one.
    """
    if method.wrap_model is not None or method.views.need_unlabelled():
        raise RecipeError(f"{expression} is no method for {use}")


def _trained(result: dict[str, Any]) -> list[str]:
    return [name for name in ("naive", "method", "joint") if name in result["stream"]]


def _metrics(result: dict[str, Any], name: str) -> dict[str, float]:
    return {key: value for key, value in result["stream"][name].items() if key != "matrix"}


# updates ----------------------------------------------------------------------------------------------------------

#: options of a run that a run which is updated has decided, or that have no meaning for an update
_FIXED = (
    "text",
    "unlabelled",
    "image_size",
    "model",
    "init",
    "audit_folds",
    "refit",
    "effort",
    "targets",
    "tasks",
    "keep",
    "checker",
    "eval_tasks",
    "fields",
    "student_template",
    "teacher_template",
    "group_lengths",
    "skip_long",
    "lora",
    "max_tokens",
    "checkpointing",
    "alarms",
    "dtype",
    "save",
    "load_in_4bit",
)


ALPHA = 0.2  # of stored logits: those of a finished run are large, and with a weight of 1 new classes are learnt badly


@dataclass
class UpdateRun(NetworkRun):
    """An update with every choice made: ``before`` is the model of the earlier run, ``known`` its number of classes."""

    before: nn.Module
    known: int
    sample: Mapping[str, Tensor]

    @property
    def stored(self) -> Mapping[str, Tensor]:
        return self.sample

    @property
    def note(self) -> str:
        """What the data are, and what an update without stored rows costs."""
        lines = [self.data.note] if self.data.note else []
        if not self.sample:
            lines.append(
                "no row of the earlier data is stored (--memory 0): the earlier model teaches its classes on the new "
                "rows alone, and with new classes most of the old ones are forgotten; see docs/streams.md"
            )
        return "\n".join(lines)

    def title(self, generation: int) -> str:
        return "the updated model"

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """The method, then naive training of as many steps; each goes on from its checkpoints."""
        common: dict[str, Any] = {"resume": True, "device": self.request.device}
        begin, build, data = listeners.progress, self.build, self.data
        settings = {**self.settings, "batch_size": min(self.settings["batch_size"], len(self.data.labelled))}
        budget.expect(2 if self.request.control else 1)
        trained = fit_update(
            build,
            data,
            self.method,
            self.before,
            self.sample,
            out=folder,
            progress=begin(self.expression),
            warn=listeners.warn,
            **common,
            **settings,
        )
        models = {"before": self.before, "method": trained.model.cpu()}
        if self.request.control:
            with budget.following(alike=True):
                naive = fit_update(
                    build,
                    data,
                    plain(),
                    self.before,
                    {},
                    out=folder / "naive",
                    progress=begin(NAMES["naive"]),
                    warn=listeners.warn_of(NAMES["naive"]),
                    **common,
                    **settings,
                )
            models["naive"] = naive.model.cpu()
        result = self._result(folder, trained, None, False)
        result["update"] = self._scores(models)
        if distributed.rank() == 0:
            self._save_final_model(folder / "model", trained, result)
        return result

    def _scores(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Accuracy of each model on new rows and on those of old classes, and what was forgotten of these.

        Without test rows of old classes beside new ones the stored rows are asked, which were learnt from.
        """
        data, ids, old = self.data, self.data.test, self.data.y[self.data.test] < self.known
        tested = bool(old.any()) and len(data.classes) > self.known
        result: dict[str, Any] = {
            "classes": {"old": list(data.classes[: self.known]), "new": list(data.classes[self.known :])},
            "target": self.request.target,
            "old_rows": int(old.sum()) if tested else len(self.sample.get("y", ())),
            "old_from": "the test split" if tested else "the reservoir",
        }
        for name, model in models.items():
            logits = task_outputs(model, data, ids)
            new = ~old if tested else torch.ones_like(old)
            scores = {
                "accuracy": task_accuracy(logits, data.y[ids]),
                "new": task_accuracy(logits[new], data.y[ids][new]),
            }
            if tested:
                scores["old"] = task_accuracy(logits[old], data.y[ids][old])
            elif self.sample:
                scores["old"] = task_accuracy(predict(model, self.sample["x"]), self.sample["y"])
            result[name] = scores
        for scores in (result[name] for name in models if "old" in result[name]):
            scores["forgetting"] = result["before"]["old"] - scores["old"]
        return result


#: what goes on with runs on data of other kinds
_ELSEWHERE = {
    "prompts": "a language model; give it prompts by `selfdistill update`",
    "text": "a reader of texts; train it again on all rows by `selfdistill run ALL --text COL --target COL`",
    "": "a run on other data; give the folder of a run on such data",
}


def read_base(
    request: Request, run: str, command: str, fixed: Sequence[str]
) -> tuple[Path, str | None, dict[str, Any]]:
    """The run that a command goes on with: its model folder, its target column, and the card of its model.

    Args:
        request: of the command.
        run: the folder of the run.
        command: its name.
        fixed: the options that the command has no use for.

    Raises:
        CheckpointError: it is no finished run.
        DataError: it knows no classes, or an option does not go with the command.
    """
    if not (Path(run) / "run.json").exists():
        raise CheckpointError(f"{run} is no run folder (it has no run.json); give the folder that `run` printed")
    place, usual = store.model_folder(run), Request()
    for name in fixed:
        if getattr(request, name) != getattr(usual, name):
            raise DataError(f"`{command}` goes on with the model of {run}; leave --{name.replace('_', '-')} out")
    record, base = read_record(Path(run) / "run.json")
    remedy = _ELSEWHERE.get(record["data"].get("kind", ""))
    if (place / store.ESTIMATOR).exists():
        remedy = "a learner of tables; train it again on all rows by `selfdistill run ALL`, or a network by --model mlp"
    card = {} if remedy else store.model_card(place)
    if card and card.get("task") != "classify":
        remedy = f"a network without classes; begin with its weights by `selfdistill run DATA --init {run}`"
    if remedy:
        raise DataError(
            f"`{command}` goes on with networks that classify images or rows of a table, and {run} is {remedy}"
        )
    result = record.get("result", {})
    return place, base.target or result.get("update", result.get("adapt", {})).get("target"), card


def _new_data(request: Request, place: Path, target: str | None, card: Mapping[str, Any]) -> Data:
    """The new rows, prepared as those of the run were; the classes of the run come first.

    Raises:
        DataError: they are of another kind or shape, or none has a label.
    """
    shape, fixed = tuple(card["shape"]), request.data in sources.NAMES or bool(idx_files(Path(request.data)))
    prepared, file = (place / PREPROCESSOR).exists(), Path(request.data).is_file()
    if card["kind"] == "image" and is_table(request.data):
        raise DataError(f"{request.data} is a table, and the model of {request.update} reads images; give images")
    data = load(
        request.data,
        target=request.target or (target if file else None),
        labels=request.labels,
        decisions=request.decisions,
        raw_csv=request.raw_csv,
        label_noise=request.label_noise,
        image_size=shape[-1] if card["kind"] == "image" and not fixed else None,
        seed=request.seed,
        columns=(saved_column_types(place) if prepared and file else {}) | dict(request.columns),
        groups=request.groups,
        time=request.time,
        test=request.test,
        audit=request.validation,
        preprocessor=tables.load(place / PREPROCESSOR) if prepared else None,
        taught=card["classes"],
    )
    if (data.task, data.kind, data.shape) != ("classify", card["kind"], shape):
        raise DataError(
            f"{request.data}: {data.kind} rows of shape {data.shape} to {data.task}, but the model of {request.update} "
            f"classifies {card['kind']} rows of shape {shape}; give data of that shape with classes"
        )
    classes = [*card["classes"], *(name for name in data.classes if name not in card["classes"])]
    places = torch.tensor([*(classes.index(name) for name in data.classes), -1])  # the last one for no label
    return replace(data, y=places[data.y], classes=tuple(classes)).with_augmentation(request.augment)


def prepare_update(request: Request) -> UpdateRun:
    """Load the new data, and model and reservoir of the run that is updated; the data of that run are never opened.

    Raises:
        CheckpointError: there is no such run, or it is not finished.
        DataError, RecipeError: it cannot be updated with these data.
    """
    place, target, card = read_base(request, str(request.update), "update", _FIXED)
    known = len(card["classes"])
    data = _new_data(request, place, target, card)
    rows = reservoir.read_sample(place.parent, tuple(card["shape"]), known) if request.memory != 0 else None
    if rows is None and request.memory:
        raise DataError(
            f"{request.update} kept no rows (--memory 0), and --memory {request.memory} would replay some; give "
            "--memory 0, which learns without them and forgets more"
        )
    room = reservoir.ROWS if request.memory is None else request.memory
    expression = request.method or (f"der_pp(memory={min(room, len(rows['x']))}, alpha={ALPHA})" if rows else "lwf()")
    method = read_method(expression)
    check_recipe(method, expression)
    build: GrownBuild = grown(place, len(data.classes))
    before = Padded(store.load(place), len(data.classes), UNKNOWN)
    settings = {**dict(request.training), "seed": request.seed, "steps": request.steps}
    settings["batch_size"] = request.batch_size or batch_size_for(data, method)
    settings["epochs"] = request.epochs or usual_epochs(data, method, settings["batch_size"])
    sample = reservoir.padded(rows, len(data.classes), room, request.seed) if rows else {}
    return UpdateRun(
        replace(request, target=request.target or target),
        data,
        method,
        expression,
        build,
        settings,
        before,
        known,
        sample,
    )


class UpdateTaskType(SequenceTaskType):
    """Finished runs of networks that go on with new rows or classes."""

    name, learner, title = "update", "updates", "For updates"
    about = "Finished runs that go on with new data."

    def serves(self, request: Request) -> bool:
        return request.update is not None

    def prepare(self, request: Request) -> UpdateRun:
        return prepare_update(request)

    def rows(self, result: dict[str, Any]) -> Rows:
        """The run before, naive training and the method."""
        names = {"before": "the run before", "naive": "plain(), on the new rows alone", "method": result["method"]}
        return [(names[name], result["update"][name]) for name in names if name in result["update"]]

    def verdict(self, result: dict[str, Any]) -> str:
        """Old classes before and after, new classes, and what naive training forgets."""
        update = result["update"]
        before, after, naive = (update.get(name) for name in ("before", "method", "naive"))
        text = f"New rows: {100 * after['new']:.1f} %. "
        if "old" not in after:
            return f"{text}Old classes are not measured: give --test with rows of old and new classes."
        text += f"Old classes: {100 * before['old']:.1f} % before, {100 * after['old']:.1f} % after"
        if naive:
            text += f" ({100 * naive['old']:.1f} % after training on the new rows alone)"
        where = f", on {update['old_rows']} rows of {update['old_from']}"
        if update["old_from"] == "the reservoir":
            where += ", which were learnt from; give --test with rows of old and new classes for a fair figure"
        return f"{text}{where}."
