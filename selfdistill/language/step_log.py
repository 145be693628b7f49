"""What each step of a language model was like: ``steps.jsonl``, a line a step, beside the lines of the epochs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core import distributed
from ..core.step import Batch, TrainingClock
from ..io.record_stream import emit
from ..io.run_record import STEPS
from ..training.state import RunState, cannot_write
from ..training.task import Callback


class StepLog(Callback):
    """Writes a line a step: generation, epoch and step (from 1), loss, the loss of each term, tokens that were learnt
    and tokens that were read, learning rate, norm of the gradient before it is clipped, and seconds of training.

    The first process writes it, of all processes. A run that is cut goes on with the lines up to its checkpoint; all
    but the seconds are those of a run that was not.

    Attributes:
        read: tokens that the student has read in all steps, prompts included.
    """

    def __init__(self) -> None:
        self.read = 0

    def before_training(self, state: RunState) -> None:
        path = _path(state)
        if path is not None:
            path.unlink(missing_ok=True)  # of a run that never came to a checkpoint

    def on_step_end(self, state: RunState, clock: TrainingClock, batches: Sequence[Batch], loss: float) -> None:
        tokens = [torch.tensor(0.0), torch.tensor(0.0)]
        for batch in batches:
            tokens[0] += batch["x"].extra["mask"].sum().cpu()
            tokens[1] += (batch["x"].x[:, 1] > 0).sum().cpu()
        learnt, read = distributed.add(torch.stack(tokens).to(state.device)).tolist()
        sums = {name: distributed.add(row).tolist() for name, row in state.last.items()}
        norm = None if state.gradient_norm is None else float(distributed.gathered(state.gradient_norm))
        self.read += int(read)
        path = _path(state)
        if path is None or distributed.rank():
            return
        entry = {
            "generation": clock.generation,
            "epoch": clock.epoch,
            "step": clock.step + 1,
            "loss": sums[""][0],
            "terms": {name: row[0] / row[1] if row[1] else None for name, row in sums.items() if name},
            "tokens": int(learnt),
            "read": int(read),
            "lr": state.lr,
            "gradient_norm": norm,
            "seconds": round(state.seconds, 3),
        }
        try:
            with path.open("ab") as log:
                log.write((json.dumps(entry, sort_keys=True) + "\n").encode())
        except OSError as error:
            raise cannot_write(path, error) from error
        emit(path, entry)

    def restore(self, state: RunState) -> None:
        """Drop the lines of the steps that a resumed run takes again, and tell where earlier ones are not there.

        Args:
            state: As the checkpoint has it.
        """
        path = _path(state)
        if path is None or distributed.rank() or not (path.exists() or state.steps_done):
            return
        content, kept, lines = path.read_bytes() if path.exists() else b"", 0, 0
        for line in content.split(b"\n")[:-1]:
            entry = _entry(line)
            if entry is None or entry > (state.clock.generation, state.clock.step):
                break
            kept, lines = kept + len(line) + 1, lines + 1
        if path.exists():
            os.truncate(path, kept)
        if lines < state.steps_done:
            state.warn(f"{path} has {lines} of {state.steps_done} steps; it was cut or changed, and goes on from here")


def _path(state: RunState) -> Path | None:
    return None if state.folder is None else state.folder / STEPS


def _entry(line: bytes) -> tuple[int, int] | None:
    """Generation and step of a line; None for one that is none."""
    try:
        entry: Any = json.loads(line)
        return int(entry["generation"]), int(entry["step"])
    except (ValueError, KeyError, TypeError):
        return None
