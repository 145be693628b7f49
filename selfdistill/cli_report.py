"""``selfdistill report``."""

from __future__ import annotations

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
