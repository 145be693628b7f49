"""The files of a run: checkpoints and the weights of generations, written and restored.

Everything is written so that a kill between any two instructions leaves a state to go on from: checkpoints appear by
one rename, the metrics log may only be longer than the checkpoint knows, and the weights of a generation are a pure
function of the checkpoint before them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import distributed
from ..core.step import Passes
from ..core.vitals import TermHealth
from ..errors import CheckpointError, NotFiniteError
from ..io import checkpoint, tensors
from ..io.schema import refuse_misfits
from ..io.tensors import digest
from .state import BestEpoch, Evaluation, GenerationResult, RunState, cannot_write
from .task import Task, new_model

# how often to save and how to spread the work do not change what is computed (but for the order of additions)
_FREE = ("save_seconds", "save_steps", "parallel", "compile", "vitals")


def identity(state: RunState, task: Task) -> dict[str, Any]:
    """The settings that must not change between a run and its resumption."""
    settings = {name: value for name, value in asdict(state.settings).items() if name not in _FREE}
    method = re.sub(r" at 0x[0-9a-f]+", "", repr(state.method))  # functions without a name have addresses
    if not state.blueprint:
        model = new_model(task, state, 0)
        shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
        state.blueprint = hashlib.sha256(f"{model!r}{shapes}".encode()).hexdigest()[:12]
    return {"method": method, "model": state.blueprint, **task.identity, **settings}


def _refuse_another(state: RunState, current: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    changed = [f"{k} {saved.get(k)!r}, now {v!r}" for k, v in current.items() if saved.get(k) != v]
    if changed:
        raise CheckpointError(f"{state.folder} holds another run ({'; '.join(changed)}); give another --out")


def _per_rank(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This epoch's sums of every process, (processes, 4): all must call it."""
    return {name: distributed.gather(row.unsqueeze(0)) for name, row in sums.items()}


def _process_sums(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """This process's sums again; with another number of processes the first one takes them all."""
    if all(len(rows) == distributed.size() for rows in sums.values()):
        return {name: rows[distributed.rank()].to(device) for name, rows in sums.items()}
    factor = 1.0 if distributed.rank() == 0 else 0.0
    return {name: factor * rows.sum(0).to(device) for name, rows in sums.items()}


# ---- generations -------------------------------------------------------------------------------------


def _generation_file(folder: Path, index: int, name: str) -> Path:
    return folder / "generations" / f"{index}-{name}.safetensors"


_FILES = ("final", "best", "pseudo-labels")


def _files(result: GenerationResult) -> dict[str, dict[str, Tensor]]:
    """The tensors of a generation by the names of their files; without pseudo-labels there is no file of them."""
    files = dict(zip(_FILES, (result.weights, result.best, result.pseudo_labels), strict=True))
    return {name: weights for name, weights in files.items() if weights}


def save_generation(state: RunState) -> None:
    """Write the weights of the generation that ended last, and the pseudo-labels that the next one inherits."""
    if state.folder is None or distributed.rank():
        return
    index = len(state.generations) - 1
    try:
        (state.folder / "generations").mkdir(exist_ok=True)
    except OSError as error:
        raise cannot_write(state.folder / "generations", error) from error
    for name, weights in _files(state.generations[-1]).items():
        tensors.write_tensors(_generation_file(state.folder, index, name), weights)


_ROW = ("start", "best_epoch", "audit", "losses", "guard", "decision", "drift")  # the fields that are no weights


def _row(result: GenerationResult) -> dict[str, Any]:
    """A generation as a checkpoint knows it: its weights are in files of their own, and here their digests."""
    fields = vars(result)
    return {name: fields[name] for name in _ROW} | {
        "files": {name: digest(weights) for name, weights in _files(result).items()}
    }


def _read_generation(folder: Path, index: int, row: Mapping[str, Any]) -> GenerationResult:
    weights: dict[str, dict[str, Tensor]] = {}
    for name, expected in row["files"].items():
        if name not in _FILES:
            raise ValueError(f"a generation has no file {name!r}")
        path = _generation_file(folder, index, name)
        weights[name] = tensors.read_tensors(path)
        if digest(weights[name]) != expected:
            raise CheckpointError(f"{path} is not the one this run wrote; start again in a new --out")
    return GenerationResult(
        weights=weights.get("final", {}),
        best=weights.get("best", {}),
        pseudo_labels=weights.get("pseudo-labels", {}),
        **{name: row[name] for name in _ROW},
    )


# ---- checkpoints -------------------------------------------------------------------------------------


def check_space(state: RunState) -> None:
    """Refuse a disk that cannot hold the checkpoints of a run, before it is trained.

    Raises:
        CheckpointError: less space is free than the next checkpoint takes.
    """
    if state.folder is None or distributed.rank():
        return
    weights = sum(value.nbytes for value in state.model.state_dict().values() if isinstance(value, Tensor))
    trained = sum(weight.nbytes for weight in state.model.parameters() if weight.requires_grad)
    memories = sum(value.nbytes for value in state.objective.state_dict().values() if isinstance(value, Tensor))
    needed = 2 * weights + 2 * trained + memories  # the weights now and at their best, the optimizer's two moments
    free = shutil.disk_usage(state.folder).free
    if needed > free:
        raise CheckpointError(
            f"{state.folder}: a checkpoint takes about {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free; free "
            "some space, or give another --out"
        )


def save(state: RunState, task: Task) -> None:
    """A checkpoint of everything; rank 0 writes, all take part.

    Raises:
        NotFiniteError: a weight is not a number; the last checkpoint stays.
    """
    components = {
        "student": distributed.gathered(state.model.state_dict()),
        "objective": distributed.gathered(state.objective.state_dict()),
        "optimizer": distributed.gathered(state.optimizer.state_dict()),
        "scheduler": state.scheduler.state_dict(),
        "best": vars(state.best),
        "rollback": state.rollback,
        "task": {"start": state.task_start, "now": task.state_dict()},
        "progress": {
            "run": identity(state, task),
            "generation": state.clock.generation,
            "start": state.start,
            "sums": _per_rank(state.sums),
            "scaler": state.scaler.state_dict(),
            "log": state.log.to_tensor() if state.log else None,
            "steps_done": state.steps_done,
            "elapsed": state.seconds,
            "passes": list(state.passes),
            "baseline": state.baseline.to_dict() if state.baseline else None,
            "pulse": {name: asdict(pulse) for name, pulse in state.objective.pulse.items()},
            "done": [_row(result) for result in state.generations],
        },
    }
    trained = {name for name, _ in state.model.named_parameters()}  # a buffer may be infinite: a causal mask
    weights = (value for name, value in components["student"].items() if name in trained)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise NotFiniteError(
            f"a weight is nan or infinite at step {state.clock.step}; nothing was saved over the last "
            "checkpoint; lower --lr or set --clip 1.0"
        )
    if state.folder and state.log and distributed.rank() == 0:
        state.log.flush()
        checkpoint.write(state.folder / "checkpoints", components)
    state.saved_at = time.monotonic()


def restore(state: RunState, task: Task, begin: Callable[[int], None]) -> bool:
    """Go to the newest intact checkpoint; False if the run never saved one.

    Args:
        state: of the run that has just been started; it is filled.
        task: takes its own state back.
        begin: begins a generation of this number as a fresh run does, before what was saved takes its place.

    Raises:
        CheckpointError: none is intact, something it refers to is gone, or it belongs to another run.
    """
    folder, log = state.folder, state.log
    if folder is None or log is None:
        return False
    warn = state.warn if distributed.rank() == 0 else lambda line: None
    newest = checkpoint.newest(folder / "checkpoints", warn=warn)
    if newest is None:
        log.path.unlink(missing_ok=True)
        return False
    saved = checkpoint.read(newest)
    remedy = "start again in a new --out"
    current = identity(state, task)
    with refuse_misfits(newest, remedy):
        progress = saved["progress"]
        _refuse_another(state, current, progress["run"])
        state.generations = [_read_generation(folder, index, row) for index, row in enumerate(progress["done"])]
        state.baseline = Evaluation.from_dict(progress["baseline"]) if progress["baseline"] else None
        task.load_state_dict(saved["task"]["start"])
        generation = int(progress["generation"])
    begin(generation)
    with refuse_misfits(newest, remedy):
        _fill(state, saved)
        state.history = log.restore(progress["log"].numpy().tobytes(), warn)
        task.load_state_dict(saved["task"]["now"])
    task.resume(state)
    return True


def _fill(state: RunState, saved: Mapping[str, Any]) -> None:
    """Put what was saved in the place of a generation that has just begun."""
    progress = saved["progress"]
    state.start = progress["start"]
    distributed.load_module(state.model, saved["student"])
    distributed.load_module(state.objective, saved["objective"])
    distributed.load_optimizer(state.optimizer, saved["optimizer"])
    state.scheduler.load_state_dict(saved["scheduler"])
    state.scaler.load_state_dict(progress["scaler"])
    state.best, state.rollback = BestEpoch(**saved["best"]), saved["rollback"]
    state.sums = _process_sums(progress["sums"], state.device)
    state.previous_seconds, state.steps_done = progress["elapsed"], progress["steps_done"]
    state.passes = Passes(*progress["passes"])
    state.objective.pulse.update({name: TermHealth(**pulse) for name, pulse in progress["pulse"].items()})
