"""Tools that draw curves of runs: TensorBoard, Weights & Biases and Trackio, each behind the same four methods.

A curve is a name and its points by step. What a tool has of a curve, up to which step, is read from the tool's own
files: so a run that was killed goes on with no point lost and none there twice.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import json
import logging
import math
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..errors import DataError
from .expressions import one_line

PROJECT = "selfdistill"  # under which the tools that have projects keep the runs

Marks = dict[str, int]  # the last step of each curve
Config = Mapping[str, str | int | float | bool | Sequence[str]]


class Logger(Protocol):
    """A tool that is open for a run."""

    marks: Marks

    def write(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        """Add points of curves of one training at a step; the names begin with the prefix of the training."""

    def close(self) -> None:
        """Bring everything to the disk, or to the server."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run folder."""

    def __init__(self, folder: Path, identity: str, config: Config) -> None:
        from torch.utils.tensorboard import SummaryWriter

        place = folder / "tensorboard"
        self.marks: Marks = _events_marks(place) if place.is_dir() else {}
        new = not place.is_dir()
        self.writer = SummaryWriter(str(place), flush_secs=1)
        if new:
            lines = "\n".join(f"    {name} = {value!r}" for name, value in config.items())
            self.writer.add_text("config", lines)

    def write(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        for name, value in points.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


def _events_marks(place: Path) -> Marks:
    """The last steps of curves in event files; what a kill has cut off does not count."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    found = EventAccumulator(str(place), size_guidance={SCALARS: 0}).Reload()
    return {name: max(event.step for event in found.Scalars(name)) for name in found.Tags()["scalars"]}


class WeightsAndBiases:
    """A run of Weights & Biases, online or, with ``WANDB_MODE=offline``, in ``wandb/`` of the run folder alone.

    Each training has an axis of its own, ``PREFIX/step``. A resumed run has the same id; offline it is a further folder
    of that id, and ``wandb sync --append`` puts them together.
    """

    def __init__(self, folder: Path, identity: str, config: Config) -> None:
        import wandb

        self.marks: Marks = {}
        for path in sorted(folder.glob(f"wandb/*run-*-{identity}/run-{identity}.wandb")):
            _merge(self.marks, _wandb_marks(path))
            _wait_a_second(path.parent)
        self.axes = set[str]()
        settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True)
        try:
            self.run = wandb.init(
                project=PROJECT,
                name=folder.resolve().name,
                id=identity,
                resume="allow",
                dir=str(folder),
                config=dict(config),
                settings=settings,
            )
        except wandb.errors.Error as error:
            raise DataError(
                f"--log wandb: {one_line(error, 120)}; log in by `wandb login`, or set WANDB_MODE=offline"
            ) from None

    def write(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        axis = f"{prefix}/step"
        if prefix not in self.axes:
            self.axes.add(prefix)
            self.run.define_metric(f"{prefix}/*", step_metric=axis)
        self.run.log({**points, axis: step})

    def close(self) -> None:
        self.run.finish()


def _wait_a_second(folder: Path) -> None:
    """Wait until a second has passed since a run made its folder, which Weights & Biases names by the second of the
    start: a run that goes on within that second would write over it.
    """
    time.sleep(min(1.0, max(0.0, folder.stat().st_mtime + 1 - time.time())))


def drop_links(folder: Path) -> None:
    """Remove the links to a log of its own, outside of the run folder, that Weights & Biases puts there."""
    for path in folder.glob("wandb/*/logs/debug-core.log"):
        if path.is_symlink():
            path.unlink()


BLOCK, HEAD = 32768, 7  # of a file of Weights & Biases, which has the format of LevelDB's log


def _wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of a file of Weights & Biases; one that a kill has cut off is left out."""
    place, record = HEAD, b""
    while place + HEAD <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEAD:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + HEAD])
        place += HEAD
        record += content[place : place + size]
        place += size
        if place > len(content) or kind == 0:
            return
        if kind in (1, 4):  # whole, or the last of several
            yield record
            record = b""


def _wandb_marks(path: Path) -> Marks:
    messages: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")  # its names are made as it is imported
    marks = Marks()
    for raw in _wandb_records(path.read_bytes()):
        record = messages.Record()
        record.ParseFromString(raw)
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        _merge(marks, _row_marks(row))
    return marks


def _row_marks(row: Mapping[str, Any]) -> Marks:
    """The steps of a row whose curves have the axes ``PREFIX/step``."""
    axes = {name.removesuffix("step"): int(step) for name, step in row.items() if name.endswith("/step")}
    return {name: step for name in row for axis, step in axes.items() if name.startswith(axis)}


def _merge(marks: Marks, other: Mapping[str, int]) -> None:
    for name, step in other.items():
        marks[name] = max(step, marks.get(name, step))


class Trackio:
    """A run of Trackio in its local database; ``trackio show`` draws it."""

    def __init__(self, folder: Path, identity: str, config: Config) -> None:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage

        name = f"{folder.resolve().name}-{identity}"
        self.marks: Marks = {}
        for row in SQLiteStorage.get_logs(PROJECT, name):
            _merge(self.marks, dict.fromkeys(row, int(row["step"])))
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to look at the run, where results belong
            self.run = trackio.init(
                project=PROJECT,
                name=name,
                resume="allow",
                config=dict(config),
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        self.run.log(dict(points), step=step)

    def close(self) -> None:
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            trackio.finish()


LOGGERS: dict[str, Callable[[Path, str, Config], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
}  # each name is that of the package, and of the extra that installs it


def require_loggers(names: Sequence[str]) -> None:
    """Refuse tools that are not installed.

    Raises:
        DataError: one is not, or there is none of the name.
    """
    for name in names:
        if name not in LOGGERS:
            raise DataError(f"--log {one_line(name, 40)} is none of {', '.join(LOGGERS)}")
        if importlib.util.find_spec(name) is None:
            raise DataError(f"--log {name} needs {name}; install it by `pip install 'selfdistill[{name}]'`")


def points_of(prefix: str, entry: Mapping[str, Any], skipped: Sequence[str] = ()) -> dict[str, float]:
    """The finite numbers of a record, by their path in it.

    >>> points_of("method", {"step": 3, "loss": 0.5, "terms": {"label": {"kept": None, "loss": 0.25}}}, ["step"])
    {'method/loss': 0.5, 'method/terms/label/loss': 0.25}
    """
    found = dict[str, float]()
    for name, value in entry.items():
        if name in skipped:
            continue
        if isinstance(value, Mapping):
            found |= points_of(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[f"{prefix}/{name}"] = float(value)
    return found
