"""``selfdistill report``, ``vitals`` and ``doubts``: what a run has to say.

``selfdistill theory``: every identity of the theory with its largest deviation from a reference of its own.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click

from ..io.files import writable, write
from .options import one_line_errors


@click.command()
@click.argument("source", metavar="RUN|COMPARISON")
@click.option("--out", metavar="FILE", help="HTML file to write [default: report.html in the folder].")
@one_line_errors
def report(source: str, out: str | None) -> None:
    """Write one HTML page about a run or a comparison: verdict, curves, decisions, calibration, cost, lineage."""
    from ..experiments.task_types import TASK_TYPES
    from ..report import write

    click.echo(str(write(source, TASK_TYPES, out)))


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@one_line_errors
def vitals(run_folder: str, as_json: bool) -> None:
    """Is the signal alive? Per generation and term: gradient, disagreement, entropy, share kept, and warnings."""
    from ..experiments.run import Run

    run = Run.open(run_folder)
    figures = run.task.vitals(run.folder)
    click.echo(json.dumps(figures, sort_keys=True) if as_json else run.task.vitals_text(figures))


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="So many rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@one_line_errors
def doubts(run_folder: str, top: int, as_json: bool) -> None:
    """Which labels the model of RUN came to doubt, the surest doubt first; all of them are in RUN/doubts.csv. Rows are
    counted as by `predict`: the first row of data is 1, the header of a table is not counted."""
    from ..evaluation.label_errors import label_error_table
    from ..experiments.run import Run

    run = Run.open(run_folder)
    labels = run.task.label_errors(run.folder, top)
    click.echo(json.dumps(labels, sort_keys=True) if as_json else label_error_table(labels))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    is_flag=False,
    flag_value="theory.html",
    metavar="FILE",
    help="Draw the laws against simulation, as one HTML page [without FILE: theory.html].",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of what is drawn at random.")
@one_line_errors
def theory(as_json: bool, plot: str | None, seed: int) -> None:
    """Measure the closed forms of self-distillation against brute force. Exit code 1 if one is off by too much.

    Target = xi x teacher + (1 - xi) x label. Takes about half a minute on one core.
    """
    from ..theory.checks import run_checks

    if plot is not None:
        writable(Path(plot), "--plot")
    outcomes = []
    for row in run_checks(seed):
        outcomes.append(row)
        if not as_json:
            click.echo(_line(row))
    ok = all(one["ok"] for one in outcomes)
    if plot is not None:
        from ..report.theory_page import render

        write(Path(plot), render(outcomes), "--plot")
    if as_json:
        for one in outcomes:
            if not math.isfinite(one["deviation"]):
                one["deviation"] = None  # JSON has no infinity
        click.echo(json.dumps({"kind": "theory", "seed": seed, "ok": ok, "identities": outcomes, "plot": plot}))
    else:
        held = sum(one["ok"] for one in outcomes)
        click.echo(f"{held} of {len(outcomes)} identities hold" + (f"; drawn in {plot}" if plot else ""))
    sys.exit(0 if ok else 1)


def _line(one: dict[str, Any]) -> str:
    off = "" if one["unit"] == "relative" else f" {one['unit']}"
    verdict = "ok   " if one["ok"] else "FAILS"
    return f"{verdict} {one['name']:<22} {one['deviation']:8.1e} of {one['tolerance']:g}{off}: {one['statement']}"
