"""The report of a run or a comparison: one HTML file with the verdict first and the evidence after it.

It opens offline, needs no script, and adapts to narrow screens. `write` makes it from a run folder, the folder of a
comparison, the JSON of a comparison, or a folder of runs, whose report is a leaderboard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import CheckpointError, DataError
from ..io import files
from ..io.expressions import one_line
from ..io.run_record import read_record
from ..io.schema import read_json, refuse_misfits
from ..training.task_type import TaskTypes
from . import comparison_page, leaderboard, run_page

__all__ = ["is_leaderboard", "render", "write"]

COMPARISON = "comparison.json"
LABEL_CURVE = "label curve"  # its kind, of comparisons at several numbers of labels
PAGE = "report.html"


@contextmanager
def surviving(fault: str, remedy: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Report any error of a page in one line: what was trained is worth more than a text about it."""
    try:
        yield
    except Exception as error:
        warn(f"warning: {fault} ({type(error).__name__}: {one_line(error)}); {remedy}")


def render(source: str | Path, types: TaskTypes, sort: str = "score") -> str:
    """The report of a run folder, a comparison's folder or JSON file, or a folder of runs, as HTML.

    Args:
        source: the folder or the file.
        types: the task types, one of which made the run.
        sort: what is first on a leaderboard: score, seconds or date.

    Raises:
        CheckpointError: there is neither, or it is damaged.
    """
    path = Path(source)
    if path.is_dir() and (path / "run.json").exists():
        record, _ = read_record(path / "run.json")
        with refuse_misfits(path, "run it again in a new --out"):
            return run_page.render(path, types.of_record(record))
    file = path / COMPARISON if path.is_dir() else path
    if is_leaderboard(path):
        return leaderboard.render(leaderboard.read_leaderboard(path, sort), path)
    if not file.is_file():
        unfinished = "; finish it by the same compare command" if (path / "plan.json").exists() else ""
        raise CheckpointError(
            f"{path} is no run, no finished comparison and no folder of runs{unfinished}; give one of them"
        )
    try:
        result = read_json(file, {"kind": frozenset({"comparison", LABEL_CURVE})})
        with refuse_misfits(file, "run it again"):
            if result["kind"] == LABEL_CURVE:
                return comparison_page.render_label_curve(result)
            return comparison_page.render(result, types)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or foreign ({one_line(error, 80)}); run it again") from error


def is_leaderboard(source: str | Path) -> bool:
    """Whether the report of a source is a leaderboard: it is a folder of runs, and neither a run nor a comparison."""
    path = Path(source)
    own = any((path / name).exists() for name in ("run.json", COMPARISON, "plan.json"))
    return path.is_dir() and not own and leaderboard.has_runs(path)


def write(source: str | Path, types: TaskTypes, out: str | Path | None = None, sort: str = "score") -> Path:
    """Write the report.

    Args:
        source: the folder or the file.
        types: the task types, one of which made the run.
        out: the file to write; ``report.html`` in the folder by default.
        sort: as of `render`.

    Returns:
        The path of the report.

    Raises:
        CheckpointError: there is nothing to report on.
        DataError: the file cannot be written.
    """
    path = Path(source)
    target = Path(out) if out is not None else (path if path.is_dir() else path.parent) / PAGE
    if out is None and target.is_symlink():
        raise DataError(f"{target} is a link, and what it leads to would be overwritten; remove it, or give --out")
    files.write(target, render(path, types, sort))
    return target
