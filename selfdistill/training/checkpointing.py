"""What a run leaves on disk, and the way back from it: checkpoints, the metrics log, the weights of generations.

Everything is written so that a kill between any two instructions leaves a state to go on from: checkpoints appear by
one rename, the log may only be longer than the checkpoint knows, and the weights of a generation are a pure function
of the checkpoint before them.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import distributed
from ..core.step import Passes
from ..core.vitals import TermHealth
from ..errors import CheckpointError, NotFiniteError
from ..io import checkpoint, tensors
from ..io.tensors import digest
from .generations import Trained

if TYPE_CHECKING:
    from .trainer import Trainer

# how often to save and how to spread the work do not change what is computed (but for the order of additions)
_FREE = ("save_seconds", "save_steps", "parallel", "compile", "vitals")


def copied(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole tensors of their own on the CPU; under FSDP all processes must call it."""
    return {name: value.detach().to("cpu", copy=True) for name, value in distributed.gathered(dict(weights)).items()}


def _cannot_write(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be written ({error.strerror}); free some space or check its permissions, and resume"
    )


class Log:
    """``metrics.jsonl``: one line an epoch. Rank 0 writes it; a resumed run cuts it to what the checkpoint knows."""

    def __init__(self, folder: Path) -> None:
        self.path, self.size = folder / "metrics.jsonl", 0

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        if distributed.rank():
            return
        try:
            with self.path.open("a") as log:
                log.write(json.dumps(line, sort_keys=True) + "\n")
                log.flush()
                self.size = log.tell()
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def flush(self) -> None:
        """Bring the lines to the disk: a checkpoint must never know of more lines than the disk has."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as log:
                os.fsync(log.fileno())
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def cut(self, size: int) -> list[dict[str, Any]]:
        """Drop what was written after the checkpoint, in one system call; the lines that stay."""
        text = self.path.read_bytes() if self.path.exists() else b""
        if len(text) < size:
            raise CheckpointError(
                f"{self.path} has {len(text)} bytes and the checkpoint knows of {size}; it was cut; "
                "start again in a new --out"
            )
        if distributed.rank() == 0 and len(text) > size:
            os.truncate(self.path, size)
        self.size = size
        return [json.loads(line) for line in text[:size].decode().splitlines()]


def identity(trainer: Trainer) -> dict[str, Any]:
    """What must not change between a run and its resumption."""
    settings = {name: value for name, value in asdict(trainer.settings).items() if name not in _FREE}
    method = re.sub(r" at 0x[0-9a-f]+", "", repr(trainer.method))  # functions without a name have addresses
    data = trainer.data
    shown = {"data": data.fingerprint, "augment": f"{data.augment}{', flips' if data.flips else ''}"}
    return {"method": method, "model": trainer.blueprint, **shown, **settings}


def _refuse_another(trainer: Trainer, saved: Mapping[str, Any]) -> None:
    now, saved = identity(trainer), {"cache": True, **saved}  # which older checkpoints do not say
    changed = [f"{k} {saved.get(k)!r}, now {v!r}" for k, v in now.items() if saved.get(k) != v]
    if changed:
        raise CheckpointError(f"{trainer.folder} holds another run ({'; '.join(changed)}); give another --out")


def _per_rank(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """This epoch's sums of every process, (processes, 4): all must call it."""
    return {name: distributed.gather(row.unsqueeze(0)) for name, row in sums.items()}


def _own(sums: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """This process's sums again; with another number of processes the first one takes them all."""
    if all(len(rows) == distributed.size() for rows in sums.values()):
        return {name: rows[distributed.rank()].to(device) for name, rows in sums.items()}
    mine = 1.0 if distributed.rank() == 0 else 0.0
    return {name: mine * rows.sum(0).to(device) for name, rows in sums.items()}


def _generation_file(folder: Path, index: int, name: str) -> Path:
    return folder / "generations" / f"{index}-{name}.safetensors"


def keep_generation(trainer: Trainer) -> None:
    """Write the weights of the generation that ended last, and what it hands on."""
    if trainer.folder is None or distributed.rank():
        return
    index, done = len(trainer.done) - 1, trainer.done[-1]
    try:
        (trainer.folder / "generations").mkdir(exist_ok=True)
    except OSError as error:
        raise _cannot_write(trainer.folder / "generations", error) from error
    for name, state in (("final", done.weights), ("best", done.best), ("carried", done.carried)):
        if state:
            tensors.write_tensors(_generation_file(trainer.folder, index, name), state)


def _read_generation(folder: Path, index: int, row: Mapping[str, Any]) -> Trained:
    states: dict[str, dict[str, Tensor]] = {"carried": {}}
    for name in ("final", "best", *(["carried"] if row.get("carried") else [])):
        path = _generation_file(folder, index, name)
        states[name] = tensors.read_tensors(path)
        if digest(states[name]) != row[name]:
            raise CheckpointError(f"{path} is not the one this run wrote; start again in a new --out")
    return Trained(
        row["start"], states["final"], states["best"], row["best_epoch"], row["audit"], row["losses"], row["decision"],
        states["carried"], row.get("drift", {}),
    )  # fmt: skip


def save(trainer: Trainer) -> None:
    """A checkpoint of everything; rank 0 writes, all take part.

    Raises:
        NotFiniteError: a weight is not a number; the last checkpoint stays.
    """
    components = {
        "student": distributed.gathered(trainer.model.state_dict()),
        "objective": distributed.gathered(trainer.objective.state_dict()),
        "optimizer": distributed.gathered(trainer.optimizer.state_dict()),
        "scheduler": trainer.scheduler.state_dict(),
        "best": trainer.best,
        "kept": trainer.kept,
        "progress": {
            "run": identity(trainer),
            "generation": trainer.objective.clock.generation,
            "start": trainer.start,
            "sums": _per_rank(trainer.sums),
            "scaler": trainer.scaler.state_dict(),
            "log_bytes": trainer.log.size if trainer.log else 0,
            "steps_done": trainer.steps_done,
            "elapsed": trainer.seconds(),
            "passes": list(trainer.passes),
            "extra": trainer.extra(),
            "pulse": {name: asdict(pulse) for name, pulse in trainer.objective.pulse.items()},
            "done": [
                {
                    "start": t.start,
                    "best_epoch": t.best_epoch,
                    "audit": t.audit,
                    "losses": t.losses,
                    "decision": t.decision,
                    "drift": t.drift,
                    "final": digest(t.weights),
                    "best": digest(t.best),
                    "carried": digest(t.carried) if t.carried else None,
                }
                for t in trainer.done
            ],
        },
    }
    trained = {name for name, _ in trainer.model.named_parameters()}  # a buffer may be infinite: a causal mask
    weights = (value for name, value in components["student"].items() if name in trained)
    if not all(bool(torch.isfinite(weight).all()) for weight in weights):
        raise NotFiniteError(
            f"a weight is nan or infinite at step {trainer.objective.clock.step}; nothing was saved over the last "
            "checkpoint; lower --lr or set --clip 1.0"
        )
    if trainer.folder and trainer.log and distributed.rank() == 0:
        trainer.log.flush()
        checkpoint.write(trainer.folder / "checkpoints", components)
    trainer.saved_at = time.monotonic()


def restore(trainer: Trainer) -> bool:
    """Go to the newest intact checkpoint; False if the run never saved one.

    Raises:
        CheckpointError: none is intact, something it refers to is gone, or it belongs to another run.
    """
    folder, log = trainer.folder, trainer.log
    assert folder is not None
    assert log is not None
    warn = trainer.warn if distributed.rank() == 0 else lambda line: None
    found = checkpoint.newest(folder / "checkpoints", warn=warn)
    if found is None:
        log.path.unlink(missing_ok=True)
        return False
    saved = checkpoint.read(found)
    progress = saved["progress"]
    _refuse_another(trainer, progress["run"])
    trainer.done = [_read_generation(folder, index, row) for index, row in enumerate(progress["done"])]
    trainer.restore_extra(progress.get("extra", {}))
    trainer.begin(progress["generation"])
    trainer.start = progress["start"]
    distributed.load_module(trainer.model, saved["student"])
    distributed.load_module(trainer.objective, saved["objective"])
    distributed.load_optimizer(trainer.optimizer, saved["optimizer"])
    trainer.scheduler.load_state_dict(saved["scheduler"])
    trainer.kept = saved["kept"]
    trainer.best, trainer.sums = saved["best"], _own(progress["sums"], trainer.device)
    trainer.scaler.load_state_dict(progress["scaler"])
    trainer.sample(progress["generation"])
    trainer.history = log.cut(progress["log_bytes"])
    trainer.elapsed, trainer.steps_done = progress["elapsed"], progress["steps_done"]
    trainer.passes = Passes(*progress["passes"])
    trainer.objective.pulse.update({name: TermHealth(**pulse) for name, pulse in progress["pulse"].items()})
    return True
