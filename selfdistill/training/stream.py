"""Streams: tasks that come one after another, each learnt from the weights of the one before, and their scores.

A task is a generation. Its labelled rows alone teach in it; rows of earlier tasks are in the reservoir of the method.
An adaptation is a stream of unlabelled domains, each labelled by the model of the one before.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method, Objective
from ..core.regression import for_task
from ..core.step import Passes
from ..data.dataset import Data, sealed
from ..errors import DataError
from ..evaluation.predict import predict_rows, task_outputs
from ..io.tensors import digest
from ..methods.validate import check_method
from ..teachers.replay import Reservoir
from .fit import Result, choose_device, drive, run_folder
from .settings import Settings
from .state import RunState, copied
from .supervised import DryRun, NetworkTask
from .task import Callback
from .trainer import Progress, Trainer

LEAVE_OUT = 0.1  # of the rows of a domain, those whose pseudo-labels are the least certain


def class_tasks(data: Data, number: int, seed: int) -> list[Tensor]:
    """The classes of each task of a class-incremental stream, in an order that the seed draws.

    Raises:
        DataError: there are no classes, or fewer than tasks.
    """
    classes = len(data.classes)
    if data.task != "classify" or not 2 <= number <= classes:
        raise DataError(
            f"--tasks {number}: {data.name} has {classes} classes, which make 2 to {classes} tasks; give such a number"
        )
    return list(torch.tensor_split(rng.permutation((seed, "tasks"), classes), number))


def rows_of_tasks(data: Data, classes: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """The rows (of these ids) of each task, by its classes."""
    return [rows[torch.isin(data.y[rows], task)] for task in classes]


CLASSES, DOMAINS, MIXED = "class-incremental", "domain-incremental", "class- and domain-incremental"


class StreamTasks(NamedTuple):
    """The tasks of a stream: the rows and the classes of each."""

    rows: Sequence[Tensor]
    classes: Sequence[Tensor]

    @property
    def scenario(self) -> str:
        """Class-incremental where no two tasks share a class, domain-incremental where all have the same ones.

        >>> StreamTasks([], [torch.tensor([0, 1]), torch.tensor([0, 1])]).scenario
        'domain-incremental'
        """
        several = torch.cat(list(self.classes))
        if len(several.unique()) == len(several):
            return CLASSES
        first = self.classes[0]
        return DOMAINS if all(torch.equal(first, each) for each in self.classes) else MIXED


def column_tasks(data: Data) -> tuple[StreamTasks, StreamTasks, list[str]]:
    """The tasks that a column names: with the rows that teach, with those that test, and their names.

    Raises:
        DataError: there are no classes, fewer than two tasks, or one without a row that teaches or tests.
    """
    if data.task != "classify" or data.tasks is None or len(data.tasks.names) < 2:
        names = () if data.tasks is None else data.tasks.names
        why = f"the only task is '{names[0]}'" if names and data.task == "classify" else "the target is no class"
        raise DataError(f"{data.name}: {why}, and a stream has classes in two tasks or more; give another --tasks")
    numbers, parts = data.tasks.numbers, list[list[Tensor]]()
    for ids, what in ((data.labelled, "teaches"), (data.test, "tests")):
        parts.append([ids[numbers[ids] == number] for number in range(len(data.tasks.names))])
        for name, rows in zip(data.tasks.names, parts[-1], strict=True):
            if not len(rows):
                raise DataError(
                    f"{data.name}: no row of the task '{name}' {what}; add some, merge it with another task, or give "
                    "your own splits by --test and --validation"
                )
    classes = [data.y[torch.cat(pair)].unique() for pair in zip(*parts, strict=True)]
    return StreamTasks(parts[0], classes), StreamTasks(parts[1], classes), list(data.tasks.names)


def _check_rows(data: Data, parts: Sequence[Tensor], noun: str, unit: str) -> None:
    """Refuse a part of a stream that has nothing to teach, or rows that never teach.

    Raises:
        DataError: a part has no row, or one of the validation or test split.
    """
    held = torch.cat([data.audit, data.test])
    for number, rows in enumerate(parts, 1):
        if not len(rows):
            raise DataError(f"{noun} {number} of {len(parts)} has no {unit}; give fewer {noun}s")
        if bool(torch.isin(rows, held).any()):
            raise DataError(f"{noun} {number} has rows of the validation or test split, which never teach")


class StreamTask(NetworkTask):
    """A network that learns the tasks of a stream in turn.

    Args:
        build, data, method: as of `NetworkTask`; the method has a generation for each task.
        tasks: the ids of the labelled rows of each task; rows that validate or test are in none of them.

    Raises:
        DataError: a task has no row.
    """

    every_generation = True

    def __init__(self, build: Callable[..., nn.Module], data: Data, method: Method, tasks: Sequence[Tensor]) -> None:
        super().__init__(build, sealed(data), method)
        self.whole = self.data
        self.tasks, self.parts = tuple(tasks), [sealed(replace(data, labelled=rows)) for rows in tasks]
        _check_rows(data, tasks, "task", "labelled row")

    @property
    def identity(self) -> Mapping[str, Any]:
        digest = hashlib.sha256(repr([rows.tolist() for rows in self.tasks]).encode()).hexdigest()
        return {**super().identity, "data": self.whole.fingerprint, "tasks": digest}

    def title(self, generation: int) -> str:
        return f"task {generation + 1} of {len(self.tasks)}"

    def model(self, state: RunState, generation: int) -> nn.Module:
        """The network as the last task left it."""
        model = self.build()
        if generation and len(state.generations) >= generation:
            model.load_state_dict(state.generations[generation - 1].weights)
        return model

    def callbacks(self) -> Sequence[Callback]:
        """Those that compare generations, or ask a model of some classes for all, say nothing about tasks."""
        return [DryRun(self)]

    def begin(self, state: RunState) -> int:
        self.data = self.parts[state.clock.generation]
        return super().begin(state)


def stream_scores(accuracy: Tensor, untrained: Tensor | None = None, ahead: Tensor | None = None) -> dict[str, float]:
    """What a stream is judged by, from the accuracy on task j after task t.

    Equation::

        accuracy = mean_j A[T, j],   forgetting = mean_{j < T} (max_{t < T} A[t, j] - A[T, j])
        backward = mean_{j < T} (A[T, j] - A[j, j]),   forward = mean_{j > 1} (B[j - 1, j] - b_j)

    Args:
        accuracy: A, (tasks, tasks), in [0, 1].
        untrained: b, that of the model before training on each task, (tasks,); without it no ``forward``.
        ahead: B, (tasks, tasks), with b what ``forward`` is taken of; by default A. Where classes are new in a task,
            it is the accuracy among the classes of the task, since no network gives the name of a class it never saw.

    Returns:
        The scores by name; of one task ``accuracy`` alone.

    Source: Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017; Chaudhry et al., ECCV 2018 (forgetting).

    >>> stream_scores(torch.tensor([[1.0, 0.5], [0.25, 0.75]]), torch.tensor([0.5, 0.25]))
    {'accuracy': 0.5, 'forgetting': 0.75, 'backward': -0.75, 'forward': 0.25}
    """
    last = len(accuracy) - 1
    scores = {"accuracy": float(accuracy[last].mean())}
    if last:
        scores["forgetting"] = float((accuracy[:last, :last].amax(0) - accuracy[last, :last]).mean())
        scores["backward"] = float((accuracy[last] - accuracy.diagonal())[:last].mean())
        if untrained is not None:
            seen = accuracy if ahead is None else ahead
            scores["forward"] = float((seen.diagonal(1) - untrained[1:]).mean())
    return scores


def task_accuracy(logits: Tensor, y: Tensor, classes: Tensor | None = None) -> float:
    """The share of rows whose largest logit is that of their class; among some classes alone where they are given.

    >>> task_accuracy(torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([1]), torch.tensor([0, 1]))
    1.0
    """
    answers = logits.argmax(-1) if classes is None else classes[logits[:, classes].argmax(-1)]
    return float((answers == y).double().mean()) if len(y) else float("nan")


def _drive(
    task: NetworkTask,
    method: Method,
    settings: Mapping[str, Any],
    *,
    out: Path | str | None,
    resume: bool,
    device: torch.device | str | None,
    progress: Progress | None,
    warn: Callable[[str], None],
    tell: Callable[[str], None] | None,
) -> Result:
    """Train a task whose generations nothing audits."""
    chosen = Settings(**{**settings, "audit": "off"})
    place, where = run_folder(out, resume), choose_device(device)
    return drive(Trainer(task, method, chosen, folder=place, device=where, warn=warn, tell=tell), resume, progress)


def fit_stream(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    tasks: Sequence[Tensor],
    *,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Result:
    """Train a method on tasks in turn; nothing audits a task.

    Args:
        build, data, method, out, resume, device, progress, warn, tell: as of `fit`.
        tasks: the ids of the labelled rows of each task.
        settings: the fields of `Settings`; epochs and steps are those of a task.

    Returns:
        As of `fit`; a generation is a task.
    """
    method = for_task(replace(method, generations=len(tasks)), data.task)
    check_method(method, data)
    task = StreamTask(build, data, method, tasks)
    return _drive(
        task, method, settings, out=out, resume=resume, device=device, progress=progress, warn=warn, tell=tell
    )


class UpdateTask(NetworkTask):
    """A network of a finished run that goes on with new rows.

    Args:
        build: makes the network with the weights of that run.
        data, method: as of `NetworkTask`; the method has one generation.
        before: the network of that run, with the logit `UNKNOWN` for classes that it does not know.
        stored: what the reservoir of that run holds; empty where it has none.
    """

    def __init__(
        self,
        build: Callable[..., nn.Module],
        data: Data,
        method: Method,
        before: nn.Module,
        stored: Mapping[str, Tensor],
    ) -> None:
        super().__init__(build, sealed(data), method)
        self.before, self.stored = before, stored

    @property
    def identity(self) -> Mapping[str, Any]:
        return {**super().identity, "before": digest({**self.before.state_dict(), **self.stored})}

    def previous_model(self, state: RunState, generation: int) -> nn.Module:
        return self.before

    def bind(self, state: RunState, previous: nn.Module | None) -> Objective:
        objective = super().bind(state, previous)
        for part in objective.states.values():
            if isinstance(part, Reservoir) and self.stored:
                part.inherit(self.stored)
        return objective

    def callbacks(self) -> Sequence[Callback]:
        """Those that ask a model of few rows for more say nothing about an update."""
        return [DryRun(self)]


def fit_update(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    before: nn.Module,
    stored: Mapping[str, Tensor],
    *,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Result:
    """Train the network of a finished run on new rows; nothing audits it.

    Args:
        build, data, method, before, stored: as of `UpdateTask`.
        out, resume, device, progress, warn, tell: as of `fit`.
        settings: the fields of `Settings`.

    Returns:
        As of `fit`.
    """
    method = for_task(replace(method, generations=1), data.task)
    check_method(method, data)
    task = UpdateTask(build, data, method, before, stored)
    return _drive(
        task, method, settings, out=out, resume=resume, device=device, progress=progress, warn=warn, tell=tell
    )


class AdaptTask(NetworkTask):
    """A network that adapts to unlabelled domains in turn, by pseudo-labels of the model before.

    A domain is a generation: the model that ended the last one labels its rows, the least certain share of them is
    left out, and a network learns the others.

    Args:
        build, data, method: as of `NetworkTask`; the method has a generation for each domain.
        source: the network that labels the first domain.
        domains: the ids of the rows of each domain; rows that validate or test are in none of them.
        leave_out: the share of each domain, the least certain rows, that teaches nothing.
        warm: whether a network begins with the weights of the one before; otherwise it begins anew.

    Raises:
        DataError: a domain has no row, or one that validates or tests, or the share is none.
    """

    every_generation = True

    def __init__(
        self,
        build: Callable[..., nn.Module],
        data: Data,
        method: Method,
        source: nn.Module,
        domains: Sequence[Tensor],
        leave_out: float = LEAVE_OUT,
        warm: bool = False,
    ) -> None:
        if not domains:
            raise DataError("there is no domain to adapt to; give the rows of one or more")
        hidden = torch.full_like(data.y, -1)
        held = torch.cat([data.audit, data.test])
        hidden[held] = data.y[held]
        self.whole = replace(data, y=hidden)
        super().__init__(build, sealed(replace(self.whole, labelled=domains[0])), method)
        self.source, self.domains, self.leave_out, self.warm = source, tuple(domains), leave_out, warm
        self.collapsed = False  # whether it was told that one class is left
        if not 0 <= leave_out < 1:
            raise DataError(
                f"the share of rows that is left out is from 0 to below 1, not {leave_out}; try {LEAVE_OUT}"
            )
        _check_rows(data, domains, "domain", "row")

    @property
    def identity(self) -> Mapping[str, Any]:
        rows = hashlib.sha256(repr([rows.tolist() for rows in self.domains]).encode()).hexdigest()
        source = digest(copied(self.source.state_dict()))
        how = {"leave out": self.leave_out, "warm": self.warm}
        return {**super().identity, "data": self.whole.fingerprint, "domains": rows, "source": source, **how}

    def title(self, generation: int) -> str:
        return f"round {generation + 1} of {len(self.domains)}"

    def model(self, state: RunState, generation: int) -> nn.Module:
        """A new network; with ``warm``, the one that ended the last domain."""
        model = self.build()
        if self.warm and len(state.generations) >= generation:
            before = state.generations[generation - 1].weights if generation else self.source.state_dict()
            model.load_state_dict(before)
        return model

    def callbacks(self) -> Sequence[Callback]:
        """Those that compare generations say nothing about domains."""
        return [DryRun(self)]

    def begin(self, state: RunState) -> int:
        """Let the model before label the domain."""
        generation = state.clock.generation
        rows = self.domains[generation]
        teacher = self.restored_model(state, generation - 1) if generation else copy.deepcopy(self.source)
        logits = predict_rows(teacher.to(state.device), self.whole, rows, self.whole.head, state.device)
        state.passes += Passes(teacher=len(rows))
        certain = torch.softmax(logits, -1).amax(-1).argsort(descending=True, stable=True)
        chosen = certain[: max(1, round((1 - self.leave_out) * len(rows)))].sort().values
        y = self.whole.y.clone()
        y[rows[chosen]] = logits[chosen].argmax(-1)
        labels = y[rows[chosen]].unique()
        if len(labels) == 1 and not self.collapsed:
            self.collapsed = True
            name = self.whole.classes[int(labels)]
            state.warn(
                f"{self.title(generation)}: all {len(chosen)} pseudo-labels are '{name}', and nothing else is learnt"
            )
        self.data = sealed(replace(self.whole, y=y, labelled=rows[chosen], unlabelled=rows[:0]))
        return super().begin(state)


def fit_adapt(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    source: nn.Module,
    domains: Sequence[Tensor],
    *,
    leave_out: float = LEAVE_OUT,
    warm: bool = False,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
    warn: Callable[[str], None] = print,
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Result:
    """Adapt a network to unlabelled domains in turn (gradual self-training); no label of theirs is read.

    Args:
        build, data, method: as of `fit`; of the data only validation and test rows keep labels.
        source, domains, leave_out, warm: as of `AdaptTask`.
        out, resume, device, progress, warn, tell: as of `fit`.
        settings: the fields of `Settings`; epochs and steps are those of a domain.

    Returns:
        As of `fit`; a generation is a domain.

    Source: Kumar, Ma and Liang, Understanding Self-Training for Gradual Domain Adaptation, ICML 2020. Departs: a new
    network for each domain by default, which gains more here (docs/streams.md).
    """
    method = for_task(replace(method, generations=max(1, len(domains))), data.task)
    check_method(method, data)
    task = AdaptTask(build, data, method, source, domains, leave_out, warm)
    return _drive(
        task, method, settings, out=out, resume=resume, device=device, progress=progress, warn=warn, tell=tell
    )


def score_classes(
    trained: Result, build: Callable[[], nn.Module], data: Data, classes: Sequence[Tensor], seed: int
) -> dict[str, Any]:
    """`score_tasks` of a class-incremental stream, whose tasks are these classes."""
    return score_tasks(trained, build, data, StreamTasks(rows_of_tasks(data, classes, data.test), classes), seed)


def score_tasks(
    trained: Result, build: Callable[[], nn.Module], data: Data, tested: StreamTasks, seed: int
) -> dict[str, Any]:
    """The scores of a stream on the test rows of each task; a training of one generation has no forgetting.

    Returns:
        Those of `stream_scores`; where tasks have classes of their own, ``task_incremental``: the accuracy among the
        classes of each row's task; ``matrix``: the accuracy on each task (columns) after each task (rows).
    """
    model = copy.deepcopy(trained.model)

    def logits() -> list[Tensor]:
        return [task_outputs(model, data, ids) for ids in tested.rows]

    def accuracies(outputs: Sequence[Tensor], among: bool = False) -> list[float]:
        triples = zip(outputs, *tested, strict=True)
        return [task_accuracy(z, data.y[ids], task if among else None) for z, ids, task in triples]

    matrix, inside = list[list[float]](), list[list[float]]()
    for generation in trained.generations:
        model.load_state_dict(generation.weights)
        outputs = logits()
        matrix.append(accuracies(outputs))
        inside.append(accuracies(outputs, among=True))
    scores = {"accuracy": sum(matrix[-1]) / len(matrix[-1])}
    if len(matrix) > 1:
        torch.manual_seed(rng.seed(seed, "init", 0))
        model.load_state_dict(build().state_dict())
        untrained = torch.tensor(accuracies(logits(), among=True))
        scores = stream_scores(torch.tensor(matrix), untrained, torch.tensor(inside))
    if tested.scenario != DOMAINS:
        scores["task_incremental"] = sum(inside[-1]) / len(inside[-1])
    return {**scores, "matrix": matrix}
