"""The leaderboard of a folder of runs: all finished ones by their data, the best score on test rows first."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError, SelfdistillError
from ..evaluation.metrics import METRICS, POINTS
from ..evaluation.statistics import share_interval
from ..io.display import change, plural
from ..io.expressions import one_line
from ..io.run_record import read_record
from ..training.task_type import FigureTable
from .layout import page, paragraph, section, table
from .summary import COLUMNS, score_rows

DEPTH = 3  # folders below the one that is asked for, in which runs are looked for
SORTS = ("score", "seconds", "date")
RECORD = "run.json"
HEAD = (
    "run",
    "score",
    "95 % interval",
    "against the baseline",
    "method",
    "model",
    "seed",
    "labels",
    "cost",
    "date",
    "data",
)


class Entry(NamedTuple):
    """A finished run on the leaderboard."""

    place: str
    data: tuple[Any, ...]  # equal for runs whose scores can be compared
    metric: str
    score: float
    baseline: float | None
    result: dict[str, Any]
    date: float  # seconds since 1970


class Leaderboard(NamedTuple):
    """The tables, one for each data set, and a line about each folder that is not on them."""

    tables: list[FigureTable]
    notes: list[str]


def has_runs(folder: Path) -> bool:
    """Whether there is a run somewhere below a folder."""
    return next(run_folders(folder), None) is not None


def run_folders(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The run folders below a folder, in the order of their names; what lies within one is its own."""
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in below:
        if (path / RECORD).is_file():
            yield path
        elif depth > 1:
            yield from run_folders(path, depth - 1)


def read_leaderboard(folder: Path, sort: str = SORTS[0]) -> Leaderboard:
    """The runs below a folder.

    Args:
        folder: the folder.
        sort: what is first: the best ``score``, the fewest ``seconds``, or the last ``date``.

    Raises:
        CheckpointError: there is no run below it.
    """
    entries, notes, count = list[Entry](), list[str](), 0
    for path in run_folders(folder):
        count += 1
        place = str(path.relative_to(folder))
        try:
            entry = _entry(path, place)
        except (SelfdistillError, KeyError, TypeError, ValueError) as error:
            notes.append(f"{place}: left out ({one_line(error, 160)})")
            continue
        if isinstance(entry, str):
            notes.append(f"{place}: {entry}")
        else:
            entries.append(entry)
    if not count:
        raise CheckpointError(f"{folder} has no run below it; give a folder of runs")
    groups: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry.data, []).append(entry)
    return Leaderboard([_table(group, sort) for group in groups.values()], notes)


def _entry(path: Path, place: str) -> Entry | str:
    """A run on the leaderboard, or why it is not on it."""
    record, request = read_record(path / RECORD)
    result = record.get("result")
    if result is None:
        return f"not finished; `selfdistill resume {path}` goes on"
    data = result["data"]
    metric = next((name for name in COLUMNS[data["task"]] if result["test"].get(name) is not None), None)
    if metric is None:
        return "has no score: no row has a label"
    key = (
        data["name"],
        data["task"],
        tuple(data["classes"]),
        score_rows(result),
        request.target,
        metric,
        "cross_fit" in result,
    )
    control = result.get("plain") or {}
    own = control.get("from") == "method" or result["chosen"] == "plain"  # the final model is the baseline
    plain = None if own else control.get("end", {}).get(metric)
    return Entry(place, key, metric, result["test"][metric], plain, result, (path / RECORD).stat().st_mtime)


def _table(group: Sequence[Entry], sort: str) -> FigureTable:
    """The runs on one data set."""
    first = group[0]
    data, metric = first.result["data"], first.metric
    higher = METRICS[data["task"]].get(metric, {}).get("higher_is_better", True)
    orders = {"score": lambda one: -one.score if higher else one.score, "seconds": lambda one: one.result["seconds"]}
    ordered = sorted(group, key=orders.get(sort, lambda one: -one.date))
    name = COLUMNS[data["task"]][metric]
    rows = f"{score_rows(group[0].result):,} {'cross-fitted' if 'cross_fit' in group[0].result else 'test'} rows"
    title = f"{data['name']}: {name}, {'more' if higher else 'less'} is better ({rows}, {plural(len(group), 'run')})"
    marks = {one.result["data"]["fingerprint"] for one in group}
    caption = "Differences within the intervals may be chance; `selfdistill compare` pairs seeds."
    if len(marks) > 1:
        caption += " Runs with other marks in the column data have other training labels, splits or contents."
    return FigureTable(title, HEAD, [_line(one) for one in ordered], caption)


def _line(entry: Entry) -> list[str]:
    result, share = entry.result, entry.metric in POINTS
    scale, unit = (100.0, " points") if share else (1.0, "")
    score = f"{scale * entry.score:.1f} %" if share else f"{entry.score:.4g}"
    rows = score_rows(result)
    ends = ""
    if entry.metric == "accuracy" and rows:
        low, high = share_interval(min(rows, max(0, round(entry.score * rows))), rows)
        ends = f"{100 * low:.1f} to {100 * high:.1f}"
    elif half := result["test"].get("half"):
        ends = f"{entry.score - half:.4g} to {entry.score + half:.4g}"
    gain = "is the baseline" if entry.baseline is None and result.get("plain") else ""
    if entry.baseline is not None and math.isfinite(entry.baseline):
        falls = METRICS[result["data"]["task"]].get(entry.metric, {}).get("higher_is_better") is False
        gain = change(scale * (entry.score - entry.baseline), unit, ".1f" if share else ".3g", falls=falls)
    data = result["data"]
    noise = f", {100 * data['noise']:.0f} % wrong on purpose" if data["noise"] else ""
    return [
        entry.place,
        score,
        ends,
        gain,
        result["method"],
        result["model"],
        str(result["seed"]),
        f"{data['rows'].get('labelled', 0):,}{noise}",
        _cost(result),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.date)),
        data["fingerprint"][:6],
    ]


def _cost(result: dict[str, Any]) -> str:
    """What a run took."""
    seconds = f"{result['seconds']:,.0f} s"
    if passes := result.get("passes"):
        return f"{passes['forward'] + 2 * passes['backward'] + passes['teacher']:,} passes, {seconds}"
    return f"{plural(result['steps'], 'training')}, {seconds}"


def render(board: Leaderboard, folder: Path) -> str:
    """The page of a leaderboard."""
    parts = [section(one.title, table(one.head, one.rows), paragraph(one.caption, "soft")) for one in board.tables]
    notes = section("Not on it", *map(paragraph, board.notes))
    return page(f"Runs in {folder.name or folder}", [*parts, notes])
