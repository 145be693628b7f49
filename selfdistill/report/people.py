"""Sections of a run's report on its peers, and on the labels that it came to doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..doubts import FILE, read
from ..errors import SelfdistillError
from ..request import Lines
from ..summary import together
from .page import figure, paragraph, table
from .svg import Series, curves

SHOWN = 12  # doubted labels
FIGURES = {"distance": "distance of two peers", "disagreement": "another class by two peers"}


def peers(lines: Lines, result: dict[str, Any] | None) -> list[str]:
    """How far a group's members differ, by epoch, and what their mean gains."""
    said = [paragraph(line.removeprefix("- ")) for line in together(result or {})]
    found = [(i, line["diversity"]) for i, line in enumerate(lines, 1) if line.get("diversity")]
    series = [Series(label, [(i, one[key]) for i, one in found if key in one]) for key, label in FIGURES.items()]
    series = [one for one in series if one.points]
    if not series:
        return said
    caption = "Means over pairs of peers and rows of the audit split; peers that are equal teach nothing."
    return [*said, figure(curves(series, "diversity of the peers", "epoch", "diversity", height=240), caption)]


def doubted(result: dict[str, Any] | None, folder: Path) -> list[str]:
    """The labels that the model doubts most."""
    if not result or not result.get("doubts"):
        return []
    try:
        found = read(folder, SHOWN)
    except SelfdistillError:
        return []
    rows = [
        (one["name"] or str(one["row"]), one["label"], one["believed"], f"{one['doubt']:.3f}")
        for one in found["labels"]
        if one["label"] != one["believed"]
    ]
    said = f"{found['doubted']} of {found['rows']} labels are doubted; all are in {FILE}."
    head = "file" if any(one["name"] for one in found["labels"]) else "row (from 1)"
    return [paragraph(said), *([table((head, "label", "believed", "doubt"), rows)] if rows else [])]
