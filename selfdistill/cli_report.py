"""``selfdistill report``, ``vitals`` and ``doubts``: what a run has to say."""

from __future__ import annotations

import json

import click

from .cli_options import refusing


@click.command()
@click.argument("source", metavar="RUN|COMPARISON")
@click.option("--out", metavar="FILE", help="HTML file to write [default: report.html in the folder].")
@refusing
def report(source: str, out: str | None) -> None:
    """Write one HTML page about a run or a comparison: verdict, curves, decisions, calibration, cost, lineage."""
    from .report import write

    click.echo(str(write(source, out)))


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@refusing
def vitals(run_folder: str, as_json: bool) -> None:
    """Is the signal alive? Per generation and term: gradient, disagreement, entropy, share kept, and warnings."""
    from .vitals.record import read, text

    found = read(run_folder)
    click.echo(json.dumps(found, sort_keys=True) if as_json else text(found))


@click.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="So many rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@refusing
def doubts(run_folder: str, top: int, as_json: bool) -> None:
    """Which labels the model of RUN came to doubt, the surest doubt first; all of them are in RUN/doubts.csv. Rows are
    counted as by `predict`: the first row of data is 1, the header of a table is not counted."""
    from .doubts import read, text

    found = read(run_folder, top)
    click.echo(json.dumps(found, sort_keys=True) if as_json else text(found))
