"""The report of a run or a comparison: one HTML file with the verdict first and the evidence after it.

It opens offline, needs no script, and adapts to narrow screens. `write` makes it from a run folder, the folder of a
comparison, or the JSON of a comparison.
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
from . import comparison_page, run_page

__all__ = ["render", "write"]

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


def render(source: str | Path, types: TaskTypes) -> str:
    """The report of a run folder, a comparison's folder, or a comparison's JSON file, as HTML.

    Args:
        source: the folder or the file.
        types: the task types, one of which made the run.

    Raises:
        CheckpointError: there is neither, or it is damaged.
    """
    path = Path(source)
    if path.is_dir() and (path / "run.json").exists():
        record, _ = read_record(path / "run.json")
        with refuse_misfits(path, "run it again in a new --out"):
            return run_page.render(path, types.of_record(record))
    file = path / COMPARISON if path.is_dir() else path
    if not file.is_file():
        unfinished = "; finish it by the same compare command" if (path / "plan.json").exists() else ""
        raise CheckpointError(f"{path} is no run and no finished comparison{unfinished}; give the folder of one")
    try:
        result = read_json(file, {"kind": frozenset({"comparison", LABEL_CURVE})})
        with refuse_misfits(file, "run it again"):
            if result["kind"] == LABEL_CURVE:
                return comparison_page.render_label_curve(result)
            return comparison_page.render(result, types)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} is damaged or foreign ({one_line(error, 80)}); run it again") from error


def write(source: str | Path, types: TaskTypes, out: str | Path | None = None) -> Path:
    """Write the report.

    Args:
        source: the folder or the file.
        types: the task types, one of which made the run.
        out: the file to write; ``report.html`` in the folder by default.

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
    files.write(target, render(path, types))
    return target
