"""The jobs of a comparison: what each one is, and the record it leaves, whatever learns.

One job is one seed of one training; its record has a row for every way to use what was trained (of networks the last
weights, the best epoch, the averaged weights).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import write_json
from ..loop import Result
from ..request import Request
from .memory import Peak


@dataclass(frozen=True)
class Job:
    """One training of one seed: ``steps`` are those of one generation.

    ``count`` is that of an ensemble's models, of a search's trainings, or of a larger teacher's steps; of a peer which.
    """

    name: str
    kind: str  # how it is trained; networks, learners and prompts each have their own
    steps: int
    seed: int
    expression: str | None = None
    count: int = 1

    @property
    def key(self) -> str:
        """A folder's name: what is trained and for how long, so that nothing else is taken for it."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:30]
        tail = hashlib.sha256(f"{self.name} {self.steps} {self.count}".encode()).hexdigest()[:8]
        return f"{slug}-{tail}/{self.seed}"


Trained = Callable[[Job, Request, Path], dict[str, Any]]  # trains a job, in a folder of its own; gives its record


def run(job: Job, request: Request, folder: Path, trained: Trained) -> None:
    """Train a job and write its record: ``cell.json``, and beside it ``times.json``, which no two runs share.

    ``trained`` makes the record; it may say ``seconds`` of earlier sittings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "cell.json").exists():  # a worker that outlived its comparison may just have ended it
            return
        peak, begun = Peak(), time.monotonic()
        record = trained(job, request, folder)
        seconds = max(record.pop("seconds", 0.0), time.monotonic() - begun)
        write_json(folder / "times.json", {"seconds": seconds, "peak_memory_mb": peak.megabytes()})
        write_json(folder / "cell.json", {"job": asdict(job), **record})
        shutil.rmtree(folder / "training", ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the folder: a comparison that was killed may have left a worker that still trains there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def curve(result: Result) -> list[dict[str, float]]:
    """Audit accuracy, or RMSE, or NLL, by step, counted over all generations."""
    points: list[dict[str, float]] = []
    before, generation, step = 0, 0, 0
    for line in result.history:
        if line["generation"] != generation:
            before += step
        generation, step = line["generation"], line["step"]
        score = next(line["audit"][name] for name in ("accuracy", "rmse", "nll") if name in line["audit"])
        points.append({"step": before + step, "score": score, "generation": generation})
    return points
