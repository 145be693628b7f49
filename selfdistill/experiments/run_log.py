"""``--log``: the records that a run or a comparison writes anyway, sent to tools that draw them.

The lines of ``metrics.jsonl`` and ``steps.jsonl`` go there as they are written. A run that goes on sends those first
that a kill has kept back. At the end come the scores of the result. ``log.json`` in the run folder names the tools and
the run's id there.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io.loggers import LOGGERS, Config, Logger, points_of, require_loggers
from ..io.record_stream import heard_by
from ..io.run_record import METRICS, STEPS
from ..io.schema import read_json
from ..io.tensors import write_json

FILE = "log.json"
FILES = (FILE, "tensorboard", "wandb")  # that logging leaves in a run folder
PLACES = ("generation", "epoch", "step")  # of a line, not figures


class RunLog:
    """The curves of a run in one or several tools.

    Args:
        folder: of the run.
        loggers: that are open.
    """

    def __init__(self, folder: Path, loggers: Sequence[Logger]) -> None:
        self.folder, self.loggers = folder, loggers

    def __call__(self, path: Path, entry: Mapping[str, Any]) -> None:
        """Send a line of a log; of a generation after the first one the curves are apart."""
        training = path.parent.resolve().relative_to(self.folder.resolve()).as_posix()
        prefix = {".": "method"}.get(training, training)
        prefix += " steps" if path.stem == "steps" else ""
        prefix += f" generation {entry['generation']}" if entry["generation"] else ""
        self.send(prefix, int(entry["step"]), points_of(prefix, entry, PLACES))

    def send(self, prefix: str, step: int, points: Mapping[str, float]) -> None:
        """Send points to each tool that has not got them."""
        for logger in self.loggers:
            new = {name: value for name, value in points.items() if step > logger.marks.get(name, -1)}
            if new:
                logger.write(prefix, step, new)
                logger.marks.update(dict.fromkeys(new, step))

    def catch_up(self) -> None:
        """Send the lines that a tool has not got, before later ones: a kill takes what a tool had not written yet.

        A line that a resumed run writes again is the same.
        """
        for path in sorted([*self.folder.rglob(METRICS), *self.folder.rglob(STEPS)]):
            with contextlib.suppress(ValueError, KeyError, TypeError):  # what is damaged is written again, or refused
                for line in path.read_bytes().split(b"\n")[:-1]:
                    self(path, json.loads(line))

    def finish(self, result: Mapping[str, Any]) -> None:
        """Send the scores of a result."""
        self.send("test", 0, points_of("test", result["test"]))
        self.send("test of plain", 0, points_of("test of plain", (result.get("plain") or {}).get("end", {})))
        for one in result["generations"]:
            scores = {name: one[name] for name in ("test", "loss") if name in one}
            self.send("generations", one["generation"], points_of("generations", scores))


def logged_before(folder: Path) -> tuple[str, ...]:
    """The tools that a run is logged to already; none for a run without."""
    return tuple(_noted(folder).get("tools", ()))


def _noted(folder: Path) -> dict[str, Any]:
    """What ``log.json`` has: the tools and the id of the run there; nothing for a run without."""
    path = folder / FILE
    return read_json(path, {"id": str, "tools": [str]}) if path.exists() else {}


@contextmanager
def logged(folder: Path, names: Sequence[str], config: Config) -> Iterator[RunLog | None]:
    """Within it the records of a run go to these tools; without any, to those of ``log.json``.

    Args:
        folder: of the run.
        names: of the tools.
        config: the options of the run, which the tools show.

    Raises:
        DataError: a tool is not installed, or cannot be opened.
    """
    names = tuple(dict.fromkeys(names or logged_before(folder)))
    if not names:
        yield None
        return
    require_loggers(names)
    identity = _noted(folder).get("id") or secrets.token_hex(4)
    write_json(folder / FILE, {"id": identity, "tools": list(names)})
    loggers = list[Logger]()
    try:
        loggers += (LOGGERS[name](folder, identity, config) for name in names)
        log = RunLog(folder, loggers)
        log.catch_up()
        with heard_by(log):
            yield log
    finally:
        for logger in loggers:
            logger.close()


def log_comparison(folder: Path, names: Sequence[str], config: Config) -> None:
    """Send the scores of the cells of a comparison: a curve for each row and score, over seeds."""
    with logged(folder, names, config) as log:
        if log is None:
            return
        for path in sorted(
            folder.glob("cells/*/*/cell.json"), key=lambda path: (path.parent.parent, int(path.parent.name))
        ):
            cell = json.loads(path.read_bytes())
            for row, record in cell["rows"].items():
                log.send(row, int(cell["job"]["seed"]), points_of(row, record))
