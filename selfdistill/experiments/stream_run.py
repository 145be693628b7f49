"""A run of a class-incremental stream: the method, naive training and joint training, scored on the test split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core import distributed
from ..errors import RecipeError
from ..io.run_record import Request
from ..methods import Recipe
from ..methods.controls import plain
from ..training.fit import fit
from ..training.stream import class_tasks, fit_stream, rows_of_tasks, score_classes
from ..training.task_type import Listeners, Rows
from .network_run import NetworkRun, batch_size_for, prepare
from .network_task import NetworkTaskType

NAMES = {"naive": "plain(), task after task", "joint": "plain(), all tasks at once"}


class StreamRun(NetworkRun):
    """A run of a stream with every choice made; epochs and steps are those of a task."""

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """The method, then naive training, then joint training of as many steps; each goes on from its checkpoints."""
        classes = class_tasks(self.data, self.request.tasks or 0, self.request.seed)
        tasks = rows_of_tasks(self.data, classes, self.data.labelled)
        settings = {**self.settings, "audit": "off", "batch_size": min(self.settings["batch_size"], *map(len, tasks))}
        common: dict[str, Any] = {"resume": True, "device": self.request.device, "warn": listeners.warn}
        begin, build, data = listeners.progress, self.build, self.data
        trained = fit_stream(
            build, data, self.method, tasks, out=folder, progress=begin(self.expression), **common, **settings
        )
        others = {}
        if self.request.control:
            others["naive"] = fit_stream(
                build, data, plain(), tasks, out=folder / "naive", progress=begin(NAMES["naive"]), **common, **settings
            )
            wide = {**settings, "steps": trained.steps, "batch_size": batch_size_for(data, plain())}
            others["joint"] = fit(
                build, data, plain(), out=folder / "joint", progress=begin(NAMES["joint"]), **common, **wide
            )
        for training in (trained, *others.values()):
            training.model.cpu()
        result = self._result(folder, trained, None, False)
        scores = {
            name: score_classes(one, build, data, classes, self.request.seed)
            for name, one in {"method": trained, **others}.items()
        }
        result["stream"] = {"classes": [[data.classes[c] for c in task.tolist()] for task in classes], **scores}
        if distributed.rank() == 0:
            self._save_final_model(folder / "model", trained, result)
        return result


class StreamTaskType(NetworkTaskType):
    """Networks whose classes come in tasks, one after another."""

    name, learner, title = "stream", "streams of tasks", "For streams"
    about = "Classes that come in tasks, one after another."

    def recipes(self) -> Mapping[str, Recipe]:
        """None of its own: those of networks."""
        return {}

    def serves(self, request: Request) -> bool:
        return request.tasks is not None

    def prepare(self, request: Request) -> StreamRun:
        """Raises RecipeError for a method of generations of its own, or an option that a stream has no use for."""
        ready = prepare(request)
        if ready.method.wrap_model is not None or ready.method.views.need_unlabelled():
            raise RecipeError(
                f"{ready.expression} is no method for streams; give er(), der(), der_pp(), er_ema() or lwf()"
            )
        for name in ("audit_folds", "init", "text"):
            if getattr(request, name) is not None:
                raise RecipeError(f"--tasks does not go with --{name.replace('_', '-')}; leave one of them out")
        class_tasks(ready.data, request.tasks or 0, request.seed)
        return StreamRun(**{field.name: getattr(ready, field.name) for field in fields(NetworkRun)})

    def rows(self, result: dict[str, Any]) -> Rows:
        """The method, naive and joint training."""
        return [(NAMES.get(name, result["method"]), _metrics(result, name)) for name in _trained(result)]

    def verdict(self, result: dict[str, Any]) -> str:
        """Accuracy over all classes, forgetting and the distance to joint training."""
        stream = result["stream"]
        own = stream["method"]
        parts = [f"Accuracy over all classes after {len(own['matrix'])} tasks: {100 * own['accuracy']:.1f} %"]
        parts.append(f"among the classes of each task {100 * own['task_incremental']:.1f} %")
        parts.append(f"forgetting {100 * own['forgetting']:.1f}")
        parts += [f"{100 * (own['accuracy'] - stream[n]['accuracy']):+.1f} against {n}" for n in NAMES if n in stream]
        return f"{', '.join(parts)} points. One seed proves little; repeat with other --seed values."


def _trained(result: dict[str, Any]) -> list[str]:
    return [name for name in ("naive", "method", "joint") if name in result["stream"]]


def _metrics(result: dict[str, Any], name: str) -> dict[str, float]:
    return {key: value for key, value in result["stream"][name].items() if key != "matrix"}
