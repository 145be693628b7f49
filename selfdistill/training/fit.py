"""The loop: generations > epochs > steps > micro-batches.

::

    for each generation:  a fresh model from build(), a fresh objective, the pool labelled by the last generation
        for each step:    rows -> views -> tallies over micro-batches and ranks -> backward -> clip -> optimizer
                          -> objective.update()
        after each epoch: the audit split is scored, a line goes to metrics.jsonl
    a checkpoint whenever enough time has passed, at the start and end of a generation, and when asked to stop
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core import distributed, objective
from ..core.objective import Method, Objective
from ..core.regression import for_task
from ..core.step import Clock, Passes
from ..data.dataset import Data
from ..data.sealed import sealed
from ..errors import CheckpointError, DataError
from ..evaluation import linear_probe
from ..evaluation.audit import whole_classes
from ..io.expressions import one_line
from ..methods.validate import check_method
from . import checkpointing, drift, generations
from .generations import Trained
from .settings import Settings
from .trainer import Trainer, Watch

__all__ = ["Result", "Settings", "Stopped", "Trained", "fit"]


@dataclass
class Result:
    """What `fit` returns: the best audited generation's model (eval mode), every generation, and what it took.

    ``product`` is that generation's number; without an audit it is the last one.
    """

    model: nn.Module
    generations: list[Trained]
    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)
    product: int = 0
    passes: Passes = Passes()
    objective: Objective | None = field(default=None, repr=False)  # of the last generation, with its teachers


class Stopped(KeyboardInterrupt):
    """The run was asked to stop; everything up to the last step is saved."""


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a wish to stop after the step under way; a second one ends the run at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            signal.signal(number, before[number])
            signal.raise_signal(number)
        asked.set()

    for asking in (signal.SIGINT, signal.SIGTERM):
        before[asking] = signal.signal(asking, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The device asked for; left open, this process's CUDA device if there is one, else the CPU.

    Raises:
        DataError: there is no such device.
    """
    try:
        if device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        torch.zeros(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"device {str(device)!r} cannot be used ({one_line(error)}); leave --device out") from error


def join(device: torch.device) -> None:
    """Under torchrun, join the other processes once: before it every process takes itself for the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def run_folder(out: Path | str | None, resume: bool) -> Path | None:
    """The folder of a training, made; None where nothing is to be written.

    Raises:
        CheckpointError: a new run among an older one's files would be taken for it when it is resumed.
    """
    if out is None:
        return None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if not resume and ((folder / "metrics.jsonl").exists() or any((folder / "checkpoints").glob("*"))):
        raise CheckpointError(f"{folder} holds a run already; go on with it by resume=True or give another folder")
    return folder


def fit(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    external: nn.Module | None = None,
    device: torch.device | str | None = None,
    watch: Watch | None = None,
    progress: Callable[[Clock, dict[str, float]], None] | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    tell: Callable[[str], None] | None = None,
    **settings: Any,
) -> Result:
    """Train a method on data.

    Args:
        build: a factory of fresh models; it is called once a generation.
        data: see `tasks.data.load` and `tasks.data.from_tensors`.
        method: the recipe.
        out: folder for checkpoints, metrics and generations; nothing is written without it.
        resume: go on from the newest intact checkpoint in ``out``, if there is one.
        external: the teacher of `distil`, where the recipe names none.
        device: where to train; a CUDA device by default, if there is one.
        watch: called after every step with its clock, micro-batches and loss.
        progress: called a few times a second with the clock and the step's figures.
        warn: called with each line about trouble that the run survives.
        tell: called with the decisions of the audit and the drift of generations, in words.
        settings: fields of `Settings`.

    Raises:
        SpaceError: the method does not fit the model or the data (before the first step).
        NotFiniteError: the loss stopped being a number.
        CheckpointError: ``out`` holds another run, or nothing intact to go on from.
        Stopped: asked to stop by SIGINT or SIGTERM; the run is saved and resumes.
    """
    device = choose_device(device)
    join(device)
    folder = run_folder(out, resume)
    method = for_task(method, data.task)
    check_method(method, data)
    if distributed.size() > 1 and settings.get("parallel") == "fsdp" and objective.untaught(method):
        raise DataError("the classifier of a method without labels is fitted whole; train under DDP: leave --parallel")
    trainer = Trainer(build, sealed(data), method, Settings(**settings), folder, external, device, watch, warn, tell)
    return drive(trainer, resume, progress)


def drive(trainer: Trainer, resume: bool, progress: Callable[[Clock, dict[str, float]], None] | None = None) -> Result:
    """Train to the end, from the newest checkpoint if ``resume`` and there is one; raises as `fit`."""
    with _stop_on_signal() as asked:
        if not (resume and trainer.folder and checkpointing.restore(trainer)):
            _begin(trainer)
        _train(trainer, asked, progress)
    return Result(
        trainer.whole(), trainer.done, trainer.steps_done, trainer.seconds(), trainer.history, trainer.product(),
        trainer.passes, trainer.objective,
    )  # fmt: skip


def _begin(trainer: Trainer) -> None:
    """The first generation: a dry run of it, and what is to be said before."""
    data, method = trainer.data, trainer.method
    trainer.begin(0)
    trainer.rehearse()
    if (method.generations > 1 or trainer.settings.audit_epochs) and trainer.audit.policy != "off":
        if len(data.audit) and data.task == "classify":
            whole_classes(data.y[data.audit], data.classes, data.name)
        trainer.say(trainer.audit.foreword(len(data.audit), len(data.labelled)))
    if exhausted := generations.foreword(method, len(data.unlabelled)):
        trainer.say(exhausted)


def _train(
    trainer: Trainer, asked: threading.Event, progress: Callable[[Clock, dict[str, float]], None] | None
) -> None:
    shown = 0.0
    while True:
        clock = trainer.objective.clock
        if clock.step >= clock.length:
            checkpointing.save(trainer)
            trainer.end_generation()
            checkpointing.keep_generation(trainer)
            if clock.generation:
                trainer.say(trainer.done[-1].decision["why"])
            drift.watch(trainer)
            if clock.generation + 1 >= trainer.method.generations:
                return
            if trainer.exhausted():
                trainer.say(f"ended after generation {clock.generation}: the audit sees no further gain")
                return
            trainer.begin(clock.generation + 1)
            checkpointing.save(trainer)
            continue
        loss = trainer.step()
        if trainer.epoch_ended():
            if objective.untaught(trainer.method):
                trainer.passes += Passes(evaluation=linear_probe.settle(trainer.model, trainer.data))
            trainer.end_epoch(clock)
        if progress and (time.monotonic() - shown > 0.2 or trainer.epoch_ended()):
            shown = time.monotonic()
            progress(clock, {"loss": loss, **trainer.figures()})
        stop, due = _agree(asked.is_set(), trainer.due(), trainer.device)
        if stop or due:
            checkpointing.save(trainer)
        if stop:
            raise Stopped(f"stopped after step {clock.step + 1} of generation {clock.generation}")


def _agree(stop: bool, due: bool, device: torch.device) -> tuple[bool, bool]:
    """What any process wants, all do: saving and stopping take every one of them."""
    if distributed.size() == 1:
        return stop, due
    wishes: Tensor = distributed.add(torch.tensor([float(stop), float(due)], device=device))
    return bool(wishes[0]), bool(wishes[1])
