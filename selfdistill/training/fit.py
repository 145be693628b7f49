"""`fit`: train a method on data, from the first step or from where a run was cut."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method, Objective, untaught
from ..core.regression import for_task
from ..core.step import Batch, Passes, TrainingClock
from ..data.dataset import Data, sealed, with_clean_rows
from ..errors import CheckpointError, DataError
from ..io.expressions import one_line
from ..methods.validate import check_method
from . import budget
from .settings import Settings
from .state import GenerationResult
from .supervised import DryRun, NetworkTask
from .task import FunctionCallback
from .trainer import Progress, Stopped, Trainer

__all__ = ["GenerationResult", "Result", "Settings", "Stopped", "fit", "try_batch"]


@dataclass
class Result:
    """The result of `fit`: the best audited generation's model (eval mode), every generation, and the cost.

    ``final_generation`` is that generation's number; without an audit it is the last one.
    """

    model: nn.Module
    generations: list[GenerationResult]
    steps: int
    seconds: float
    history: list[dict[str, Any]] = field(repr=False)
    final_generation: int = 0
    passes: Passes = Passes()
    objective: Objective | None = field(default=None, repr=False)  # of the last generation, with its teachers


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
    """Turn Ctrl-C and SIGTERM into a wish to stop after the step under way; the same one again ends the run at once."""
    signalled, seen = threading.Event(), set[int]()
    if threading.current_thread() is not threading.main_thread():
        yield signalled
        return
    handlers: dict[int, Any] = {}

    def handle(number: int, frame: object) -> None:
        if number in seen:  # a comparison passes a Ctrl-C on as SIGTERM, and the terminal may have sent it too
            signal.signal(number, handlers[number])
            signal.raise_signal(number)
        seen.add(number)
        signalled.set()

    for asking in (signal.SIGINT, signal.SIGTERM):
        handlers[asking] = signal.signal(asking, handle)
    try:
        yield signalled
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def choose_device(device: torch.device | str | None) -> torch.device:
    """The requested device, or by default this process's CUDA device if there is one, else the CPU.

    Raises:
        DataError: there is no such device.
    """
    try:
        if device is None:
            local = int(os.environ.get("LOCAL_RANK", "0"))
            return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
        torch.ones(1, device=device).item()  # a device without numbers, such as "meta", has none to give
        return torch.device(device)
    except Exception as error:  # the back ends of torch raise all kinds
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
        raise CheckpointError(f"{folder} holds a run already; resume it by resume=True or give another folder")
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
    watch: Callable[[TrainingClock, list[Batch], float], None] | None = None,
    progress: Callable[[TrainingClock, dict[str, float]], None] | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    tell: Callable[[str], None] | None = None,
    epochs: int = 30,
    steps: int | None = None,
    batch_size: int = 64,
    accumulate: int = 1,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    clip: float | None = None,
    precision: str = "float32",
    compile: bool = False,
    parallel: str = "ddp",
    seed: int = 0,
    audit: str = "safe",
    audit_level: float = 0.05,
    audit_delta: float | None = None,
    audit_measure: str | None = None,
    audit_epochs: int | None = None,
    patience: int | None = None,
    vitals: bool = True,
    cache: bool = True,
    memory_dtype: str = "float32",
    memory_top: int = 0,
    layer_decay: float = 1.0,
    save_seconds: float = 30.0,
    save_steps: int | None = None,
) -> Result:
    """Train a method on data.

    Args:
        build: a factory of fresh models; it is called once a generation.
        data: see `selfdistill.load` and `selfdistill.from_tensors`.
        method: the recipe.
        out: folder for checkpoints, metrics and generations; nothing is written without it.
        resume: go on from the newest intact checkpoint in ``out``, if there is one.
        external: the teacher of `distil`, where the recipe names none.
        device: where to train; a CUDA device by default, if there is one.
        watch: called after every step with its clock, micro-batches and loss.
        progress: called a few times a second with the clock and the step's figures.
        warn: called with each line about trouble that the run survives.
        tell: called with the decisions of the audit and the drift of generations, in words.

    The other arguments are the fields of `Settings`.

    Returns:
        The model of the best audited generation, and what all of them took.

    Raises:
        SpaceError: the method does not fit the model or the data (before the first step).
        NotFiniteError: the loss stopped being a number.
        CheckpointError: ``out`` holds another run, or nothing intact to go on from.
        Stopped: asked to stop by SIGINT or SIGTERM; the run is saved and resumes.
    """
    arguments = locals()
    settings = Settings(**{field.name: arguments[field.name] for field in fields(Settings)})
    device = choose_device(device)
    join(device)
    folder = run_folder(out, resume)
    method, data = _checked(method, data, seed)
    if distributed.size() > 1 and parallel == "fsdp" and untaught(method):
        raise DataError("the classifier of a method without labels is fitted whole; train under DDP: leave --parallel")
    trainer = Trainer(
        NetworkTask(build, sealed(data), method, external),
        method,
        settings,
        folder=folder,
        device=device,
        callbacks=[FunctionCallback(watch)] if watch else [],
        warn=warn,
        tell=tell,
    )
    return drive(trainer, resume, progress)


def _checked(method: Method, data: Data, seed: int = 0) -> tuple[Method, Data]:
    """The method for the data's task, and the data with its clean rows, which fit each other."""
    method = for_task(method, data.task)
    data = with_clean_rows(data, method.views, seed)
    check_method(method, data)
    return method, data


def try_batch(
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    device: torch.device | str | None = None,
    **settings: Any,
) -> None:
    """Check the model, the data and the method together on one batch, as `fit` does before its first step.

    Args:
        build, data, method, device: as of `fit`.
        settings: fields of `Settings`.

    Raises:
        SpaceError: the method does not fit the model or the data.
        RecipeError: the model or a teacher fails on these rows.
    """
    method, data = _checked(method, data)
    task = NetworkTask(build, sealed(data), method)
    trainer = Trainer(task, method, Settings(**settings), device=choose_device(device))
    trainer.begin(0)
    DryRun(task).before_training(trainer.state)


def step_cost(
    meter: budget.Meter,
    build: Callable[..., nn.Module],
    data: Data,
    method: Method,
    device: torch.device | str | None = None,
    **settings: Any,
) -> budget.Expense:
    """The cost of a step of a training, its share of an evaluation included, from a few steps that are discarded.

    Args:
        meter: of the run.
        build, data, method, device: as of `fit`.
        settings: fields of `Settings`.

    Returns:
        The cost.
    """
    method = for_task(method, data.task)
    trainer = Trainer(
        NetworkTask(build, sealed(with_clean_rows(data, method.views)), method),
        method,
        Settings(**settings),
        device=choose_device(device),
        warn=lambda line: None,
    )
    trainer.begin(0)
    until = budget.Expense(*(spent + left for spent, left in zip(meter.spent, meter.left(), strict=True)))
    step, evaluation = trainer.measure(budget.Allowance(meter, "baseline", "", until, budget.Expense()))
    return step._replace(seconds=step.seconds + evaluation / trainer.state.clock.per_epoch)


def time_step(build: Callable[[], nn.Module], x: Tensor, device: torch.device | str | None = None) -> float:
    """The seconds of a plain step on a batch ``x``, about: the second of two, of a model that is discarded.

    0 where the model cannot be run so; whatever is wrong with it is told by the checks before training.
    """
    place = choose_device(device)
    try:
        with torch.random.fork_rng(devices=[]):
            model, x = build().to(place).train(), x.to(place)
            for _ in range(2):
                begun = time.monotonic()
                outputs = model(x)
                parts = outputs.values() if isinstance(outputs, dict) else [outputs]
                sum(part.float().mean() for part in parts).backward()
                if x.is_cuda:
                    torch.cuda.synchronize()
            return time.monotonic() - begun
    except Exception:  # another's code may raise anything
        return 0.0


def drive(trainer: Trainer, resume: bool, progress: Progress | None = None) -> Result:
    """Train to the end, from the newest checkpoint if ``resume`` and there is one; raises as `fit`."""
    with _stop_on_signal() as stop:
        trainer.run(stop, resume=resume, progress=progress)
    state = trainer.state
    return Result(
        trainer.final_model(),
        state.generations,
        state.steps_done,
        state.seconds,
        state.history,
        state.final_generation,
        state.passes,
        state.objective,
    )
