"""Vitals over time: what a run's log says of them, and the way to read it back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.vitals import TermHealth, interval, summarise
from ..errors import CheckpointError
from ..io.run_record import read_lines, read_record

COLUMNS = {
    "gradient_share": "gradient",
    "disagreement": "disagreement",
    "entropy": "entropy",
    "kept": "kept",
    "accuracy": "accuracy",
    "class_distance": "class shift",
    "weight_distance": "weights",
    "spread": "spread",
}


LEGEND = """\
Means over the checked steps of the first epoch > of the last epoch.
gradient      the term's share of the gradient
disagreement  total variation between target and student; for regression their
              distance in standard deviations
entropy       of the target: 1 is uniform, 0 is one class
kept          share of the targets that the gate keeps
accuracy      of the target, where labels are known
class shift   total variation between the classes of targets and of labels
weights       distance of teacher and student over the norm of the student
spread        of the directions of the features: 0 if all are the same"""


def entry(pulses: Mapping[str, TermHealth], before: Sequence[Mapping[str, Any]], generation: int) -> dict[str, Any]:
    """What an epoch's line of the log says: ``vitals`` by term, and the ``warnings`` that are new in the generation.

    Args:
        pulses: of the objective.
        before: the lines so far.
        generation: the one that trains.
    """
    found = interval(pulses)
    if not found:
        return {}
    said = {_kind(w) for line in before if line["generation"] == generation for w in line.get("warnings", [])}
    new = [warning for warning in summarise(pulses).warnings if _kind(warning) not in said]
    return {"vitals": found, **({"warnings": new} if new else {})}


def _kind(warning: str) -> str:
    return re.sub(r"\d+", "#", warning)


def read(folder: str | Path) -> dict[str, Any]:
    """The vitals of a run folder, finished or not.

    Returns:
        ``run``; ``generations``: each a ``generation``, ``steps`` and ``terms`` {name: {figure: [first, last]}};
        ``warnings``: each a ``generation``, ``epoch`` and ``text``.

    Raises:
        CheckpointError: it is no run, it is damaged, or it was made without vitals.
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is no run folder: it has no run.json; give one that `selfdistill run` wrote")
    read_record(folder / "run.json")  # refuses what is damaged
    lines = read_lines(folder / "metrics.jsonl")
    if not any(line.get("vitals") for line in lines):
        why = "it was run with --no-vitals or by an older version" if lines else "it has not ended an epoch yet"
        raise CheckpointError(f"{folder} has no vitals: {why}; run it again without --no-vitals, or resume it")
    generations = []
    for number in sorted({line["generation"] for line in lines}):
        own = [line for line in lines if line["generation"] == number]
        terms: dict[str, dict[str, list[float]]] = {}
        for line in own:
            for name, figures in line.get("vitals", {}).items():
                kept = terms.setdefault(name, {})
                for figure, value in figures.items():
                    kept[figure] = [kept.get(figure, [value])[0], value]
        generations.append({"generation": number, "steps": own[-1]["step"], "terms": terms})
    warnings = [
        {"generation": line["generation"], "epoch": line["epoch"], "text": text}
        for line in lines
        for text in line.get("warnings", [])
    ]
    return {"run": str(folder), "generations": generations, "warnings": warnings}


def text(found: Mapping[str, Any]) -> str:
    """`read`'s answer as a table for a terminal of 80 columns and more."""
    shown = [
        name for name in COLUMNS if any(name in term for one in found["generations"] for term in one["terms"].values())
    ]
    rows = [["", *(COLUMNS[name] for name in shown)]]
    for one in found["generations"]:
        rows.append([f"generation {one['generation']}, {one['steps']} steps"])
        for name, figures in one["terms"].items():
            rows.append([f"  {name}", *(_change(figures.get(figure)) for figure in shown)])
    widths = [max(len(row[i]) for row in rows if i < len(row) and len(row) > 1) for i in range(len(shown) + 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        if len(row) > 1
        else row[0]
        for row in rows
    ]
    said = [f"warning in generation {w['generation']}, epoch {w['epoch'] + 1}: {w['text']}" for w in found["warnings"]]
    return "\n".join([*lines, "", *(said or ["no warnings"]), "", LEGEND])


def _change(pair: Sequence[float] | None) -> str:
    if pair is None:
        return ""
    first, last = (f"{value:.2f}".removeprefix("0") for value in pair)
    return first if first == last else f"{first}>{last}"
