"""The state of a run: its models, measurements and progress. Everything else in training reads and changes it; a
checkpoint is this state on disk.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.memory import Inherited
from ..core.objective import Method, Objective
from ..core.step import Passes, TrainingClock
from ..errors import CheckpointError
from ..evaluation.audit import Audit, champion, exhausted
from ..io.files import write
from ..io.record_stream import emit
from .settings import Settings


@dataclass
class Evaluation:
    """A model on rows that it does not learn from.

    Args:
        metrics: means over the audit rows by name, such as ``accuracy``; none where nothing was evaluated.
        losses: the loss of each audit row by the audit's measure, always in the same order.
        guard: 0 or 1 minus the reward of each row of prior tasks, which a generation must not get worse on.
        passes: what the evaluation took.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    guard: list[float] = field(default_factory=list)
    passes: Passes = Passes()

    def to_dict(self) -> dict[str, Any]:
        """As a checkpoint holds it."""
        return {**vars(self), "passes": list(self.passes)}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_dict`."""
        return cls(**{**saved, "passes": Passes(*saved["passes"])})


@dataclass
class GenerationResult:
    """One generation that has ended: its weights and its audit.

    Args:
        start: digest of its initial weights.
        weights: its final weights.
        best: the weights of the epoch with the best audit metrics, whose number is ``best_epoch``.
        audit: metrics of the final weights on the audit split.
        losses: their loss on each audit row; ``guard``, on each row of prior tasks.
        decision: the audit's `Decision`, as a dictionary.
        pseudo_labels: what the next generation inherits, by state and tensor.
        drift: see `drift.Drift`.
    """

    start: str
    weights: dict[str, Tensor] = field(repr=False)
    best: dict[str, Tensor] = field(repr=False)
    best_epoch: int = 0
    audit: dict[str, float] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list, repr=False)
    guard: list[float] = field(default_factory=list, repr=False)
    decision: dict[str, Any] = field(default_factory=dict)
    pseudo_labels: dict[str, Tensor] = field(default_factory=dict, repr=False)
    drift: dict[str, Any] = field(default_factory=dict)


@dataclass
class BestEpoch:
    """The epoch with the best audit metrics within a generation; -1 before there is one."""

    epoch: int = -1
    audit: dict[str, float] | None = None
    weights: dict[str, Tensor] = field(default_factory=dict, repr=False)


class MetricsLog:
    """``metrics.jsonl``: one line an epoch. Rank 0 writes it; a resumed run brings it back to what the checkpoint has.

    ``content`` is what was written, which checkpoints hold too: so a change in the file is seen, and undone.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.content = folder / "metrics.jsonl", bytearray()

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line."""
        if distributed.rank():
            return
        line = (json.dumps(entry, sort_keys=True) + "\n").encode()
        try:
            with self.path.open("ab") as log:
                log.write(line)
            self.content += line
        except OSError as error:
            raise cannot_write(self.path, error) from error
        emit(self.path, entry)

    def to_tensor(self) -> Tensor:
        """The bytes that were written, (bytes,) uint8, as a checkpoint holds them."""
        return torch.frombuffer(bytearray(self.content), dtype=torch.uint8) if self.content else torch.zeros(0).byte()

    def flush(self) -> None:
        """Bring the lines to the disk: a checkpoint must never know of more lines than the disk has."""
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as log:
                os.fsync(log.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def restore(self, content: bytes, warn: Callable[[str], None]) -> list[dict[str, Any]]:
        """Drop the entries written after the checkpoint, in one system call, and undo any change of those before.

        Args:
            content: what the checkpoint knows of.
            warn: hears of a change.

        Returns:
            The entries that stay.

        Raises:
            CheckpointError: lines that the checkpoint knows of are gone.
        """
        self.content = bytearray(content)
        if distributed.rank() == 0:
            text = self.path.read_bytes() if self.path.exists() else b""
            if len(text) < len(content):
                raise CheckpointError(
                    f"{self.path} has {len(text)} bytes and the checkpoint knows of {len(content)}; it was cut; "
                    "start again in a new --out"
                )
            if not text.startswith(content):
                warn(f"{self.path} was changed since it was written; its lines are written again from the checkpoint")
                write(self.path, content.decode())
            elif len(text) > len(content):
                os.truncate(self.path, len(content))
        return [json.loads(line) for line in content.decode().splitlines()]


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """The error of a file that cannot be written, with the remedy."""
    return CheckpointError(
        f"{path}: cannot be written ({error.strerror}); free some space or check its permissions, and resume"
    )


@dataclass
class RunState:
    """A run at one moment.

    Args:
        method, settings, audit, device: what the run was started with.
        folder: where it is written; None if it is not.
        warn: receives each line about trouble that the run survives; ``tell`` each decision, in words.
        generations: the generations that have ended.
        baseline: the evaluation of the model before training, for tasks that have one.
        history: the entries of the metrics log, one an epoch.
        passes: what was computed so far, in samples.
        model, objective, optimizer, scheduler, scaler: what learns in the generation under way.
        forward: what is called in the model's place: a compiled or distributed wrapper, or the model itself.
        start: digest of the generation's initial weights.
        task_start: the task's own state when the generation began.
        best: its best epoch so far.
        rollback: the state to which an audit within the generation goes back; empty before the first.
        sums: by term the sums over the epoch of total, count, kept and valid; under ``""`` that of the loss.
        last: the same of the last step.
        lr, gradient_norm: of the last step, the norm before it was clipped; None where nothing is clipped.
        saved_at: when the last checkpoint was written, in seconds of the monotonic clock.
        previous_seconds: seconds that earlier processes have trained.
    """

    method: Method
    settings: Settings
    audit: Audit
    device: torch.device = torch.device("cpu")
    folder: Path | None = None
    warn: Callable[[str], None] = print
    tell: Callable[[str], None] | None = None
    generations: list[GenerationResult] = field(default_factory=list)
    baseline: Evaluation | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    passes: Passes = Passes()
    steps_done: int = 0
    model: nn.Module = field(init=False)
    forward: Any = field(init=False)
    objective: Objective = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    scheduler: torch.optim.lr_scheduler.LRScheduler = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    start: str = ""
    task_start: dict[str, Any] = field(default_factory=dict)
    best: BestEpoch = field(default_factory=BestEpoch)
    rollback: dict[str, Any] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)
    last: dict[str, Tensor] = field(default_factory=dict)
    lr: float = 0.0
    gradient_norm: Tensor | None = None
    blueprint: str = ""  # digest of the model's layers and shapes; see `checkpointing.identity`
    saved_at: float = field(default_factory=time.monotonic)
    previous_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.log = MetricsLog(self.folder) if self.folder else None
        self._since = time.monotonic()

    @property
    def clock(self) -> TrainingClock:
        """The progress of the run."""
        return self.objective.clock

    @property
    def seconds(self) -> float:
        """Time spent training, over all processes that took the run on."""
        return self.previous_seconds + time.monotonic() - self._since

    @property
    def epoch_ended(self) -> bool:
        """Whether the last step was the last of its epoch."""
        clock = self.objective.clock
        return clock.step % clock.per_epoch == 0 or clock.step == clock.length

    @property
    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        every = self.settings.save_steps
        if every is not None:
            return self.objective.clock.step % every == 0
        return self.folder is not None and time.monotonic() - self.saved_at > self.settings.save_seconds

    @property
    def accepted(self) -> list[int]:
        """The generations that the audit accepted; the last of them teaches the next."""
        return [number for number, result in enumerate(self.generations) if result.decision["accepted"]]

    @property
    def final_generation(self) -> int:
        """The best audited generation, -1 for the model before training; without an audit the last generation."""
        accepted = self.accepted
        if self.audit.policy == "off":
            return len(self.generations) - 1
        if not accepted:
            return -1
        losses = [result.losses for result in self.generations]
        if not all(losses) or (self.baseline is not None and not self.baseline.losses):
            return accepted[-1]
        return champion(losses, accepted, self.baseline.losses if self.baseline else None)

    @property
    def exhausted(self) -> bool:
        """Whether the audit sees no further gain in more generations."""
        losses = [result.losses for result in self.generations]
        return all(losses) and exhausted(losses, self.audit.patience)

    def report(self, line: str) -> None:
        """Report a line to the listener, from one process."""
        if self.tell and distributed.rank() == 0:
            self.tell(line)

    def figures(self) -> dict[str, float]:
        """The last step by term: its mean loss, and the share of its targets kept by the gate."""
        figures = {}
        for name, term in self.method.terms.items():
            total, count, kept, valid = self.last[name].tolist()
            figures[name] = total / count if count else 0.0
            if term.gate is not None and not term.gate.full:
                figures[f"{name} kept"] = kept / max(valid, 1.0)
        return figures


def copied(weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """Whole tensors of their own on the CPU; under FSDP all processes must call it."""
    return {name: value.detach().to("cpu", copy=True) for name, value in distributed.gathered(dict(weights)).items()}


def collect_pseudo_labels(objective: Objective) -> dict[str, Tensor]:
    """What the next generation inherits of an objective, pseudo-labels or stored rows, by state and tensor."""
    states = {name: state for name, state in objective.states.items() if isinstance(state, Inherited)}
    return {f"{name}.{key}": value for name, state in states.items() for key, value in state.carry().items()}


def inherit_pseudo_labels(tensors: Mapping[str, Tensor], objective: Objective) -> None:
    """Give the states of a fresh objective what an earlier one has left."""
    for name, state in objective.states.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        if isinstance(state, Inherited) and own:
            state.inherit(own)
